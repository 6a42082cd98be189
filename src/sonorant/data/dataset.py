"""Training segments drawn from a manifest: segment number n is the same whenever it is asked for.

Every random choice comes from a counter-based generator keyed by (seed, index). So a run that is
stopped and resumed sees the data that an uninterrupted one would have seen, whatever the number of
loader workers.

Source of the augmentation: EnCodec (arXiv 2210.13438, section 4.1): mixtures of one to three
sources, gain of -10 to +6 dB without clipping. Its reverberation is not done here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
import soundfile  # type: ignore[import-untyped]
import soxr  # type: ignore[import-untyped]
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sonorant.data.manifest import DOMAINS, Domain, Item, Split, read_manifest
from sonorant.errors import AudioError, ConfigError

Samples = npt.NDArray[np.float32]


class Mixing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often a segment is which mixture (arXiv 2210.13438, section 4.1); weights, not shares.

    single_music: one piece of music. single_other: one source that is not music.
    two_of_any: the sum of two sources. three_without_music: the sum of three that are not music.
    """

    single_music: float = 0.32
    single_other: float = 0.32
    two_of_any: float = 0.24
    three_without_music: float = 0.12


class SegmentConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a segment is.

    domain_weights: how often each domain is drawn; equal for all present when None. With `mixing`
        they weigh the domains among which a mixture may choose.
    gain_db: lowest and highest random gain in dB; the range is cut where a segment would clip.
        None leaves levels alone, except that a mixture that would clip is scaled to full scale.
    mixing: None draws single sources.
    """

    sample_rate: int = 24_000
    channels: int = 1
    segment_seconds: float = 1.0
    domain_weights: dict[Domain, float] | None = None
    gain_db: tuple[float, float] | None = (-10.0, 6.0)
    mixing: Mixing | None = None

    def __post_init__(self) -> None:
        if self.sample_rate <= 0 or self.segment_samples < 1:
            raise ConfigError(
                f"segments of {self.segment_seconds} s at {self.sample_rate} Hz hold no samples"
            )
        if self.channels not in (1, 2):
            raise ConfigError(f"segments have 1 or 2 channels, not {self.channels}")
        if self.gain_db is not None and not self.gain_db[0] <= self.gain_db[1]:
            raise ConfigError(f"gain_db goes from low to high, not {self.gain_db}")
        for name, weight in (self.domain_weights or {}).items():
            if name not in DOMAINS or not 0 <= weight < math.inf:
                raise ConfigError(f"domain_weights: {name!r} = {weight} is not a domain's weight")

    @property
    def segment_samples(self) -> int:
        """Length of a segment in samples."""
        return round(self.segment_seconds * self.sample_rate)


class SegmentDataset(Dataset[Tensor]):
    """`size` segments [channels, time], float32 in [-1, 1], each a pure function of its index.

    A domain is drawn by weight, then an item of it with a chance proportional to its duration, then
    an offset. Files shorter than a segment are padded with zeros at the end.
    Raises: ConfigError if the items lack a domain that the config asks for; AudioError, on access,
    if a file cannot be read.
    """

    def __init__(self, items: Sequence[Item], config: SegmentConfig, seed: int, size: int) -> None:
        if size < 1:
            raise ConfigError(f"a dataset of {size} segments is empty")
        if not items:
            raise ConfigError("there are no items to draw segments from")
        self.config = config
        self.seed = seed
        self.size = size
        self._items = {d: [item for item in items if item.domain == d] for d in DOMAINS}
        self._until = {  # running total of durations: a uniform draw below it finds the item
            d: np.cumsum([item.duration_seconds for item in found])
            for d, found in self._items.items()
        }
        self._weights = self._domain_weights()
        self._recipes = self._mixture_recipes()

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.size:
            raise IndexError(f"segment {index} of {self.size}")
        return self.segment(index)

    def segment(self, index: int) -> Tensor:
        """Segment `index` [channels, time]: the same on every call and in every process."""
        random = np.random.Generator(np.random.Philox(key=[self.seed % 2**64, index]))
        shares = np.array([share for share, _, _ in self._recipes])
        _, count, domains = self._recipes[_choose(random, shares)]
        weights = np.array([self._weights[domain] for domain in domains])
        mixture = np.zeros((self.config.channels, self.config.segment_samples), np.float32)
        for _ in range(count):
            domain = domains[_choose(random, weights)]
            mixture += self._source(domain, random)
        return torch.from_numpy(self._level(mixture, random))

    def _source(self, domain: Domain, random: np.random.Generator) -> Samples:
        until = self._until[domain]
        index = int(np.searchsorted(until, random.random() * until[-1], side="right"))
        item = self._items[domain][min(index, len(until) - 1)]
        return read_segment(item, random.random(), self.config)

    def _level(self, mixture: Samples, random: np.random.Generator) -> Samples:
        """Random gain: uniform over the part of the range that does not clip."""
        peak = float(np.abs(mixture).max())
        headroom_db = -20 * math.log10(peak) if peak > 0 else math.inf
        low, high = self.config.gain_db or (0.0, 0.0)
        gain_db = min(low, headroom_db) + random.random() * (
            min(high, headroom_db) - min(low, headroom_db)
        )
        return np.clip(mixture * np.float32(10 ** (gain_db / 20)), -1.0, 1.0)

    def _domain_weights(self) -> dict[Domain, float]:
        present = [domain for domain in DOMAINS if self._items[domain]]
        given = self.config.domain_weights or {domain: 1.0 for domain in present}
        weights = {domain: weight for domain, weight in given.items() if weight > 0}
        missing = sorted(set(weights) - set(present))
        if missing:
            raise ConfigError(f"domain_weights asks for {', '.join(missing)}, but no item is that")
        if not weights:
            raise ConfigError("domain_weights leaves no domain to draw from")
        return weights

    def _mixture_recipes(self) -> list[tuple[float, int, list[Domain]]]:
        """(weight, number of sources, domains they may come from) of each kind of mixture."""
        drawn = list(self._weights)
        mixing = self.config.mixing
        if mixing is None:
            return [(1.0, 1, drawn)]
        music: list[Domain] = [domain for domain in drawn if domain == "music"]
        other: list[Domain] = [domain for domain in drawn if domain != "music"]
        recipes = [
            (mixing.single_music, 1, music),
            (mixing.single_other, 1, other),
            (mixing.two_of_any, 2, drawn),
            (mixing.three_without_music, 3, other),
        ]
        for weight, _, domains in recipes:
            if weight < 0 or (weight > 0 and not domains):
                raise ConfigError(
                    "mixing needs weights of at least zero, and music as well as another domain: "
                    f"the items give {', '.join(drawn)}"
                )
        recipes = [recipe for recipe in recipes if recipe[0] > 0]
        if not recipes:
            raise ConfigError("mixing gives every kind of mixture the weight zero")
        return recipes


def read_segment(item: Item, position: float, config: SegmentConfig) -> Samples:
    """One segment [channels, time] of an item, reading only what is needed.

    position: in [0, 1), from the earliest to the latest possible start.
    Raises: AudioError if the file cannot be read.
    """
    wanted = config.segment_samples
    needed = math.ceil(wanted * item.sample_rate / config.sample_rate)
    try:
        with soundfile.SoundFile(item.path) as file:
            start = int(position * (max(0, file.frames - needed) + 1))
            file.seek(start)
            samples: Samples = file.read(needed, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise AudioError(f"cannot read {item.path}: {error}") from error
    if config.channels == 1:
        samples = samples.mean(axis=1, keepdims=True)
    elif samples.shape[1] == 1:
        samples = samples.repeat(config.channels, axis=1)
    if item.sample_rate != config.sample_rate:
        samples = soxr.resample(samples, item.sample_rate, config.sample_rate)
    samples = samples[:wanted, : config.channels]
    return np.pad(samples, ((0, wanted - len(samples)), (0, 0))).T


def _choose(random: np.random.Generator, weights: npt.NDArray[np.float64]) -> int:
    until = np.cumsum(weights)
    index = int(np.searchsorted(until, random.random() * until[-1], side="right"))
    return min(index, len(weights) - 1)


class ManifestSegments:
    """Segments of one manifest, to train on and to validate with; each split is read once."""

    def __init__(self, manifest: str, config: SegmentConfig) -> None:
        self._manifest, self._config = manifest, config
        self._items: dict[Split, list[Item]] = {}

    def training(self, seed: int, size: int) -> SegmentDataset:
        """`size` segments of the train split."""
        return SegmentDataset(self._of("train"), self._config, seed, size)

    def validation(self, size: int) -> SegmentDataset:
        """Always the same segments, neither mixed nor changed in level."""
        plain = msgspec.structs.replace(self._config, gain_db=None, mixing=None)
        return SegmentDataset(self._of("valid"), plain, 0, size)

    def _of(self, split: Split) -> list[Item]:
        if split not in self._items:
            self._items[split] = read_manifest(self._manifest, split)
        return self._items[split]
