"""How a separator is applied to sounds longer than what it was trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from sonorant.errors import ConfigError

Progress = Callable[[float, float], None]
"""Called with the seconds done and the seconds in all."""
MOST_SHIFTS = 1000
"""More would take days; the papers use ten."""


@dataclass(frozen=True)
class Settings:
    """How a sound is cut up, and how often it is separated.

    shifts: separate it that often, each time from another random start up to half a second before
        its own, and take the mean: better by about 0.2 dB SDR with 10 (arXiv 1911.13254), in that
        much more time.
    overlap: part of a segment that the next one repeats; where two overlap, they are faded over.
    split: cut long sounds into segments; without it memory grows with the sound.
    segment_seconds: length of the segments; None for the model's own.
    transition_power: the fade is a ramp to this power; higher keeps to the middle of segments.
    batch_size: segments that go through the network at once; more need more memory.
    seed: of the random starts; the same one gives the same stems. The start of seed n is the one
        that the package demucs draws after `random.seed(n)`, and so are those that follow it, but
        where an HTDemucs came before: there demucs draws numbers in between that change nothing.
    Raises: ConfigError for impossible values.
    """

    shifts: int = 0
    overlap: float = 0.25
    split: bool = True
    segment_seconds: float | None = None
    transition_power: float = 1.0
    batch_size: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        segment = self.segment_seconds
        if not 0 <= self.shifts <= MOST_SHIFTS:
            raise ConfigError(f"shifts must lie from 0 to {MOST_SHIFTS}, got {self.shifts}")
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap must be at least 0 and below 1, got {self.overlap}")
        if segment is not None and not (segment > 0 and math.isfinite(segment)):
            raise ConfigError(f"segment_seconds must be above 0, got {segment}")
        if not (self.transition_power >= 1 and math.isfinite(self.transition_power)):
            raise ConfigError(f"transition_power must be at least 1, got {self.transition_power}")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {self.batch_size}")


DEFAULTS = Settings()


def settings_of(arguments: dict[str, Any]) -> Settings:
    """Settings of keyword arguments. Raises: ConfigError for an unknown one, impossible values."""
    unknown = arguments.keys() - {field.name for field in fields(Settings)}
    if unknown:
        raise ConfigError(
            f"separate has no setting {', '.join(sorted(unknown))}; it has "
            f"{', '.join(field.name for field in fields(Settings))}"
        )
    return Settings(**arguments)
