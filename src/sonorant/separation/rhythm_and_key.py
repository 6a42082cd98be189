"""How fast a song is, when its drums strike, and which notes its bass plays; and how two songs fit.

Source: the mixes by which Hybrid Demucs was refined for the challenge (arXiv 2111.03600): a tempo
ratio up to powers of two, a shift of pitch by the chroma of the bass, an alignment by grids of
onsets of 5 ms with Gaussian bumps over 4 s to either side. The width of a bump, that it is as high
as the onset is strong, and the sizes of the analysis are our own.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from sonorant.audio.sound import Converter
from sonorant.data.songs import Samples, Song
from sonorant.errors import AudioError, DependencyError
from sonorant.separation.catalogue import read_blocks

SOURCES = ("drums", "bass", "other", "vocals")
GRID_SECONDS = 0.005
MOST_OFFSET_SECONDS = 4.0
BUMP_SECONDS = 0.01
"""Standard deviation of a bump: how exactly onsets are found in the first place."""
MOST_LAG_SECONDS = 0.06
OCTAVES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Tempos that count as one, since a beat can be taken for two or a half."""
LEAST_BEATS = 8
SILENT_PEAK = 1e-3
"""A stem that never rises above -60 dB full scale has nothing to mix."""

_DRUM_RATE, _HOP = 16_000, 80  # Hz, samples: steps of GRID_SECONDS
_WINDOW, _BANDS = 512, 40  # samples; windows of 32 ms keep onsets apart
_LAG_STEP_SECONDS = 0.001
_TEMPO_SECONDS, _TEMPO_STEPS = 240, 4  # of a song, of GRID_SECONDS: bounds time and memory
_NEAR = 0.04  # how far off, of the tempo, the beats that were followed may be
_BEAT_PARTS = (1, 2, 3, 4)  # of a beat, on which drums strike
_LEAST_AGREEMENT = 0.7  # 1 for a machine, 0.88 for strokes 10 ms off on quarters at 120 a minute
_CHANCE = 8.0  # onsets of chance agree as well in a song of 3000: exp(-8)
_STROKE_SECONDS = 0.05  # after an onset, in which its stroke is loudest
_BASS_RATE = 4000  # Hz; a bass' notes and their overtones lie below 2 kHz
_BASS_WINDOW, _BASS_HOP = 2048, 512  # samples; half a second tells the lowest semitones apart
_BASS_OCTAVE = 2.0  # above A0: around A2 pitch classes count most, an octave away less


