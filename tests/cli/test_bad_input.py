"""Bad input through the real command line: one clear line, exit status 2, nothing written."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sonorant.audio import info
from tests.cli.running import CommandLine, sonorant
from tests.codec.test_encodec import RATE, tiny
from tests.codec.test_files import sound_file

__all__ = ["sonorant"]  # the fixture

COMPRESS = ("compress", "in.wav", "out.snr", "--model", "model", "--bandwidth", "0.8")
DECOMPRESS = ("decompress", "in.snr", "out.wav", "--model", "model")


def no_file(path: Path) -> None:
    """Nothing there."""


def empty(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.mkdir()


def text(path: Path) -> None:
    path.write_text("Dear sir or madam,\n" * 100)


def wav_of(value: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        samples = np.zeros(1000, np.float32)
        samples[500] = value
        soundfile.write(path, samples, RATE, "FLOAT")

    return write


def cut_short(path: Path) -> None:
    sound_file(path, 1000)
    path.write_bytes(path.read_bytes()[:-500])


def header_only(path: Path) -> None:
    sound_file(path, 1000)
    path.write_bytes(path.read_bytes()[:30])


def no_samples(path: Path) -> None:
    soundfile.write(path, np.zeros(0, np.float32), RATE)


def no_channels(path: Path) -> None:
    layout = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 0, RATE, 0, 0, 16)
    data = struct.pack("<4sI", b"data", 8) + bytes(8)
    path.write_bytes(
        struct.pack("<4sI4s", b"RIFF", 4 + len(layout + data), b"WAVE") + layout + data
    )


def eight_channels(path: Path) -> None:
    sound_file(path, 1000, RATE, channels=8)


SOUNDS = {
    "missing": (no_file, "does not exist"),
    "empty": (empty, "is empty"),
    "folder": (folder, "not a file"),
    "text": (text, "not a sound file"),
    "cut_short": (cut_short, "is cut short"),
    "header_only": (header_only, "not a sound file"),
    "no_samples": (no_samples, "no sound"),
    "nan": (wav_of(float("nan")), "nan at sample 500"),
    "infinite": (wav_of(float("inf")), "inf at sample 500"),
    "no_channels": (no_channels, "not a sound file"),
    "eight_channels": (eight_channels, "--mix-down"),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_sounds_that_cannot_be_used(sonorant: CommandLine, name: str) -> None:
    make, reason = SOUNDS[name]
    make(sonorant.folder / "in.wav")
    assert reason in sonorant.fails(*COMPRESS)


@pytest.mark.parametrize(("samples", "rate"), [(1, RATE), (1, 384_000), (3000, 384_000)])
def test_odd_but_good_sounds_come_back(sonorant: CommandLine, samples: int, rate: int) -> None:
    sound_file(sonorant.folder / "in.wav", samples, rate)
    assert sonorant.run(*COMPRESS) == 0
    assert sonorant.run("decompress", "out.snr", "out.wav", "--model", "model") == 0
    assert info(sonorant.folder / "out.wav") == info(sonorant.folder / "in.wav")


def damage(sonorant: CommandLine, change: Callable[[bytearray], bytes | bytearray]) -> str:
    """The line that decompressing a changed container fails with."""
    sound_file(sonorant.folder / "in.wav", 1000)
    assert sonorant.run(*COMPRESS) == 0
    packed = (sonorant.folder / "out.snr").read_bytes()
    (sonorant.folder / "in.snr").write_bytes(change(bytearray(packed)))
    return sonorant.fails(*DECOMPRESS)


def flipped(packed: bytearray) -> bytearray:
    packed[len(packed) // 2] ^= 1
    return packed


def later_version(packed: bytearray) -> bytearray:
    packed[8] = 200
    return packed


CONTAINERS = {
    "empty": (lambda packed: b"", "is empty"),
    "cut_short": (lambda packed: packed[:-1], "is cut short"),
    "flipped_bit": (flipped, "is damaged"),
    "more_behind": (lambda packed: packed + b"\n", "after its end"),
    "later_version": (later_version, "of version 200"),
    "text": (lambda packed: b"Dear sir or madam,\n" * 100, "not a Sonorant container"),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_that_cannot_be_used(sonorant: CommandLine, name: str) -> None:
    change, reason = CONTAINERS[name]
    assert reason in damage(sonorant, change)


def test_a_missing_container(sonorant: CommandLine) -> None:
    assert "does not exist" in sonorant.fails(*DECOMPRESS)


def test_a_container_of_another_model(sonorant: CommandLine) -> None:
    sound_file(sonorant.folder / "in.wav", 1000)
    sonorant.run("compress", "in.wav", "in.snr", "--model", "model", "--bandwidth", "0.8")
    tiny(pad_mode="zero").save_pretrained(sonorant.folder / "other")
    line = sonorant.fails("decompress", "in.snr", "out.wav", "--model", "other")
    assert "was made by the model" in line


def test_a_config_with_an_unknown_field(sonorant: CommandLine) -> None:
    sound_file(sonorant.folder / "in.wav", 1000)
    path = sonorant.folder / "model" / "config.json"
    saved = json.loads(path.read_text())
    saved["config"]["sparkle"] = True
    path.write_text(json.dumps(saved))
    assert "sparkle" in sonorant.fails(*COMPRESS)


class Intruder:
    """Pickled, it asks whoever opens the file to make another one."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("intruder-was-here", "w")


def test_a_pickle_that_tries_to_run_code(sonorant: CommandLine) -> None:
    sound_file(sonorant.folder / "in.wav", 1000)
    name = "encodec_24khz-d7cc33bc.th"
    torch.save({"weights": Intruder()}, sonorant.folder / name)
    line = sonorant.fails("compress", "in.wav", "out.snr", "--model", name)
    assert name in line
    assert not (sonorant.folder / "intruder-was-here").exists()


def test_a_model_that_nobody_knows(sonorant: CommandLine) -> None:
    sound_file(sonorant.folder / "in.wav", 1000)
    line = sonorant.fails("compress", "in.wav", "out.snr", "--model", "nonsense")
    assert "'nonsense' is neither a known model nor a file" in line


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("in.wav", "out.snr", "--model", "model", "--bandwidth", "7"), "no bandwidth of 7 kb/s"),
        (("in.wav", "nowhere/out.snr", "--model", "model", "--bandwidth", "0.8"), "cannot write"),
    ],
)
def test_wishes_that_cannot_be_met(
    sonorant: CommandLine, arguments: tuple[str, ...], reason: str
) -> None:
    sound_file(sonorant.folder / "in.wav", 1000)
    assert reason in sonorant.fails("compress", *arguments)


@pytest.mark.parametrize("target", ["out.txt", "nowhere/out.wav"])
def test_targets_that_cannot_be_written(sonorant: CommandLine, target: str) -> None:
    sound_file(sonorant.folder / "in.wav", 1000)
    sonorant.run("compress", "in.wav", "in.snr", "--model", "model", "--bandwidth", "0.8")
    line = sonorant.fails("decompress", "in.snr", target, "--model", "model")
    assert f"cannot write {target}" in line
