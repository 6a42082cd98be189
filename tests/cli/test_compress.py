"""`sonorant compress`: default names, figures, and care for what exists."""

import re

import pytest
import torch

from sonorant.audio import info
from sonorant.codec.container import ContainerReader
from sonorant.codec.ecdc import EcdcReader
from tests.cli.running import CommandLine, sonorant
from tests.codec.test_encodec import RATE, tiny
from tests.codec.test_files import entropy_model, sound_file

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


def test_entropy_coding_is_smaller_and_opens_by_itself(sonorant: CommandLine) -> None:
    entropy_model().save_pretrained(sonorant.folder / "model" / "entropy")
    assert sonorant.run("compress", "in.wav", "coded.snr", "--entropy", *MODEL) == 0
    assert ContainerReader(sonorant.folder / "coded.snr").coded
    assert sonorant.run("decompress", "coded.snr", "coded.wav", "--model", "model") == 0
    sonorant.run("compress", "in.wav", "packed.snr", *MODEL)
    sonorant.run("decompress", "packed.snr", "packed.wav", "--model", "model")
    files = sonorant.content()
    assert files[str(sonorant.folder / "coded.wav")] == files[str(sonorant.folder / "packed.wav")]


def test_a_codec_without_an_entropy_model_is_one_clear_error(sonorant: CommandLine) -> None:
    line = sonorant.fails("compress", "in.wav", "--entropy", *MODEL)
    assert "model has no entropy model; compress without entropy coding" in line


def test_an_unknown_ending_is_refused_before_any_work(sonorant: CommandLine) -> None:
    line = sonorant.fails("compress", "in.wav", "out.wav", "--model", "nowhere")
    assert "cannot write out.wav: its name must end in .snr or .ecdc" in line


def test_an_ecdc_file_is_chosen_by_its_ending(sonorant: CommandLine) -> None:
    codec = tiny()
    codec.name = "encodec_24khz"
    codec.save_pretrained(sonorant.folder / "published")
    published = ("--model", "published")
    assert sonorant.run("compress", "in.wav", "a.ECDC", "--bandwidth", "0.8", *published) == 0
    header = EcdcReader(sonorant.folder / "a.ECDC").header
    assert (header.model, header.samples, header.codebooks) == ("encodec_24khz", 1000, 2)
    assert sonorant.run("decompress", "a.ECDC", *published) == 0
    assert info(sonorant.folder / "a.wav").sample_rate == RATE
    line = sonorant.fails("compress", "in.wav", "b.ecdc", *MODEL)
    assert "an .ecdc file is made by encodec_24khz or encodec_48khz" in line


def test_an_ecdc_file_of_the_small_codec_is_refused_before_anything_is_written(
    sonorant: CommandLine,
) -> None:
    line = sonorant.fails("compress", "in.wav", "a.ecdc", "--model", "sonorant/codec-24khz-small")
    assert "not by sonorant/codec-24khz-small" in line
