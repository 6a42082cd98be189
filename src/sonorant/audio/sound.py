"""`Audio`, one sound in memory, and its conversion to other rates and channel counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import soxr  # type: ignore[import-untyped]
import torch
from torch import Tensor

from sonorant.errors import AudioError

Samples = npt.NDArray[np.float32]  # [channels, time]

HIGHEST_RATE = 768_000  # Hz, the highest that recorders and converters offer
BLOCK_FRAMES = 8192  # samples per channel that are read, converted or written at once


@dataclass(frozen=True, eq=False)
class Audio:
    """One sound: samples `[channels, time]`, float32 in [-1, 1], and their rate in Hz.

    Raises: AudioError if the samples are not a floating-point tensor of two dimensions, or the
    rate is not a whole number from 1 to 768 000 Hz.

    >>> sound = Audio(torch.zeros(2, 48000), sample_rate=48000)
    >>> sound.channels, sound.duration_seconds, sound.to(24000, channels=1).samples.shape
    (2, 1.0, torch.Size([1, 24000]))
    """

    samples: Tensor
    sample_rate: int

    def __post_init__(self) -> None:
        if not isinstance(self.samples, Tensor) or not self.samples.is_floating_point():
            raise AudioError("samples must be a torch tensor of floating-point numbers in [-1, 1]")
        if self.samples.dim() != 2:
            raise AudioError(
                f"samples must have the shape [channels, time], got {list(self.samples.shape)}"
            )
        check_rate(self.sample_rate, "the sound")
        object.__setattr__(self, "samples", self.samples.float())

    @property
    def channels(self) -> int:
        return self.samples.shape[0]

    @property
    def duration_seconds(self) -> float:
        return self.samples.shape[1] / self.sample_rate

    def check(self) -> Audio:
        """This sound, once it is known to hold finite samples.

        Raises: AudioError if it is empty or a sample is NaN or infinite; names the first one.
        """
        if not self.samples.numel():
            raise AudioError(f"the sound is empty: its shape is {list(self.samples.shape)}")
        check_finite(to_numpy(self.samples), "the sound", 0)
        return self

    def to(self, sample_rate: int | None = None, channels: int | None = None) -> Audio:
        """The same sound at another rate in Hz and channel count; None keeps what is there.

        To one channel by the mean; from one channel by copies. Rates by libsoxr (HQ), on CPU and
        outside any gradient: inside models use `sonorant.dsp.resample`. The new length is
        time * new / old, rounded, and at least 1.
        Raises: AudioError for other changes of the channel count, e.g. 8 to 2.
        """
        rate, count = sample_rate or self.sample_rate, channels or self.channels
        if (rate, count) == (self.sample_rate, self.channels):
            return self
        converter = Converter(self.sample_rate, rate, self.channels, count)
        samples = to_numpy(self.samples)
        pieces = [
            converter.push(samples[:, start : start + BLOCK_FRAMES])
            for start in range(0, samples.shape[1], BLOCK_FRAMES)
        ]
        converted = np.concatenate([*pieces, converter.flush()], axis=1)
        return Audio(torch.from_numpy(converted).to(self.samples.device), rate)


class Converter:
    """Blocks `[channels, time]` at one rate and channel count to another, in order."""

    def __init__(self, old_rate: int, new_rate: int, old_channels: int, new_channels: int) -> None:
        check_rate(new_rate, "the conversion")
        if new_channels != old_channels and 1 not in (old_channels, new_channels):
            raise AudioError(
                f"cannot turn {old_channels} channels into {new_channels}: take some of them, or "
                "mix them down to one"
            )
        self._to_mono = new_channels == 1
        self._channels = new_channels
        self._stream = None
        if new_rate != old_rate:
            count = min(old_channels, new_channels)
            self._stream = soxr.ResampleStream(old_rate, new_rate, count, "float32", "HQ")
        self._last: Samples = np.empty((min(old_channels, new_channels), 0), np.float32)
        self._made_any = False

    def push(self, block: Samples) -> Samples:
        """What the blocks so far make final."""
        if self._to_mono and block.shape[0] > 1:
            block = block.mean(axis=0, keepdims=True)
        self._last = block[:, -1:] if block.shape[1] else self._last
        return self._resample(block, last=False)

    def flush(self) -> Samples:
        """The rest, at the end of the sound."""
        rest = self._resample(self._last[:, :0], last=True)
        if self._made_any:
            return rest
        return self._expand(self._last)  # a sound of a few samples must not vanish

    def stream(self, pieces: Iterator[Samples]) -> Iterator[Samples]:
        for piece in pieces:
            yield self.push(piece)
        yield self.flush()

    def _resample(self, block: Samples, last: bool) -> Samples:
        if self._stream is not None:
            block = self._stream.resample_chunk(np.ascontiguousarray(block.T), last=last).T
        self._made_any = self._made_any or block.shape[1] > 0
        return self._expand(block)

    def _expand(self, block: Samples) -> Samples:
        return np.broadcast_to(block, (self._channels, block.shape[1]))


def to_numpy(samples: Tensor) -> Samples:
    array: Samples = samples.detach().to("cpu", torch.float32).numpy()
    return array


def check_rate(sample_rate: int, what: str) -> None:
    if not isinstance(sample_rate, int | np.integer) or not 1 <= sample_rate <= HIGHEST_RATE:
        raise AudioError(
            f"{what} has the sample rate {sample_rate}, not a whole number from 1 to "
            f"{HIGHEST_RATE} Hz"
        )


def check_finite(block: Samples, what: str, start: int) -> None:
    finite = np.isfinite(block)
    if not finite.all():
        time, channel = np.argwhere(~finite.T)[0]
        raise AudioError(
            f"{what} holds {block[channel, time]} at sample {start + time} of channel {channel}"
        )
