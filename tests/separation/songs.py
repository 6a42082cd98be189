"""Small songs in stems on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from sonorant.data.manifest import Split
from sonorant.data.songs import Song, song_of, write_songs

RATE = 2000
SOURCES = ("drums", "bass")


def write_song(
    folder: Path,
    split: Split = "train",
    seconds: float = 2.0,
    seed: int = 0,
    sources: tuple[str, ...] = SOURCES,
) -> Song:
    """A song of which every source is noise of its own loudness, in files of floats."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for loudness, source in enumerate(sources, start=1):
        noise = random.standard_normal((int(seconds * RATE), 2)).astype(np.float32)
        files[source] = folder / f"{source}.wav"
        soundfile.write(files[source], 0.05 * loudness * noise + 0.01, RATE, "FLOAT")
    return song_of(folder.name, split, files, licence="CC0")


def write_manifest(folder: Path, songs: int = 3) -> Path:
    """A manifest of songs to train on, and one to validate with."""
    found = [write_song(folder / f"song{number}", seed=number) for number in range(songs)]
    found.append(write_song(folder / "kept", "valid", seed=99))
    write_songs(folder / "songs.jsonl", found)
    return folder / "songs.jsonl"
