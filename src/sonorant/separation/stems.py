"""Songs in stems to train on and to test with: the published layouts of folders, and datasets.

Sources: MUSDB18 (doi 10.5281/zenodo.1117372), MUSDB18-HQ (doi 10.5281/zenodo.3338373), and Demucs
(arXiv 1911.13254, section 5.1, and its package) for how extracts are taken and normalised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt
import soxr  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sonorant.data.manifest import SPLITS
from sonorant.data.prepare import AUDIO_SUFFIXES
from sonorant.data.songs import (
    MIXTURE,
    STEM_SUFFIX,
    STREAMS,
    LeaveOut,
    Samples,
    Song,
    read_mixture,
    read_stem,
    song_of,
)
from sonorant.errors import AudioError, ConfigError
from sonorant.separation.repitch import KEPT_SHARE, Repitch, repitch

MUSDB_VALIDATION = frozenset(
    {
        "Actions - One Minute Smile",
        "Clara Berry And Wooldog - Waltz For My Victims",
        "Johnny Lokke - Promises & Lies",
        "Patrick Talbot - A Reason To Leave",
        "Triviul - Angelsaint",
        "Alexander Ross - Goodbye Bolero",
        "Fergessen - Nos Palpitants",
        "Leaf - Summerghost",
        "Skelpolu - Human Mistakes",
        "Young Griffo - Pennies",
        "ANiMAL - Rockshow",
        "James May - On The Line",
        "Meaxic - Take A Step",
        "Traffic Experiment - Sirens",
    }
)
"""The training songs that the community sets apart (the package musdb)."""


def find_songs(root: Path, licence: str = "", leave_out: LeaveOut | None = None) -> Iterator[Song]:
    """The songs of a dataset, each measured when it is asked for.

    Takes MUSDB18 (`train` and `test` with `.stem.mp4` files) and folders of stems (`train`, `valid`
    and `test` with a folder for each song, in it `SOURCE.wav` and perhaps `mixture.wav`), as
    MUSDB18-HQ is. Where there is no `valid`, the songs of MUSDB's validation are it.
    leave_out: hears of songs whose stems cannot be read or do not fit together; they are left out.
    Raises: ConfigError if there are none; AudioError, without `leave_out`, for such a song.
    """
    found = False
    splits_itself = (root / "valid").is_dir()
    for split in SPLITS:
        for name, files in songs_in(root / split):
            found = True
            kept_aside = split == "train" and name in MUSDB_VALIDATION and not splits_itself
            try:
                yield song_of(name, "valid" if kept_aside else split, files, licence)
            except AudioError as error:
                if leave_out is None:
                    raise
                leave_out(error)
    if not found:
        raise ConfigError(
            f"{root} holds no songs: it needs train/SONG/SOURCE.wav, or train/SONG{STEM_SUFFIX}"
        )


def songs_in(folder: Path) -> Iterator[tuple[str, dict[str, Path]]]:
    """Names of songs, and where their sources are."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.endswith(STEM_SUFFIX):
            yield path.name.removesuffix(STEM_SUFFIX), dict.fromkeys(STREAMS, path)
        elif path.is_dir():
            files = {
                file.stem: file
                for file in sorted(path.iterdir())
                if file.suffix.lower() in AUDIO_SUFFIXES
            }
            if files.keys() - {MIXTURE}:
                yield path.name, files


