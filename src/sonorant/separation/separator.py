"""What every separator offers, whatever is inside.

A separator takes a mixture apart into its sources, such as drums, bass, other and vocals. The
networks differ; the facts that applying, training and evaluation need from them are these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from sonorant.model import Model


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

    @abstractmethod
    def forward(self, mix: Tensor) -> Tensor:
        """The sources `[batch, sources, channels, time']` of mixtures `[batch, channels, time]`.

        time' is time, or less around the same middle where the layers do not pad (Demucs v1, v2).
        """
