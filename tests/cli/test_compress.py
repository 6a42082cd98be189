"""`sonorant compress`: default names, figures, and care for what exists."""

import re

import pytest
import torch

from sonorant.codec.container import ContainerReader
from tests.cli.running import CommandLine, sonorant
from tests.codec.test_encodec import RATE, tiny
from tests.codec.test_files import sound_file

__all__ = ["sonorant"]  # the fixture

MODEL = ("--model", "model", "--bandwidth", "0.8")


@pytest.fixture(autouse=True)
def sound(sonorant: CommandLine) -> None:
    sound_file(sonorant.folder / "in.wav", 2000, 2 * RATE, channels=2)


def test_output_lies_beside_the_sound_by_default(sonorant: CommandLine) -> None:
    assert sonorant.run("compress", "in.wav", *MODEL) == 0
    container = ContainerReader(sonorant.folder / "in.snr")
    assert container.header.codebooks == 2
    assert container.totals.source_samples == 2000


def test_figures_are_printed_in_one_line(sonorant: CommandLine) -> None:
    sonorant.run("compress", "in.wav", "out.snr", *MODEL)
    before = (sonorant.folder / "in.wav").stat().st_size
    after = (sonorant.folder / "out.snr").stat().st_size
    assert re.fullmatch(
        rf"in\.wav \(8\.0 kB, {before * 8 / 1250:.2f} kb/s\) -> "
        rf"out\.snr \({after} B, {after * 8 / 1250:.2f} kb/s\): "
        rf"{before / after:.1f} times smaller; \d+\.\d s, \d+\.\d times real time\n",
        sonorant.out,
    )


def test_an_existing_output_stays_unless_forced(sonorant: CommandLine) -> None:
    (sonorant.folder / "in.snr").write_text("mine")
    assert "--force" in sonorant.fails("compress", "in.wav", *MODEL)
    assert sonorant.run("compress", "in.wav", "--force", *MODEL) == 0
    assert ContainerReader(sonorant.folder / "in.snr").totals.source_samples == 2000


def test_the_input_is_never_the_output(sonorant: CommandLine) -> None:
    assert "the input itself" in sonorant.fails("compress", "in.wav", "./in.wav", "--force", *MODEL)


def test_many_channels_are_mixed_down_on_demand(sonorant: CommandLine) -> None:
    sound_file(sonorant.folder / "eight.wav", 2000, RATE, channels=8)
    assert sonorant.run("compress", "eight.wav", "--mix-down", *MODEL) == 0
    header = ContainerReader(sonorant.folder / "eight.snr").header
    assert header.source_channels == 1


def test_tokens_are_those_of_the_library(sonorant: CommandLine) -> None:
    from sonorant.audio import read

    sonorant.run("compress", "in.wav", *MODEL)
    blocks = ContainerReader(sonorant.folder / "in.snr").blocks()
    tokens = torch.cat([block.tokens for block in blocks], dim=-1)
    assert torch.equal(tokens, tiny().encode(read(sonorant.folder / "in.wav"), 0.8).tokens)
