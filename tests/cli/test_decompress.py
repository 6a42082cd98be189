"""`sonorant decompress`: default names, figures, and care for what exists."""

import re

import pytest

from sonorant.audio import info
from tests.cli.running import CommandLine, sonorant
from tests.codec.test_encodec import RATE
from tests.codec.test_files import sound_file
from tests.codec.test_multiband_diffusion import codec, diffusion

__all__ = ["sonorant"]  # the fixture

MODEL = ("--model", "model")


@pytest.fixture(autouse=True)
def container(sonorant: CommandLine) -> None:
    sound_file(sonorant.folder / "original.wav", 2000, 2 * RATE, channels=2)
    sonorant.run("compress", "original.wav", "in.snr", "--bandwidth", "0.8", *MODEL)


def test_output_lies_beside_the_container_by_default(sonorant: CommandLine) -> None:
    assert sonorant.run("decompress", "in.snr", *MODEL) == 0
    assert info(sonorant.folder / "in.wav") == info(sonorant.folder / "original.wav")


def test_figures_are_printed_in_one_line(sonorant: CommandLine) -> None:
    sonorant.run("decompress", "in.snr", "out.flac", *MODEL)
    assert info(sonorant.folder / "out.flac").format == "FLAC"
    assert re.fullmatch(
        r"in\.snr \(\d+ B, \d\.\d\d kb/s\) -> out\.flac \(\d\.\d kB, 1\.2 s\); "
        r"\d+\.\d s, \d+\.\d times real time\n",
        sonorant.out,
    )


def test_an_unknown_ending_is_refused_before_any_work(sonorant: CommandLine) -> None:
    line = sonorant.fails("decompress", "in.snr", "out.txt", "--model", "nowhere")
    assert "cannot write out.txt: its name must end in .wav, .flac, .mp3, .ogg or .opus" in line


def test_an_existing_output_stays_unless_forced(sonorant: CommandLine) -> None:
    (sonorant.folder / "in.wav").write_text("mine")
    assert "--force" in sonorant.fails("decompress", "in.snr", *MODEL)
    assert sonorant.run("decompress", "in.snr", "--force", *MODEL) == 0
    assert info(sonorant.folder / "in.wav").frames == 2000


def test_a_container_of_an_unnamed_model_asks_for_the_model(sonorant: CommandLine) -> None:
    assert "--model" in sonorant.fails("decompress", "in.snr")


def test_diffusion_takes_a_seed_and_a_number_of_calls(sonorant: CommandLine) -> None:
    codec().save_pretrained(sonorant.folder / "codec")
    diffusion().save_pretrained(sonorant.folder / "diffusion")
    model = ("--model", "codec")
    sonorant.run("compress", "original.wav", "low.snr", "--bandwidth", "1.6", *model)

    def made(*options: str) -> bytes:
        arguments = ("--diffusion", "diffusion", "--force", *options, *model)
        assert sonorant.run("decompress", "low.snr", "out.wav", *arguments) == 0
        return (sonorant.folder / "out.wav").read_bytes()

    usual = made("--calls", "2")
    assert info(sonorant.folder / "out.wav") == info(sonorant.folder / "original.wav")
    assert made("--calls", "2", "--seed", "0") == usual
    assert made("--calls", "2", "--seed", "1") != usual
    assert made("--calls", "3") != usual
    assert made() == made("--calls", "20")
    assert "41" in sonorant.fails(
        "decompress", "low.snr", "new.wav", "--diffusion", "diffusion", "--calls", "41", *model
    )


@pytest.mark.parametrize("option", ["--seed", "--calls"])
def test_options_of_diffusion_ask_for_its_model(sonorant: CommandLine, option: str) -> None:
    assert "--diffusion" in sonorant.fails("decompress", "in.snr", option, "3", *MODEL)


def test_a_diffusion_model_of_another_codec_is_refused(sonorant: CommandLine) -> None:
    diffusion().save_pretrained(sonorant.folder / "diffusion")
    line = sonorant.fails("decompress", "in.snr", "--diffusion", "diffusion", *MODEL)
    assert "goes with tiny" in line
