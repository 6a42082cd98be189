"""Conv-TasNet for music: masks on a learned representation of very short frames.

Source: Conv-TasNet (arXiv 1809.07454), section II, as adapted to stereo music in arXiv 1911.13254,
section 4, and published with demucs 2.0.3. Attributes have the published names, in the published
order.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.separation.demucs import MUSDB_SOURCES
from sonorant.separation.separator import Separator

VARIANCE_FLOOR = 1e-8  # of both normalisations, inside the square root (published package)


class ConvTasNetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One Conv-TasNet; the paper's letters in brackets. The defaults are the published code's; the
    published music models have ten blocks.

    filters (N) of filter_samples (L): the representation; frames overlap by half. bottleneck (B),
    hidden (H): channels between and inside the blocks. kernel_size (P) of the convolutions in
    them. blocks (X): per repeat, each dilated twice as much as the one before. repeats (R).
    norm: over channels and time ("global") or over channels alone ("channel"). causal: blocks do
    not look ahead. mask: "relu", or "softmax" over the sources.
    """

    sources: tuple[str, ...] = MUSDB_SOURCES
    sample_rate: int = 44100
    audio_channels: int = 2
    segment_samples: int = 40 * 44100
    filters: int = 256
    filter_samples: int = 20
    bottleneck: int = 256
    hidden: int = 512
    kernel_size: int = 3
    blocks: int = 8
    repeats: int = 4
    norm: Literal["global", "channel"] = "global"
    causal: bool = False
    mask: Literal["relu", "softmax"] = "relu"


class ConvTasNet(Separator):
    """Conv-TasNet for music.

    Shape: mix [batch, channels, time] -> [batch, sources, channels, time]. The samples after the
    last whole frame come out as zeros, as in the published package.
    """

    system: ClassVar[str] = "conv_tasnet"
    config_type: ClassVar[type[msgspec.Struct]] = ConvTasNetConfig
    config: ConvTasNetConfig

    def __init__(self, config: ConvTasNetConfig) -> None:
        super().__init__(config)
        self.sources = config.sources
        self.sample_rate = config.sample_rate
        self.audio_channels = config.audio_channels
        self.segment_samples = config.segment_samples
        self.encoder = Encoder(config)
        self.separator = MaskEstimator(config)
        self.decoder = Decoder(config)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_normal_(parameter)

    def forward(self, mix: Tensor) -> Tensor:
        samples = mix.shape[-1]
        one_frame = self.config.filter_samples
        latent = self.encoder(F.pad(mix, (0, max(0, one_frame - samples))))
        sound = self.decoder(latent, self.separator(latent))[..., :samples]
        return F.pad(sound, (0, samples - sound.shape[-1]))


class Encoder(nn.Module):
    """Sound [batch, channels, time] -> representation [batch, filters, frames], never negative."""

    def __init__(self, config: ConvTasNetConfig) -> None:
        super().__init__()
        length = config.filter_samples
        self.conv1d_U = nn.Conv1d(  # the published name
            config.audio_channels, config.filters, length, stride=length // 2, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv1d_U(x))


class MaskEstimator(nn.Module):
    """Representation [batch, filters, frames] -> masks [batch, sources, filters, frames]."""

    def __init__(self, config: ConvTasNetConfig) -> None:
        super().__init__()
        self.sources, self.mask = len(config.sources), config.mask
        repeats = [
            nn.Sequential(*(Block(config, 2**index) for index in range(config.blocks)))
            for _ in range(config.repeats)
        ]
        masks = self.sources * config.filters
        self.network = nn.Sequential(
            ChannelNorm(config.filters),
            nn.Conv1d(config.filters, config.bottleneck, 1, bias=False),
            nn.Sequential(*repeats),
            nn.Conv1d(config.bottleneck, masks, 1, bias=False),
        )

    def forward(self, latent: Tensor) -> Tensor:
        scores = self.network(latent).unflatten(1, (self.sources, -1))
        masks: Tensor = scores.relu() if self.mask == "relu" else scores.softmax(dim=1)
        return masks


class Decoder(nn.Module):
    """Masked representations back to sound [batch, sources, channels, time], by overlap-add."""

    def __init__(self, config: ConvTasNetConfig) -> None:
        super().__init__()
        self.channels, self.samples = config.audio_channels, config.filter_samples
        outputs = self.channels * self.samples
        self.basis_signals = nn.Linear(config.filters, outputs, bias=False)

    def forward(self, latent: Tensor, masks: Tensor) -> Tensor:
        masked = latent[:, None] * masks
        # The linear layer on every frame and the overlap-add are one transposed convolution.
        kernel = self.basis_signals.weight.t().unflatten(1, (self.channels, self.samples))
        sound = F.conv_transpose1d(masked.flatten(0, 1), kernel, stride=self.samples // 2)
        return sound.unflatten(0, masks.shape[:2])


class GlobalNorm(nn.Module):
    """Normalise over channels and time. Shape: [batch, channels, time]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 1, self.gamma.flatten(), self.beta.flatten(), VARIANCE_FLOOR)


class ChannelNorm(GlobalNorm):
    """Normalise every step over its channels. Shape: [batch, channels, time]."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return self.gamma * ((x - mean) / (variance + VARIANCE_FLOOR).sqrt()) + self.beta


NORMS: dict[str, type[GlobalNorm]] = {"global": GlobalNorm, "channel": ChannelNorm}


class Block(nn.Module):
    """A dilated depthwise convolution between two of width 1, added to the input."""

    def __init__(self, config: ConvTasNetConfig, dilation: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(config.bottleneck, config.hidden, 1, bias=False),
            nn.PReLU(),
            NORMS[config.norm](config.hidden),
            DepthwiseSeparable(config, dilation),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.net(x)
        return y


class DepthwiseSeparable(nn.Module):
    """A convolution of each channel on its own, then one across channels."""

    def __init__(self, config: ConvTasNetConfig, dilation: int) -> None:
        super().__init__()
        hidden, reach = config.hidden, (config.kernel_size - 1) * dilation
        layers: list[nn.Module] = [
            nn.Conv1d(
                hidden,
                hidden,
                config.kernel_size,
                padding=reach if config.causal else reach // 2,
                dilation=dilation,
                groups=hidden,
                bias=False,
            )
        ]
        if config.causal:
            layers.append(DropLast(reach))
        layers += [
            nn.PReLU(),
            NORMS[config.norm](hidden),
            nn.Conv1d(hidden, config.bottleneck, 1, bias=False),
        ]
        self.net = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


class DropLast(nn.Module):
    """Cut off the last steps, which a convolution padded on both sides has too many."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return x[..., : x.shape[-1] - self.steps].contiguous()
