"""Songs as separate stems, and manifests of them: JSON Lines, one `Song` a line.

A stem is a sound file of its own, or one stream of a `.stem.mp4` (Native Instruments' STEMS format,
in which MUSDB18 comes): mixture, drums, bass, other, vocals.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import soundfile  # type: ignore[import-untyped]

from sonorant.audio.sound import check_finite
from sonorant.audio.streams import MISSING_SECONDS, pyav
from sonorant.data.manifest import SPLITS, Split
from sonorant.errors import AudioError, ConfigError, SonorantError

Samples = npt.NDArray[np.float32]
LeaveOut = Callable[[SonorantError], object]
"""Hears why a song is left out."""

MIXTURE = "mixture"
STEM_SUFFIX = ".stem.mp4"
STREAMS = (MIXTURE, "drums", "bass", "other", "vocals")
_BLOCK_SECONDS = 30
_PREROLL_SECONDS = 0.2  # an AAC decoder needs the packet before the first sample that is wanted


class Song(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One song in stems of equal length.

    files: where each source is, `mixture` too where it is recorded; in a manifest they may be
        relative to its folder.
    samples: per channel, at `sample_rate` Hz.
    mean, std: of the mixture's mean over channels, by which training and separation normalise.
    """

    name: str
    split: Split
    files: dict[str, str]
    sample_rate: int
    samples: int
    mean: float
    std: float
    licence: str = ""
    attribution: str = ""

    @property
    def duration_seconds(self) -> float:
        return self.samples / self.sample_rate


def read_songs(
    path: str | Path,
    split: Split | None = None,
    leave_out: LeaveOut | None = None,
) -> list[Song]:
    """Songs of a manifest, with absolute paths; only those of `split` when it is given.

    leave_out: hears of songs of which a file is missing; they are left out.
    Raises: ConfigError if the manifest is missing, a line is no song, a song is in two splits, or
    none remains; AudioError, without `leave_out`, if a file is missing.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the manifest {path}: {error.strerror}") from error
    songs = []
    for number, line in enumerate(lines, start=1):
        try:
            song = msgspec.json.decode(line, type=Song)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}, line {number} is not a song: {error}") from error
        songs.append(_moved(song, path.absolute().parent))
    _check_names(songs)
    songs = [song for song in songs if split in (None, song.split)]
    if not songs:
        raise ConfigError(f"{path} has no songs" + (f" of the split {split!r}" if split else ""))
    whole = []
    for song in songs:
        missing = [file for file in song.files.values() if not os.path.isfile(file)]
        if not missing:
            whole.append(song)
            continue
        reason = AudioError(f"{missing[0]} is named in {path} but does not exist")
        if leave_out is None:
            raise reason
        leave_out(reason)
    return whole


def write_songs(path: str | Path, songs: Iterable[Song]) -> None:
    """Write a manifest, whole or not at all; paths become relative to it.

    Raises: ConfigError if a song is in two splits.
    """
    path, songs = Path(path), list(songs)
    _check_names(songs)
    folder = path.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        for song in songs:
            relative = {
                source: os.path.relpath(folder / each, folder)
                for source, each in song.files.items()
            }
            moved = msgspec.structs.replace(song, files=relative)
            file.write(msgspec.json.encode(moved) + b"\n")
    unfinished.replace(path)


def song_of(
    name: str,
    split: Split,
    files: Mapping[str, str | Path],
    licence: str = "",
    attribution: str = "",
    *,
    measure_level: bool = True,
) -> Song:
    """A song by its files, whose length, rate and level are measured.

    The mixture is read where `files` has it, else it is the sum of the others.
    measure_level: False leaves mean 0 and deviation 1, and reads no sound.
    Raises: AudioError if a file cannot be read, stems differ in rate or length, or a name is not
    UTF-8, as manifests are.
    """
    paths = {source: str(Path(file).absolute()) for source, file in files.items()}
    for text in (name, *paths.values()):
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # how Python reads such names
            raise AudioError(f"{text!r} is no name in UTF-8; rename it")
    rate, samples = _common_length(name, paths)
    song = Song(
        name=name,
        split=split,
        files=paths,
        sample_rate=rate,
        samples=samples,
        mean=0.0,
        std=1.0,
        licence=licence,
        attribution=attribution,
    )
    if not measure_level:
        return song
    mean, std = _level(song)
    return msgspec.structs.replace(song, mean=mean, std=std)


def read_stem(song: Song, source: str, start: int = 0, samples: int | None = None) -> Samples:
    """`samples` (all, where None) of a stem from sample `start` on, `[channels, time]`.

    Fewer come back where the song ends earlier.
    Raises: ConfigError if the song has no such source; AudioError if it cannot be read.
    """
    if source not in song.files:
        raise ConfigError(f"{song.name} has no {source}: it has {', '.join(song.files)}")
    path = song.files[source]
    samples = song.samples - start if samples is None else min(samples, song.samples - start)
    if path.endswith(STEM_SUFFIX):
        return _read_stream(path, STREAMS.index(source), start, samples)
    try:
        with soundfile.SoundFile(path) as file:
            file.seek(start)
            read: Samples = file.read(samples, dtype="float32", always_2d=True).T
            return read
    except (OSError, soundfile.LibsndfileError) as error:
        raise AudioError(f"cannot read {path}: {error}") from error


def read_mixture(song: Song, start: int = 0, samples: int | None = None) -> Samples:
    """As `read_stem`, of the mixture: as recorded, else the sum of the sources."""
    if MIXTURE in song.files:
        return read_stem(song, MIXTURE, start, samples)
    stems = [read_stem(song, source, start, samples) for source in song.files]
    return np.sum(stems, axis=0, dtype=np.float32)


def _checked_mixture(song: Song, start: int, samples: int) -> Samples:
    """As `read_mixture`. Raises: AudioError with the file's name if it is not finite."""
    parts = []
    for source in [MIXTURE] if MIXTURE in song.files else song.files:
        parts.append(read_stem(song, source, start, samples))
        check_finite(parts[-1], song.files[source], start)
    return np.sum(parts, axis=0, dtype=np.float32)