class Extracts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which extracts of songs are trained on.

    samples: length of an extract. stride_samples: between the starts of a song's extracts; the
        last one may reach beyond the song's end, where zeros follow.
    normalize: by the mean and deviation of the whole song's mixture, as separation does.
    repitch: change of pitch and tempo; it takes some of the length.
    """

    sources: tuple[str, ...]
    sample_rate: int
    channels: int
    samples: Annotated[int, msgspec.Meta(ge=1)]
    stride_samples: Annotated[int, msgspec.Meta(ge=1)]
    normalize: bool = True
    repitch: Repitch | None = None

    @property
    def read_samples(self) -> int:
        """Length that is read for each extract."""
        return self.samples if self.repitch is None else math.ceil(self.samples / KEPT_SHARE)


class StemExtracts(Dataset[Tensor]):
    """Extracts `[sources, channels, time]` of songs, each a function of seed and index only.

    All extracts of all songs come once, in random order, before any comes again.
    Raises: ConfigError if there are no songs, or one lacks a source; AudioError, on access, if a
    file cannot be read.
    """

    def __init__(self, songs: Sequence[Song], extracts: Extracts, seed: int, size: int) -> None:
        check_sources(songs, extracts.sources)
        self.songs = songs
        self.extracts = extracts
        self.seed = seed
        self.size = size
        counts = [count_extracts(song, extracts) for song in songs]
        self._until = np.cumsum(counts)
        self._order = lru_cache(maxsize=2)(self._order_of)

    def __len__(self) -> int:
        return self.size

    @property
    def different(self) -> int:
        """Extracts in one pass over all songs."""
        return int(self._until[-1])

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.size:
            raise IndexError(f"extract {index} of {self.size}")
        turn, place = divmod(index, self.different)
        number = int(self._order(turn)[place])
        which = int(np.searchsorted(self._until, number, side="right"))
        first = number - (int(self._until[which - 1]) if which else 0)
        stems = read_extract(self.songs[which], first, self.extracts)
        if self.extracts.repitch is not None:
            random = self._random(index)
            stems = repitch(stems, self.extracts.sample_rate, self.extracts.repitch, random)
            stems = stems[..., : self.extracts.samples]
        return torch.from_numpy(np.ascontiguousarray(stems))

    def _order_of(self, turn: int) -> npt.NDArray[np.int64]:
        return self._random(2**63 + turn).permutation(self.different)

    def _random(self, draw: int) -> np.random.Generator:
        key = np.array([self.seed % 2**64, draw], np.uint64)
        return np.random.Generator(np.random.Philox(key=key))


class WholeSongs(Dataset[Tensor]):
    """Numbers of songs, one each: `whole_song` reads them. So songs may differ in length."""

    def __init__(self, songs: Sequence[Song]) -> None:
        self.songs = songs

    def __len__(self) -> int:
        return len(self.songs)

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self.songs):
            raise IndexError(f"song {index} of {len(self.songs)}")
        return torch.tensor(index)


def whole_song(song: Song, extracts: Extracts) -> tuple[Tensor, Tensor]:
    """Mixture `[channels, time]` and stems `[sources, channels, time]` at the extracts' rate."""
    stems = [_converted(read_stem(song, each), song, extracts) for each in extracts.sources]
    mixture = _converted(read_mixture(song), song, extracts)
    return torch.from_numpy(mixture), torch.from_numpy(np.stack(stems))


def check_sources(songs: Sequence[Song], sources: Sequence[str]) -> None:
    """Raises: ConfigError if there are no songs, or one has no stem for a source."""
    if not songs:
        raise ConfigError("there are no songs")
    for song in songs:
        missing = [source for source in sources if source not in song.files]
        if missing:
            raise ConfigError(
                f"{song.name} has no {', '.join(missing)}: it has {', '.join(song.files)}"
            )


def count_extracts(song: Song, extracts: Extracts) -> int:
    """How many extracts a song has: ceil((duration - length) / stride) + 1, at least one."""
    length = song.samples * extracts.sample_rate / song.sample_rate
    beyond = length - extracts.read_samples
    return max(0, math.ceil(beyond / extracts.stride_samples)) + 1


def read_extract(song: Song, number: int, extracts: Extracts) -> Samples:
    """Extract `number` of a song, `[sources, channels, read_samples]`, zeros after its end."""
    start_seconds = number * extracts.stride_samples / extracts.sample_rate
    return read_part(song, extracts.sources, start_seconds, extracts.read_samples, extracts)


def read_part(
    song: Song, sources: Sequence[str], start_seconds: float, wanted: int, extracts: Extracts
) -> Samples:
    """`wanted` samples of some sources, `[sources, channels, wanted]`, zeros after the end.

    At the rate, channels and level that `extracts` says.
    """
    ratio = song.sample_rate / extracts.sample_rate
    start, samples = round(start_seconds * song.sample_rate), math.ceil(wanted * ratio)
    parts = [_converted(read_stem(song, each, start, samples), song, extracts) for each in sources]
    return np.stack(
        [np.pad(part, ((0, 0), (0, max(0, wanted - part.shape[1]))))[:, :wanted] for part in parts]
    )


def _converted(samples: Samples, song: Song, extracts: Extracts) -> Samples:
    """At the wanted rate, channels and level."""
    if samples.shape[0] == 1:
        samples = samples.repeat(extracts.channels, axis=0)
    elif extracts.channels == 1:
        samples = samples.mean(axis=0, keepdims=True)
    samples = samples[: extracts.channels]
    if song.sample_rate != extracts.sample_rate and samples.shape[1]:
        samples = soxr.resample(samples.T, song.sample_rate, extracts.sample_rate).T
    if extracts.normalize and song.std > 0:
        samples = (samples - np.float32(song.mean)) / np.float32(song.std)
    return samples
