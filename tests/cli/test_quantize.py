"""`sonorant quantize`: what it writes works wherever a model's name does."""

import re

import pytest

from sonorant.audio import info
from sonorant.codec.encodec import EncodecConfig
from sonorant.nn.quantizer import QuantizerConfig
from sonorant.nn.seanet import SEANetConfig
from tests.cli.running import CommandLine, sonorant
from tests.codec.test_encodec import RATE, random_model
from tests.codec.test_files import sound_file

__all__ = ["sonorant"]  # the fixture


@pytest.fixture(autouse=True)
def files(sonorant: CommandLine) -> None:
    """A sound, and a codec whose codebooks are large enough to quantise."""
    codebooks = QuantizerConfig(dimension=8, codebooks=2, codebook_size=512)
    seanet = SEANetConfig(dimension=8, base_filters=2, ratios=(4, 2))
    # 9 bits at 100 frames a second
    random_model(EncodecConfig(RATE, (0.9, 1.8), seanet, codebooks)).save_pretrained("large")
    sound_file(sonorant.folder / "in.wav", 2000, RATE)


@pytest.mark.parametrize("target", ["small.safetensors", "small"])
def test_what_it_writes_works_as_a_model(sonorant: CommandLine, target: str) -> None:
    assert sonorant.run("quantize", "large", "-o", target) == 0
    assert re.fullmatch(
        rf"large -> {re.escape(target)} \([\d.]+ kB, 8 bits in 2 tensors\): "
        r"[\d.]+ times smaller than in fp32\n",
        sonorant.out,
    )
    model = ("--model", target)
    assert sonorant.run("compress", "in.wav", "a.snr", "--bandwidth", "1.8", *model) == 0
    assert sonorant.run("decompress", "a.snr", "b.wav", *model) == 0
    assert info(sonorant.folder / "b.wav").frames == 2000
    assert sonorant.run("models", "info", target) == 0
    assert "encodec" in sonorant.out


def test_a_sound_is_not_decompressed_with_another_model(sonorant: CommandLine) -> None:
    sonorant.run("quantize", "large", "-o", "small.safetensors", "--bits", "4")
    sonorant.run("compress", "in.wav", "a.snr", "--bandwidth", "1.8", "--model", "large")
    sonorant.fails("decompress", "a.snr", "b.wav", "--model", "small.safetensors")


def test_a_size_is_kept_to(sonorant: CommandLine) -> None:
    sonorant.run("quantize", "large", "-o", "few.safetensors", "--bits", "5")
    size = (sonorant.folder / "few.safetensors").stat().st_size
    assert sonorant.run("quantize", "large", "-o", "a", "--size-mb", str(size / 1e6)) == 0
    assert (sonorant.folder / "a" / "model.safetensors").stat().st_size <= size


def test_an_existing_output_stays_unless_forced(sonorant: CommandLine) -> None:
    (sonorant.folder / "small.safetensors").write_text("mine")
    command = ("quantize", "large", "-o", "small.safetensors")
    assert "--force" in sonorant.fails(*command)
    assert sonorant.run(*command, "--force") == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bits", "1"), "2 to 15 bits"),
        (("--bits", "8", "--size-mb", "1"), "not both"),
        (("--size-mb", "0.001"), "cannot hold this model"),
        (("--size-mb", "nan"), "more than 0"),
        (("--exclude", "*"), "nothing to quantise"),
    ],
)
def test_impossible_wishes_fail_in_one_line(
    sonorant: CommandLine, options: tuple[str, ...], message: str
) -> None:
    assert message in sonorant.fails("quantize", "large", "-o", "small.safetensors", *options)
