"""A sound as a separator takes it: at its rate, with its channels, at a usual level."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sonorant.audio import Audio
from sonorant.errors import AudioError

STD_FLOOR = 1e-8
"""Added to the standard deviation, as demucs 4.1.0 does: silence stays silence."""


class Format(Protocol):
    """What a separator says about the sound it takes."""

    sample_rate: int
    audio_channels: int


def as_mixture(audio: Audio, model: Format) -> Audio:
    """The sound at the model's rate and with its channels.

    Raises: AudioError as `take_channels`.
    """
    return take_channels(audio, model.audio_channels).to(model.sample_rate)


def take_channels(audio: Audio, channels: int) -> Audio:
    """The sound with that many channels, as demucs makes them.

    To one channel by the mean; from one by copies; of more the first ones are taken, which in 5.1
    and the like are left and right.
    Raises: AudioError if there are fewer, but more than one.
    """
    if channels == 1 or audio.channels == 1:
        return audio.to(channels=channels)
    if audio.channels < channels:
        raise AudioError(
            f"this model takes {channels} channels, and the sound has {audio.channels}; make it "
            "mono, or give it all of them"
        )
    return Audio(audio.samples[:channels], audio.sample_rate)


@dataclass(frozen=True)
class Level:
    """Mean and standard deviation of the mean of all channels; stems get them back."""

    mean: float
    std: float

    @classmethod
    def of(cls, samples: Tensor) -> Level:
        """That of a sound `[channels, time]`."""
        return cls.of_pieces([samples])

    @classmethod
    def of_pieces(cls, pieces: Iterable[Tensor]) -> Level:
        """That of a sound that comes in pieces `[channels, time]`; keeps none of them."""
        sums = LevelSums()
        for piece in pieces:
            sums.add(piece)
        return sums.level()

    def normalize(self, samples: Tensor) -> Tensor:
        """The sound as the network takes it."""
        return (samples - self.mean) / (self.std + STD_FLOOR)

    def restore(self, samples: Tensor) -> Tensor:
        """A stem as loud as it is in the sound. The mean comes with every stem, as published."""
        return samples * (self.std + STD_FLOOR) + self.mean


class LevelSums:
    """What the level of a sound is known from while it comes in; in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = self.squares = 0.0

    def add(self, samples: Tensor) -> None:
        """Take account of a piece `[channels, time]`."""
        mono = samples.mean(dim=0).double()
        self.count += len(mono)
        self.sum += float(mono.sum())
        self.squares += float(mono.square().sum())

    def level(self) -> Level:
        """Of all that has come; the deviation counts from N - 1, as published."""
        mean = self.sum / max(self.count, 1)
        variance = max(0.0, self.squares - self.count * mean * mean) / max(self.count - 1, 1)
        return Level(mean, variance**0.5)
