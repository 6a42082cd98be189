"""Demucs v3 on the waveform: v2 with normalisations, residual branches and padding.

Source: "Hybrid Spectrogram and Waveform Source Separation" (arXiv 2111.03600), section 4, and the
published package (demucs 4.1.0, its class `Demucs`). Unlike v2, the convolutions between the
strided ones keep the length, and the model pads its input itself, so the output is as long as the
input. Attributes have the published names, in the published order.
"""

from __future__ import annotations

import math
from typing import ClassVar

import msgspec
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.dsp.resample import resample
from sonorant.separation.blocks import (
    BLSTM,
    DConv,
    DConvConfig,
    center_trim,
    covered_length,
    mono_level,
    rescale_convolutions,
)
from sonorant.separation.demucs import LEVEL_FLOOR, MUSDB_SOURCES, run_unet
from sonorant.separation.separator import Separator


class DemucsV3Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Demucs v3 on the waveform. The defaults are those of the published package.

    channels, growth: width of the first layer, and its factor from layer to layer. context: steps
    on either side that the convolution before each transposed one sees. rewrite: whether that one
    and the convolution of width 1 in the encoder exist; glu: whether a gated linear unit follows
    them instead of a ReLU; gelu: whether GELU or ReLU follows the others. norm_from_layer: the
    first layer with group normalisation. dconv_in_encoder, dconv_in_decoder: where the residual
    branches stand; lstm_from_layer, attention_from_layer: the first layers where they hold these.
    lstm_layers: of one at the bottom. resample: work at twice the sample rate. normalize: bring
    every input to one level, and the output back. rescale: scale that initial weights are brought
    closer to; 0 to leave them.
    """

    sources: tuple[str, ...] = MUSDB_SOURCES
    sample_rate: int = 44100
    audio_channels: int = 2
    segment_seconds: float = 40.0
    channels: int = 64
    growth: float = 2.0
    depth: int = 6
    kernel_size: int = 8
    stride: int = 4
    context: int = 1
    rewrite: bool = True
    glu: bool = True
    gelu: bool = True
    norm_from_layer: int = 4
    norm_groups: int = 4
    dconv: DConvConfig = DConvConfig()
    dconv_in_encoder: bool = True
    dconv_in_decoder: bool = False
    attention_from_layer: int = 4
    lstm_from_layer: int = 4
    lstm_layers: int = 0
    resample: bool = True
    normalize: bool = True
    rescale: float = 0.1


class DemucsV3(Separator):
    """Demucs v3 on the waveform.

    Shape: mix [batch, channels, time] -> [batch, sources, channels, time].
    """

    system: ClassVar[str] = "demucs_v3"
    config_type: ClassVar[type[msgspec.Struct]] = DemucsV3Config
    config: DemucsV3Config

    def __init__(self, config: DemucsV3Config) -> None:
        super().__init__(config)
        self.sources = config.sources
        self.sample_rate = config.sample_rate
        self.audio_channels = config.audio_channels
        self.segment_samples = int(config.segment_seconds * config.sample_rate)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        width, before = config.channels, config.audio_channels
        for index in range(config.depth):
            after = before if index else len(config.sources) * config.audio_channels
            self.encoder.append(_encoder_layer(config, index, before, width))
            self.decoder.insert(0, _decoder_layer(config, index, width, after))
            width, before = int(config.growth * width), width
        self.lstm: nn.Module = nn.Identity()
        if config.lstm_layers:
            self.lstm = BLSTM(before, config.lstm_layers, max_steps=None, skip=False)
        if config.rescale:
            rescale_convolutions(self, config.rescale)

    def valid_length(self, samples: int) -> int:
        config, rate = self.config, 2 if self.config.resample else 1
        length = covered_length(samples * rate, config.depth, config.kernel_size, config.stride)
        return math.ceil(length / rate)

    def forward(self, mix: Tensor) -> Tensor:
        samples, x = mix.shape[-1], mix
        if self.config.normalize:
            mean, std = mono_level(mix)
            x = (x - mean) / (LEVEL_FLOOR + std)
        missing = self.valid_length(samples) - samples
        x = F.pad(x, (missing // 2, missing - missing // 2))
        if self.config.resample:
            x = resample(x, 1, 2)
        x = run_unet(x, self.encoder, self.lstm, self.decoder)
        if self.config.resample:
            x = resample(x, 2, 1)
        if self.config.normalize:
            x = x * std + mean
        return center_trim(x, samples).unflatten(1, (len(self.sources), -1))


def _encoder_layer(config: DemucsV3Config, index: int, before: int, width: int) -> nn.Sequential:
    layers = [
        nn.Conv1d(before, width, config.kernel_size, config.stride),
        _norm(config, index, width),
        _activation(config),
    ]
    if config.dconv_in_encoder:
        layers.append(DConv(width, _branches(config, index)))
    if config.rewrite:
        layers += _gated(config, index, width, radius=0)
    return nn.Sequential(*layers)


def _decoder_layer(config: DemucsV3Config, index: int, width: int, after: int) -> nn.Sequential:
    layers = _gated(config, index, width, config.context) if config.rewrite else []
    if config.dconv_in_decoder:
        layers.append(DConv(width, _branches(config, index)))
    layers.append(nn.ConvTranspose1d(width, after, config.kernel_size, config.stride))
    if index:
        layers += [_norm(config, index, after), _activation(config)]
    return nn.Sequential(*layers)


def _gated(config: DemucsV3Config, index: int, width: int, radius: int) -> list[nn.Module]:
    made = 2 * width if config.glu else width
    return [
        nn.Conv1d(width, made, 2 * radius + 1, padding=radius),
        _norm(config, index, made),
        nn.GLU(dim=1) if config.glu else nn.ReLU(),
    ]


def _norm(config: DemucsV3Config, index: int, width: int) -> nn.Module:
    if index < config.norm_from_layer:
        return nn.Identity()
    return nn.GroupNorm(config.norm_groups, width)


def _activation(config: DemucsV3Config) -> nn.Module:
    return nn.GELU() if config.gelu else nn.ReLU()


def _branches(config: DemucsV3Config, index: int) -> DConvConfig:
    return msgspec.structs.replace(
        config.dconv,
        attention=index >= config.attention_from_layer,
        lstm=index >= config.lstm_from_layer,
    )