def _level(song: Song) -> tuple[float, float]:
    """Mean and standard deviation (unbiased) of the mixture's mean over channels."""
    total = squares = 0.0
    step = _BLOCK_SECONDS * song.sample_rate
    for start in range(0, song.samples, step):
        mono = _checked_mixture(song, start, step).mean(axis=0, dtype=np.float64)
        total += float(mono.sum())
        squares += float(np.square(mono).sum())
    mean = total / song.samples
    return mean, math.sqrt(max(0.0, squares - song.samples * mean**2) / max(1, song.samples - 1))


def _common_length(name: str, paths: Mapping[str, str]) -> tuple[int, int]:
    """Rate in Hz and samples, which all stems share."""
    found = {source: _length(path) for source, path in paths.items()}
    if len(set(found.values())) != 1:
        told = ", ".join(f"{source} {n} at {rate} Hz" for source, (rate, n) in found.items())
        raise AudioError(f"the stems of {name} differ in length or rate: {told}")
    rate, samples = next(iter(found.values()))
    if not samples:
        raise AudioError(f"the stems of {name} hold no sound")
    return rate, samples


def _length(path: str) -> tuple[int, int]:
    if path.endswith(STEM_SUFFIX):
        with closing(_open(path)) as container:
            stream = container.streams.audio[0]
            return stream.rate, round(stream.duration * stream.time_base * stream.rate)
    try:
        info = soundfile.info(path)
    except (OSError, soundfile.LibsndfileError) as error:
        raise AudioError(f"cannot read {path}: {error}") from error
    return info.samplerate, info.frames


def _open(path: str) -> Any:
    av = pyav(f"reading {path}")
    try:
        container = av.open(path)
    except (OSError, av.FFmpegError) as error:
        raise AudioError(f"cannot read {path}: {error}") from error
    if len(container.streams.audio) != len(STREAMS):
        container.close()
        raise AudioError(
            f"{path} has {len(container.streams.audio)} audio streams where STEMS have "
            f"{len(STREAMS)}: {', '.join(STREAMS)}"
        )
    return container


def _read_stream(path: str, number: int, start: int, samples: int) -> Samples:
    """Decode one stream from a little before `start`, and place its frames by their time stamps.

    Raises: AudioError if it is damaged or ends too early.
    """
    av = pyav(f"reading {path}")
    with closing(_open(path)) as container:
        stream = container.streams.audio[number]
        rate, base = stream.rate, stream.time_base
        before = max(0.0, start / rate - _PREROLL_SECONDS)
        container.seek(int(before / base), stream=stream)
        channels = stream.codec_context.channels
        wanted, high = np.zeros((channels, samples), np.float32), 0
        try:
            for frame in container.decode(stream):
                first = round(frame.pts * base * rate) - start
                block = frame.to_ndarray().reshape(channels, -1)
                if first >= samples:
                    break
                low, high = max(0, first), min(samples, first + block.shape[1])
                if low < high:
                    wanted[:, low:high] = block[:, low - first : high - first]
        except (OSError, av.FFmpegError) as error:
            raise AudioError(f"{path} is damaged or cut short: {error}") from error
        missing = (samples - high) / rate
        if missing > MISSING_SECONDS:
            raise AudioError(f"{path} is cut short: {missing:.1f} s of it are missing")
        return wanted


def _moved(song: Song, folder: Path) -> Song:
    files = {source: str(folder / each) for source, each in song.files.items()}
    return msgspec.structs.replace(song, files=files)


def _check_names(songs: Iterable[Song]) -> None:
    """Refuse a song that is in two splits, or a split that is none."""
    split_of: dict[str, Split] = {}
    for song in songs:
        if song.split not in SPLITS:
            raise ConfigError(f"{song.name}: unknown split {song.split!r}")
        if split_of.setdefault(song.name, song.split) != song.split:
            raise ConfigError(
                f"{song.name} is in the splits {split_of[song.name]} and {song.split}"
            )
