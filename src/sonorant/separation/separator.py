"""What every separator offers, whatever is inside.

A separator takes a mixture apart into its sources, such as drums, bass, other and vocals. The
networks differ; the facts that applying, training and evaluation need from them are these.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from sonorant.audio import Audio
from sonorant.model import Model
from sonorant.separation.apply import apply
from sonorant.separation.mixture import Level, as_mixture
from sonorant.separation.settings import Progress, settings_of


@dataclass(frozen=True)
class Part:
    """A network and its weight in the mean for each of the sources."""

    model: Separator
    weights: tuple[float, ...]


class Separator(Model, ABC):
    """A system that turns a mixture `[batch, channels, time]` into its sources
    `[batch, sources, channels, time]`.

    Subclasses set the attributes below in their constructor.
    """

    sources: tuple[str, ...]
    """Names of what comes out, in order."""
    sample_rate: int
    """Hz."""
    audio_channels: int
    """Of the mixture and of every source."""
    segment_samples: int
    """Length of the extracts it was trained on, and of those that long sounds are cut into."""

    pads_to_segment: ClassVar[bool] = False
    """Whether an extract is widened by what surrounds it to the whole segment length asked for, as
    the published package does for HTDemucs only, and not just to `valid_length`."""

    @property
    def longest_samples(self) -> int | None:
        """The longest input that `forward` takes; None for any length."""
        return None

    def valid_length(self, samples: int) -> int:
        """The shortest length of at least `samples` at which no layer leaves out a sample."""
        return samples

    def separate(
        self,
        audio: Audio,
        *,
        stems: Sequence[str] | None = None,
        progress: Progress | None = None,
        **settings: Any,
    ) -> dict[str, Audio]:
        """The stems of a sound of any rate and number of channels, at the model's rate.

        stems: only these of `sources`; networks of a bag that contribute to none are not run.
        progress: called with the seconds of sound done, and those in all.
        settings: fields of `Settings`, such as `shifts=10` or `overlap=0.5`.
        Mono is taken as equal channels; of more channels than the model's, the first ones.
        Raises: AudioError for a sound that is empty or not finite; ConfigError for an unknown stem
        or settings that the model cannot have.
        """
        mix = as_mixture(audio.check(), self)
        level = Level.of(mix.samples)
        scaled = level.normalize(mix.samples)[None]
        separated = apply(self, scaled, settings_of(settings), stems, progress)[0]
        names = self.sources if stems is None else stems
        return {
            name: Audio(level.restore(stem), self.sample_rate)
            for name, stem in zip(names, separated, strict=True)
        }

    def checksum(self) -> str:
        """Eight hexadecimal digits of the weights (CRC-32), to tell one model from another.

        Weights that are packed do not count, but how they are packed does.
        """
        value = zlib.crc32(str(self.packing).encode())
        for tensor in (*self.parameters(), *self.buffers()):
            plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            value = zlib.crc32(plain.numpy().data, value)
        return f"{value:08x}"

    def parts(self) -> list[Part]:
        """The networks whose weighted mean it is: itself, but for a bag of several."""
        return [Part(self, (1.0,) * len(self.sources))]

    @abstractmethod
    def forward(self, mix: Tensor) -> Tensor:
        """The sources `[batch, sources, channels, time']` of mixtures `[batch, channels, time]`.

        time' is time, or less around the same middle where the layers do not pad (Demucs v1, v2).
        """
