"""Demucs v1 and v2: a U-Net on the waveform with an LSTM at the bottom.

Source: "Music Source Separation in the Waveform Domain" (arXiv 1911.13254), section 3, and the
published packages: the code of 2019 for v1, demucs 2.0.3 for v2. Encoder layers halve the rate
twice and double the channels; decoder layers mirror them, each adding the output of its encoder
layer. Nothing pads, so the output is shorter than the input; `valid_length` says which input covers
a length. Attributes have the published names, in the published order.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

import msgspec
import torch
from torch import Tensor, nn

from sonorant.dsp.resample import resample
from sonorant.separation.blocks import (
    BLSTM,
    center_trim,
    covered_length,
    mono_level,
    rescale_convolutions,
)
from sonorant.separation.separator import Separator

MUSDB_SOURCES = ("drums", "bass", "other", "vocals")
LEVEL_FLOOR = 1e-5  # added to the standard deviation that the input is divided by (demucs 2.0.3)


class DemucsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What v1 and v2 have in common. The defaults are the published numbers.

    channels, growth: width of the first layer, and its factor from layer to layer. context: steps
    that the convolution before each transposed one sees. rewrite: whether that one and the
    convolution of width 1 in the encoder exist; glu: whether a gated linear unit follows them
    instead of a ReLU. lstm_layers: none for 0. rescale: scale that initial weights are brought
    closer to; 0 to leave them.
    """

    sources: tuple[str, ...] = MUSDB_SOURCES
    sample_rate: int = 44100
    audio_channels: int = 2
    segment_samples: int = 40 * 44100
    channels: int = 64
    growth: float = 2.0
    depth: int = 6
    kernel_size: int = 8
    stride: int = 4
    context: int = 3
    rewrite: bool = True
    glu: bool = True
    lstm_layers: int = 2
    rescale: float = 0.1

    def widths(self) -> list[int]:
        """Channels of the input and of every layer."""
        widths = [self.audio_channels, self.channels]
        while len(widths) <= self.depth:
            widths.append(int(self.growth * widths[-1]))
        return widths[: self.depth + 1]