class Features(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What decides which songs go together.

    key: of the song's files. sounding: sources that are not silent. onsets_seconds: when the drums
        are struck; strengths: how loud each stroke gets, the loudest 1.
    chroma: share of each pitch class, from C to B, in the bass.
    """

    key: str
    name: str
    sounding: tuple[str, ...]
    tempo_bpm: float
    onsets_seconds: list[float]
    strengths: list[float]
    chroma: list[float]


def analyse(song: Song, key: str = "") -> Features:
    """Features of a song in drums, bass, other and vocals.

    Raises: AudioError if a stem is damaged or has more than two channels, the drums have no steady
    beat, or the bass is silent; ConfigError if the song lacks a source; DependencyError without
    librosa.
    """
    librosa = require_librosa()
    peaks = {source: _peak(song, source) for source in SOURCES}
    sounding = tuple(source for source, peak in peaks.items() if peak > SILENT_PEAK)
    for source, found in (("drums", "tempo"), ("bass", "key")):
        if source not in sounding:
            raise AudioError(f"the {source} of {song.name} are silent: it has no {found}")
    tempo, onsets, strengths = _rhythm(librosa, song)
    return Features(
        key=key,
        name=song.name,
        sounding=sounding,
        tempo_bpm=tempo,
        onsets_seconds=onsets,
        strengths=strengths,
        chroma=_chroma(librosa, song),
    )


def tempo_change(base: Features, other: Features) -> float:
    """How many times as fast the other song must play to go with the base: nearest to 1."""
    ratios = [octave * base.tempo_bpm / other.tempo_bpm for octave in OCTAVES]
    return min(ratios, key=lambda ratio: abs(ratio - 1))


def pitch_change(base: Features, other: Features) -> int:
    """Semitones, -6 to 5, that the other song must go up to play the notes of the base."""
    semitones = range(-6, 6)
    return max(
        semitones, key=lambda shift: float(np.dot(base.chroma, np.roll(other.chroma, shift)))
    )


def offset_seconds(base: Features, other: Features, tempo: float) -> float:
    """How much later the other song, `tempo` times as fast, must begin for its onsets to fall on
    those of the base; within `MOST_OFFSET_SECONDS`, negative for earlier."""
    grids = [
        _grid(np.asarray(base.onsets_seconds), np.asarray(base.strengths)),
        _grid(np.asarray(other.onsets_seconds) / tempo, np.asarray(other.strengths)),
    ]
    most = round(MOST_OFFSET_SECONDS / GRID_SECONDS)
    size = 1 << (max(map(len, grids)) + most).bit_length()  # room, so that nothing wraps around
    first, second = (np.fft.rfft(grid, size) for grid in grids)
    agreement = np.fft.irfft(first * second.conj(), size)
    offsets = np.arange(-most, most + 1)
    return float(offsets[agreement[offsets].argmax()] * GRID_SECONDS)


def lag_seconds(original: Samples, changed: Samples, sample_rate: int, tempo: float) -> float:
    """How much later a sound `[channels, time]` comes that was made `tempo` times as fast than it
    should; within `MOST_LAG_SECONDS`.

    Stretching by overlap-add puts together pieces that fit, not those that are due: FFmpeg's comes
    some 15 ms early where it slows down, and 10 ms late where it speeds up. Found where the sound
    gets louder; 0 where it never does.
    """
    hop = max(1, round(_LAG_STEP_SECONDS * sample_rate))
    before, after = _envelope(original, hop), _envelope(changed, hop)
    due = np.interp(np.arange(len(after)) * tempo, np.arange(len(before)), before)
    rises = [np.maximum(np.diff(each), 0) for each in (due, after)]
    most = round(MOST_LAG_SECONDS * sample_rate / hop)
    padded = np.pad(rises[1], most)
    agreement = [np.dot(rises[0], padded[lag : lag + len(rises[0])]) for lag in range(2 * most + 1)]
    best = int(np.argmax(agreement))
    return (best - most) * hop / sample_rate if agreement[best] > 0 else 0.0


def require_librosa() -> Any:
    """The package librosa. Raises: DependencyError that names the extra."""
    try:
        import librosa
    except ImportError as error:
        raise DependencyError(
            "tempo and key are found with librosa: pip install 'sonorant[automix]'"
        ) from error
    return librosa


def _grid(onsets: npt.NDArray[np.float64], strengths: npt.NDArray[np.float64]) -> Any:
    """A bump at every onset, in steps of `GRID_SECONDS` from the start of the song on."""
    reach = round(4 * BUMP_SECONDS / GRID_SECONDS)
    grid = np.zeros(int(onsets.max() / GRID_SECONDS) + reach + 2)
    for step in range(-reach, reach + 1):
        places = np.round(onsets / GRID_SECONDS).astype(int) + step
        heights = np.exp(-0.5 * ((places * GRID_SECONDS - onsets) / BUMP_SECONDS) ** 2)
        inside = places >= 0
        np.add.at(grid, places[inside], (heights * strengths)[inside])
    return grid


def _envelope(samples: Samples, hop: int) -> Any:
    """The level over the last 20 steps of `hop` samples, `[steps]`."""
    steps = samples.shape[1] // hop
    powers = (
        np.square(samples[:, : steps * hop]).reshape(len(samples), steps, hop).mean(axis=(0, 2))
    )
    return np.sqrt(np.convolve(powers, np.full(20, 1 / 20))[:steps])


def _rhythm(librosa: Any, song: Song) -> tuple[float, list[float], list[float]]:
    """Beats per minute, and times in seconds and strengths of the onsets, of the drums."""
    drums = _mono(song, "drums", _DRUM_RATE)
    shared = {"sr": _DRUM_RATE, "hop_length": _HOP}
    envelope = librosa.onset.onset_strength(y=drums, n_fft=_WINDOW, n_mels=_BANDS, **shared)
    usual = _usual_tempo(librosa, envelope)
    _, beats = librosa.beat.beat_track(
        onset_envelope=envelope, bpm=usual, units="time", trim=True, **shared
    )
    onsets = librosa.onset.onset_detect(onset_envelope=envelope, units="frames", **shared)
    if len(beats) < LEAST_BEATS or not len(onsets):
        raise AudioError(f"the drums of {song.name} have no beat that can be followed")
    loudness = librosa.feature.rms(y=drums, frame_length=_WINDOW, hop_length=_HOP)[0]
    reach = np.arange(round(_STROKE_SECONDS / GRID_SECONDS))
    within = np.minimum(onsets[:, None] + reach, len(loudness) - 1)
    strengths = loudness[within].max(axis=1)
    strengths = strengths / strengths.max()
    times = onsets * GRID_SECONDS
    tempo = _tempo_of(60 / float(np.median(np.diff(beats))), times, strengths)
    if not math.isfinite(tempo):
        raise AudioError(f"the drums of {song.name} keep no tempo")
    return tempo, times.tolist(), strengths.tolist()


def _usual_tempo(librosa: Any, envelope: Samples) -> float:
    """Beats per minute, roughly, for the beats to be followed by.

    Of the middle of long songs, in coarse steps: librosa compares each with all of the next 8 s.
    """
    most = round(_TEMPO_SECONDS / GRID_SECONDS)
    first = max(0, len(envelope) - most) // 2
    middle = envelope[first : first + most]
    steps = len(middle) // _TEMPO_STEPS
    coarse = middle[: steps * _TEMPO_STEPS].reshape(steps, _TEMPO_STEPS).max(axis=1)
    found = librosa.feature.tempo(
        onset_envelope=coarse, sr=_DRUM_RATE, hop_length=_HOP * _TEMPO_STEPS
    )
    return float(found[0])


def _tempo_of(usual_bpm: float, onsets: Samples, strengths: Samples) -> float:
    """Beats per minute near the usual ones, exact enough for songs of minutes to stay together.

    Of all even grids of beats, halves, thirds or quarters of beats, that on which the onsets lie
    best: at whose frequency they turn alike. NaN where they lie on none, or no better than onsets
    of chance would.
    """
    seconds, total = float(np.ptp(onsets)), float(strengths.sum())
    tried, best, tempo = 0.0, 0.0, math.nan
    for parts in _BEAT_PARTS:
        middle = usual_bpm / 60 * parts
        tried += 2 * _NEAR * middle * seconds  # so many can be told apart
        around = np.arange(-_NEAR * middle, _NEAR * middle, 1 / (4 * max(seconds, 1.0)))
        for reach in (around, np.linspace(-1, 1, 65) / (4 * max(seconds, 1.0))):
            hertz = middle + reach
            agreement = _alike(hertz, onsets, strengths) / total
            middle = float(hertz[agreement.argmax()])
        if agreement.max() > best:
            best, tempo = float(agreement.max()), middle * 60 / parts
    count = total**2 / float(np.square(strengths).sum())  # of onsets, if all were equally strong
    by_chance = math.sqrt((math.log(max(tried, 1.0)) + _CHANCE) / count)
    return tempo if best > max(_LEAST_AGREEMENT, by_chance) else math.nan


def _alike(hertz: npt.NDArray[np.float64], onsets: Samples, strengths: Samples) -> Any:
    """How far the onsets turn alike at each frequency: from 0 to the sum of the strengths."""
    parts = np.array_split(hertz, 1 + len(hertz) // 256)  # all at once would take much memory
    turned = [np.exp(2j * np.pi * np.outer(part, onsets)) @ strengths for part in parts]
    return np.abs(np.concatenate(turned))


def _chroma(librosa: Any, song: Song) -> list[float]:
    found = librosa.feature.chroma_stft(
        y=_mono(song, "bass", _BASS_RATE),
        sr=_BASS_RATE,
        n_fft=_BASS_WINDOW,
        hop_length=_BASS_HOP,
        norm=None,  # loud notes count more
        tuning=0.0,
        ctroct=_BASS_OCTAVE,
        octwidth=1.0,
    )
    total = found.sum(axis=1, dtype=np.float64)
    if not total.sum() > 0:
        raise AudioError(f"the bass of {song.name}, mixed down, is silent: it has no key")
    shares: list[float] = (total / total.sum()).tolist()
    return shares


def _peak(song: Song, source: str) -> float:
    """The highest absolute sample of a stem."""
    peak = 0.0
    for block in read_blocks(song, source):
        if len(block) > 2:
            raise AudioError(f"{song.files[source]} has {len(block)} channels; stems have 1 or 2")
        peak = max(peak, float(np.abs(block).max()))
    return peak


def _mono(song: Song, source: str, rate: int) -> Samples:
    """A whole stem, `[time]`, mixed down."""
    blocks = (block.mean(axis=0, keepdims=True) for block in read_blocks(song, source))
    converter = Converter(song.sample_rate, rate, 1, 1)
    return np.concatenate([piece[0] for piece in converter.stream(blocks)])
