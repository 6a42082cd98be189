"""Discriminator over every p-th sample, for several periods p (MPD).

Source: HiFi-GAN (arXiv 2010.05646, section 2.3). The sound is folded into an image of `time / p`
rows by p columns, and convolved along the columns only. EnCodec compares it with the MS-STFT
discriminator (arXiv 2210.13438, table 2), which it can join: both return the same kinds of lists.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from sonorant.errors import ConfigError, ShapeError
from sonorant.nn.conv import pad_time

Count = Annotated[int, msgspec.Meta(ge=1)]


class MultiPeriodDiscriminatorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes; the defaults are HiFi-GAN's.

    channels: of the strided convolutions; the last one has stride 1.
    """

    periods: tuple[Count, ...] = (2, 3, 5, 7, 11)
    channels: tuple[Count, ...] = (32, 128, 512, 1024, 1024)
    in_channels: Count = 1
    kernel_size: Count = 5
    stride: Count = 3
    leaky_slope: float = 0.1

    def __post_init__(self) -> None:
        if not self.periods or not self.channels:
            raise ConfigError("a multi-period discriminator needs at least one period and layer")
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"the kernel size must be odd, got {self.kernel_size}")


class MultiPeriodDiscriminator(nn.Module):
    """Judges sound at every period of its config.

    Shape: x [batch, in_channels, time] -> logits, a list over periods of [batch, 1, rows, period];
    features, a list over periods of the lists of the feature maps [batch, channels, rows, period],
    of which the last are the logits, as published. Sound is reflected at its end to whole rows.
    Raises: ShapeError for empty sound or a wrong number of channels.

    >>> import torch
    >>> config = MultiPeriodDiscriminatorConfig(periods=(2, 3), channels=(4, 8))
    >>> logits, features = MultiPeriodDiscriminator(config)(torch.randn(1, 1, 100))
    >>> logits[1].shape, [len(maps) for maps in features]
    (torch.Size([1, 1, 12, 3]), [3, 3])
    """

    def __init__(self, config: MultiPeriodDiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config or MultiPeriodDiscriminatorConfig()
        self.periods = nn.ModuleList(
            PeriodDiscriminator(self.config, period) for period in self.config.periods
        )

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        if x.dim() != 3 or x.shape[1] != self.config.in_channels or x.shape[-1] == 0:
            raise ShapeError(
                f"this discriminator takes [batch, {self.config.in_channels}, time], not empty, "
                f"got {list(x.shape)}"
            )
        logits, features = zip(*(period(x) for period in self.periods), strict=True)
        return list(logits), list(features)


class PeriodDiscriminator(nn.Module):
    """Judges sound at one period: x [batch, in_channels, time] -> (logits, feature maps)."""

    def __init__(self, config: MultiPeriodDiscriminatorConfig, period: int) -> None:
        super().__init__()
        self.period, self.leaky_slope = period, config.leaky_slope
        inputs = (config.in_channels, *config.channels[:-1])
        strides = [config.stride] * (len(config.channels) - 1) + [1]
        self.convs = nn.ModuleList(
            weight_norm(
                nn.Conv2d(
                    width,
                    out,
                    kernel_size=(config.kernel_size, 1),
                    stride=(stride, 1),
                    padding=(config.kernel_size // 2, 0),
                )
            )
            for width, out, stride in zip(inputs, config.channels, strides, strict=True)
        )
        # Kernel 3 whatever kernel_size, as in HiFi-GAN.
        self.logits = weight_norm(nn.Conv2d(config.channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = pad_time(x, 0, -x.shape[-1] % self.period, "reflect")
        image = x.unflatten(-1, (-1, self.period))
        features = []
        for conv in self.convs:
            image = F.leaky_relu(conv(image), self.leaky_slope)
            features.append(image)
        logits = self.logits(image)
        return logits, [*features, logits]
