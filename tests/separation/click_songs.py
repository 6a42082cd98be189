"""Songs on disk whose tempo, first beat and key are known: struck drums, and a bass on a chord."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from sonorant.data.songs import Samples, Song, song_of

RATE = 8000
SECONDS = 12.0
TRIAD = (0, 4, 7, 0)
"""Semitones above its root that the bass plays, one a beat."""
C2_HZ = 65.406


def beat_times(tempo_bpm: float, first_seconds: float, seconds: float = SECONDS) -> np.ndarray:
    return np.arange(first_seconds, seconds - 0.2, 60 / tempo_bpm)


def drums(beats: np.ndarray, seconds: float = SECONDS) -> Samples:
    """A burst of noise at every beat, `[time]`; the first of four is twice as strong."""
    random = np.random.default_rng(0)
    samples = np.zeros(int(seconds * RATE), np.float32)
    length = int(0.05 * RATE)
    decay = np.exp(-np.arange(length) / (0.01 * RATE))
    for number, beat in enumerate(beats):
        start = round(beat * RATE)
        loudness = 0.2 if number % 4 else 0.4
        samples[start : start + length] += loudness * decay * random.standard_normal(length)
    return samples


def bass(beats: np.ndarray, root: int, seconds: float = SECONDS) -> Samples:
    """A note at every beat, `[time]`, of the major triad so many semitones above C."""
    time = np.arange(int(seconds * RATE)) / RATE
    which = np.searchsorted(beats, time, side="right") % len(TRIAD)
    hz = C2_HZ * 2 ** ((root + np.array(TRIAD)[which]) / 12)
    samples: Samples = (0.2 * np.sin(2 * np.pi * np.cumsum(hz) / RATE)).astype(np.float32)
    return samples


def write_click_song(
    folder: Path,
    tempo_bpm: float = 120.0,
    first_seconds: float = 0.5,
    root: int = 0,
    gain: float = 1.0,
    **replaced: Samples,
) -> Song:
    """A training song in four stems of floats.

    replaced: samples `[time]` of a source, or `[time, channels]`.
    """
    beats = beat_times(tempo_bpm, first_seconds)
    noise = np.random.default_rng(1).standard_normal((2, int(SECONDS * RATE)))
    other, vocals = (0.05 * noise).astype(np.float32)
    stems = {"drums": drums(beats), "bass": bass(beats, root), "other": other, "vocals": vocals}
    folder.mkdir(parents=True)
    for source, samples in (stems | replaced).items():
        stereo = samples if samples.ndim == 2 else np.stack([samples, samples], axis=1)
        soundfile.write(folder / f"{source}.wav", gain * stereo, RATE, "FLOAT")
    files = {source: folder / f"{source}.wav" for source in stems}
    return song_of(folder.name, "train", files, licence=f"licence of {folder.name}")
