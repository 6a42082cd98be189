"""Separators small enough to know what must come out of them."""

from __future__ import annotations

from typing import ClassVar

import msgspec
import torch
from torch import Tensor, nn

from sonorant.separation.separator import Separator


class ToyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    gains: tuple[float, ...] = (0.25, 0.75)
    sample_rate: int = 100
    segment_samples: int = 64
    audio_channels: int = 2
    surroundings: int = 0


DEFAULTS = ToyConfig()


class Gains(Separator):
    """Every source is the mixture times a gain; `surroundings` samples are lost at each end."""

    system: ClassVar[str] = "toy"
    config_type: ClassVar[type[msgspec.Struct]] = ToyConfig
    config: ToyConfig

    def __init__(self, config: ToyConfig = DEFAULTS) -> None:
        super().__init__(config)
        self.sources = tuple(f"source{n}" for n in range(len(config.gains)))
        self.sample_rate = config.sample_rate
        self.segment_samples = config.segment_samples
        self.audio_channels = config.audio_channels
        self.gains = nn.Parameter(torch.tensor(config.gains))
        self.inputs: list[Tensor] = []
        self.eval()

    def valid_length(self, samples: int) -> int:
        return samples + 2 * self.config.surroundings

    def forward(self, mix: Tensor) -> Tensor:
        self.inputs.append(mix)
        lost = self.config.surroundings
        inner = mix[..., lost : mix.shape[-1] - lost]
        return inner[:, None] * self.gains[:, None, None]


class Ramps(Gains):
    """What comes out depends on where a sample stands in its segment."""

    def forward(self, mix: Tensor) -> Tensor:
        stems = super().forward(mix)
        return stems * torch.linspace(0.5, 1.5, stems.shape[-1])


class Forgetful(Gains):
    """Keeps no inputs."""

    def forward(self, mix: Tensor) -> Tensor:
        stems = super().forward(mix)
        self.inputs.clear()
        return stems
