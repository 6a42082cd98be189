"""`sonorant evaluate codec`: table, JSON and picture, and faults in one line."""

import json
import re

import pytest
import torch

from sonorant.audio import Audio, write
from tests.cli.running import CommandLine, sonorant
from tests.codec.test_encodec import RATE
from tests.codec.test_files import sound_file

__all__ = ["sonorant"]  # the fixture

CHEAP = ("--metrics", "si_snr,mel")


@pytest.fixture(autouse=True)
def sounds(sonorant: CommandLine) -> None:
    (sonorant.folder / "sounds").mkdir()
    sound_file(sonorant.folder / "sounds" / "noise.wav", 2000, RATE, channels=1)
    write(sonorant.folder / "sounds" / "silence.wav", Audio(torch.zeros(1, 2000), RATE))


def test_the_table_has_a_column_for_each_bandwidth_and_says_what_is_missing(
    sonorant: CommandLine,
) -> None:
    arguments = ("--bandwidth", "0.8", "--bandwidth", "1.6", *CHEAP)
    assert sonorant.run("evaluate", "codec", "model", "sounds", *arguments) == 0
    lines = sonorant.out.splitlines()
    table = {re.split(r"  +", line)[0]: re.split(r"  +", line)[1:] for line in lines}
    assert table["files"] == ["2", "2"]
    assert table["codebooks"] == ["2", "4"]
    assert table["rate"] == ["0.80 kb/s", "1.60 kb/s"]
    assert all(cell.endswith(" dB (of 1)") for cell in table["SI-SNR"])
    assert lines[-1].startswith("SI-SNR is missing for sounds/silence.wav (a silent reference")


def test_json_goes_to_a_file_or_is_all_that_is_printed(sonorant: CommandLine) -> None:
    command = ("evaluate", "codec", "model", "sounds", *CHEAP)
    assert sonorant.run(*command, "--json", "-") == 0
    printed = json.loads(sonorant.out)
    assert sonorant.run(*command, "--json", "out.json") == 0
    assert "perplexity" in sonorant.out
    assert json.loads((sonorant.folder / "out.json").read_text()) == printed
    assert {file["path"] for file in printed["files"]} == {"sounds/noise.wav", "sounds/silence.wav"}
    assert printed["totals"][0]["metrics"]["mel"]["files"] == 2


def test_a_picture_is_drawn(sonorant: CommandLine) -> None:
    command = ("evaluate", "codec", "model", "sounds", *CHEAP, "--picture", "out.png")
    assert sonorant.run(*command) == 0
    assert (sonorant.folder / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("model", "none"), "there is no file or folder none"),
        (("model", "model"), "no sound files in model"),
        (("elsewhere", "sounds"), "neither a known model"),
        (("encodec_lm_24khz", "sounds"), "offline"),
        (("model", "sounds", "--metrics", "snr"), "no metric 'snr'"),
        (("model", "sounds", "--metrics", "pesq"), "--domain speech"),
        (("model", "sounds", "--bandwidth", "7"), "no bandwidth of 7 kb/s"),
        (("model", "sounds", "--picture", "out.gif"), "name ends in"),
        (("model", "sounds", "--json", "none/out.json"), "no folder"),
    ],
)
def test_mistakes_are_one_line(
    sonorant: CommandLine, arguments: tuple[str, ...], words: str
) -> None:
    assert words in sonorant.fails("evaluate", "codec", *arguments)