class DemucsV1Config(DemucsConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Demucs v1. upsample: the variant that decimates and interpolates instead of striding."""

    upsample: bool = False


class DemucsV2Config(DemucsConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Demucs v2. resample: work at twice the sample rate. normalize: bring every input to one
    level, and the output back to its own."""

    resample: bool = True
    normalize: bool = False


class DemucsV1(Separator):
    """Demucs as first published.

    Shape: mix [batch, channels, time] -> [batch, sources, channels, time'], shorter.
    """

    system: ClassVar[str] = "demucs_v1"
    config_type: ClassVar[type[msgspec.Struct]] = DemucsV1Config
    config: DemucsV1Config

    def __init__(self, config: DemucsV1Config) -> None:
        super().__init__(config)
        _set_facts(self, config)
        outputs = len(config.sources) * config.audio_channels
        if config.upsample:
            self.encoder = nn.ModuleList(_encoder_layers(config, stride=1))
            self.decoder = nn.ModuleList(
                _decoder_layers(config, config.channels, interpolated=True)
            )
            self.final = nn.Conv1d(config.channels + config.audio_channels, outputs, 1)
        else:
            self.encoder = nn.ModuleList(_encoder_layers(config, config.stride))
            self.decoder = nn.ModuleList(_decoder_layers(config, outputs))
        self.lstm = _bottom(config)
        if config.rescale:
            rescale_convolutions(self, config.rescale)

    def valid_length(self, samples: int) -> int:
        config = self.config
        if not config.upsample:
            return covered_length(
                samples, config.depth, config.kernel_size, config.stride, config.context
            )
        lost = config.kernel_size - 1  # by each unpadded convolution
        length = samples
        for _ in range(config.depth):
            length = max(1, math.ceil(length / config.stride) + lost) + config.context - 1
        for _ in range(config.depth):
            length = length * config.stride + lost
        return length

    def forward(self, mix: Tensor) -> Tensor:
        if self.config.upsample:
            y = self._interpolated(mix)
        else:
            y = run_unet(mix, self.encoder, self.lstm, self.decoder)
        return y.unflatten(1, (len(self.sources), -1))

    def _interpolated(self, mix: Tensor) -> Tensor:
        """The U-Net that decimates after each encoder layer and interpolates before each decoder
        layer."""
        x, skips = mix, []
        for layer in self.encoder:
            x = layer(x)
            skips.append(x)
            x = x[..., :: self.config.stride]
        x = self.lstm(x)
        for layer in self.decoder:
            x = interpolate(x, self.config.stride)
            x = layer(x + center_trim(skips.pop(), x.shape[-1]))
        y: Tensor = self.final(torch.cat([x, center_trim(mix, x.shape[-1])], dim=1))
        return y


class DemucsV2(Separator):
    """Demucs of the second version of the paper.

    Shape: mix [batch, channels, time] -> [batch, sources, channels, time'], shorter.
    """

    system: ClassVar[str] = "demucs_v2"
    config_type: ClassVar[type[msgspec.Struct]] = DemucsV2Config
    config: DemucsV2Config

    def __init__(self, config: DemucsV2Config) -> None:
        super().__init__(config)
        _set_facts(self, config)
        outputs = len(config.sources) * config.audio_channels
        self.encoder = nn.ModuleList(_encoder_layers(config, config.stride))
        self.decoder = nn.ModuleList(_decoder_layers(config, outputs))
        self.lstm = _bottom(config)
        if config.rescale:
            rescale_convolutions(self, config.rescale)

    def valid_length(self, samples: int) -> int:
        config, rate = self.config, 2 if self.config.resample else 1
        length = covered_length(
            samples * rate, config.depth, config.kernel_size, config.stride, config.context
        )
        return math.ceil(length / rate)

    def forward(self, mix: Tensor) -> Tensor:
        mean, std = mono_level(mix) if self.config.normalize else (0.0, 1.0)
        # Also without `normalize`, the published package divides by 1.00001.
        x = (mix - mean) / (LEVEL_FLOOR + std)
        if self.config.resample:
            x = resample(x, 1, 2)
        x = run_unet(x, self.encoder, self.lstm, self.decoder)
        if self.config.resample:
            x = resample(x, 2, 1)
        if self.config.normalize:
            x = x * std + mean
        return x.unflatten(1, (len(self.sources), -1))


def run_unet(
    x: Tensor, encoder: nn.ModuleList, bottom: nn.Module, decoder: nn.ModuleList
) -> Tensor:
    """Encoder, bottom, and decoder layers that each add the middle of their encoder's output."""
    skips = []
    for layer in encoder:
        x = layer(x)
        skips.append(x)
    x = bottom(x)
    for layer in decoder:
        x = layer(x + center_trim(skips.pop(), x.shape[-1]))
    return x


def interpolate(x: Tensor, factor: int) -> Tensor:
    """Steps between those of x [..., time] on straight lines: [..., (time - 1) * factor].

    >>> interpolate(torch.tensor([[[0.0, 4.0, 0.0]]]), 4).tolist()
    [[[0.0, 1.0, 2.0, 3.0, 4.0, 3.0, 2.0, 1.0]]]
    """
    share = torch.arange(factor, device=x.device, dtype=x.dtype) / factor
    between = x[..., :-1, None] * (1 - share) + x[..., 1:, None] * share
    return between.flatten(-2)


def _set_facts(model: Separator, config: DemucsConfig) -> None:
    model.sources = config.sources
    model.sample_rate = config.sample_rate
    model.audio_channels = config.audio_channels
    model.segment_samples = config.segment_samples


def _encoder_layers(config: DemucsConfig, stride: int) -> list[nn.Module]:
    widths = config.widths()
    layers: list[nn.Module] = []
    for before, width in pairwise(widths):
        parts: list[nn.Module] = [nn.Conv1d(before, width, config.kernel_size, stride), nn.ReLU()]
        if config.rewrite:
            parts += _gated(config, width, kernel_size=1)
        layers.append(nn.Sequential(*parts))
    return layers


def _decoder_layers(
    config: DemucsConfig, outputs: int, interpolated: bool = False
) -> list[nn.Module]:
    """interpolated: the sound comes at the higher rate already, so a plain convolution follows."""
    widths = config.widths()
    layers: list[nn.Module] = []
    for index in reversed(range(config.depth)):
        width, after = widths[index + 1], widths[index] if index else outputs
        parts = _gated(config, width, config.context) if config.rewrite else []
        if interpolated:
            parts.append(nn.Conv1d(width, after, config.kernel_size))
        else:
            parts.append(nn.ConvTranspose1d(width, after, config.kernel_size, config.stride))
        if index:
            parts.append(nn.ReLU())
        layers.append(nn.Sequential(*parts))
    return layers


def _gated(config: DemucsConfig, width: int, kernel_size: int) -> list[nn.Module]:
    if config.glu:
        return [nn.Conv1d(width, 2 * width, kernel_size), nn.GLU(dim=1)]
    return [nn.Conv1d(width, width, kernel_size), nn.ReLU()]


def _bottom(config: DemucsConfig) -> nn.Module:
    if not config.lstm_layers:
        return nn.Identity()
    return BLSTM(config.widths()[-1], config.lstm_layers, max_steps=None, skip=False)
