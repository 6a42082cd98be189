"""Folders of songs in stems, and of estimates, small enough to measure in a moment."""

from pathlib import Path

import torch
from torch import Tensor

from sonorant.audio import Audio, write

RATE = 4000
SOURCES = ("bass", "drums", "other", "vocals")
SONGS = ("First", "Second")
SAMPLES = 3 * RATE


def stems_of(song: str) -> dict[str, Tensor]:
    """By source, mono: `[1, samples]`."""
    generator = torch.Generator().manual_seed(len(song))
    noise = 0.1 * torch.randn(len(SOURCES), 1, SAMPLES, generator=generator)
    return {source: (each + each.roll(1, -1)) for source, each in zip(SOURCES, noise, strict=True)}


def write_songs(folder: Path) -> Path:
    """SONG/mixture.wav and SONG/SOURCE.wav."""
    for song in SONGS:
        stems = stems_of(song)
        write_stems(folder / song, {**stems, "mixture": torch.stack(list(stems.values())).sum(0)})
    return folder


def write_estimates(folder: Path, leakage: float) -> Path:
    """The true sources with that much of all of them: SONG/SOURCE.wav."""
    for song in SONGS:
        stems = stems_of(song)
        mixture = torch.stack(list(stems.values())).sum(0)
        write_stems(folder / song, {name: each + leakage * mixture for name, each in stems.items()})
    return folder


def write_stems(folder: Path, stems: dict[str, Tensor]) -> None:
    folder.mkdir(parents=True)
    for name, samples in stems.items():
        write(folder / f"{name}.wav", Audio(samples, RATE), float_samples=True)
