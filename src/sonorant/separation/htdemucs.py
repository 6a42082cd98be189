"""HTDemucs (Demucs v4): Hybrid Demucs with a transformer where the two U-Nets meet.

Source: "Hybrid Transformers for Music Source Separation" (arXiv 2211.08553), section 3, and the
published package (demucs 4.1.0), whose names and order the attributes have.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.errors import ConfigError, ShapeError
from sonorant.separation.blocks import DConvConfig
from sonorant.separation.cross_transformer import CrossTransformer, CrossTransformerConfig
from sonorant.separation.hdemucs import HybridConfig, HybridModel
from sonorant.separation.spectrogram import FramePerHop


class HTDemucsConfig(HybridConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """HTDemucs. The defaults are those of the published package's constructor.

    bottom_channels: width of the transformer; 0 for that of the U-Nets where they meet.
    fixed_segment: shorter sounds are filled up with silence to the length of training, and longer
        ones refused, so that positions are those of training.
    """

    segment_seconds: float = 10.0
    depth: int = 4
    banded_layers: int = 3
    dconv: DConvConfig = DConvConfig(compress=8, initial_scale=1e-3)
    bottom_channels: int = 0
    transformer: CrossTransformerConfig = CrossTransformerConfig()
    fixed_segment: bool = True


HTDEMUCS = HTDemucsConfig(
    segment_seconds=7.8,
    dconv_in_decoder=True,
    bottom_channels=512,
    transformer=CrossTransformerConfig(dropout=0.02),
)
"""The published `htdemucs`, and each of the four of `htdemucs_ft` (arXiv 2211.08553, table 1)."""

HTDEMUCS_6_SOURCES = HTDemucsConfig(
    sources=(*HTDEMUCS.sources, "guitar", "piano"),
    segment_seconds=7.8,
    dconv_in_decoder=True,
    transformer=CrossTransformerConfig(dropout=0.02),
)
"""The published `htdemucs_6s`, as far as the size of its file tells."""


class HTDemucs(HybridModel):
    """HTDemucs.

    Raises: ConfigError for bins or channels that do not fit; ShapeError for a sound longer than
    the segment, with a fixed one.
    """

    system: ClassVar[str] = "htdemucs"
    config_type: ClassVar[type[msgspec.Struct]] = HTDemucsConfig
    config: HTDemucsConfig
    pads_to_segment: ClassVar[bool] = True

    def __init__(self, config: HTDemucsConfig) -> None:
        super().__init__(config, with_waveform=True)
        self.spectrogram = FramePerHop(config.n_fft)
        if self.bins[-1] == 1:
            raise ConfigError(
                f"{config.depth} layers leave one of {config.n_fft // 2} bins, and HTDemucs needs "
                "more; choose a smaller depth or a larger n_fft"
            )
        width, width_t = self.bottom_widths
        if config.bottom_channels:
            self.channel_upsampler = nn.Conv1d(width, config.bottom_channels, 1)
            self.channel_downsampler = nn.Conv1d(config.bottom_channels, width, 1)
            self.channel_upsampler_t = nn.Conv1d(width_t, config.bottom_channels, 1)
            self.channel_downsampler_t = nn.Conv1d(config.bottom_channels, width_t, 1)
        elif width != width_t:
            raise ConfigError(f"without bottom_channels, widths {width} and {width_t} do not meet")
        if config.transformer.layers:
            self.crosstransformer = CrossTransformer(
                config.bottom_channels or width, config.transformer
            )

    @property
    def longest_samples(self) -> int | None:
        return self.segment_samples if self.config.fixed_segment else None

    def valid_length(self, samples: int) -> int:
        if not self.config.fixed_segment:
            return samples
        if samples > self.segment_samples:
            raise ShapeError(
                f"this HTDemucs takes at most {self.segment_samples} samples at once, "
                f"got {samples}; use `separate`, which cuts longer sounds into segments"
            )
        return self.segment_samples

    def forward(self, mix: Tensor) -> Tensor:
        samples = mix.shape[-1]
        if not self.training:
            mix = F.pad(mix, (0, self.valid_length(samples) - samples))
        return super().forward(mix)[..., :samples]

    def meet(self, x: Tensor, xt: Tensor) -> tuple[Tensor, Tensor]:
        """The transformer's tokens are the bins of every frame, and the steps of the sound."""
        if not self.config.transformer.layers:
            return x, xt
        if not self.config.bottom_channels:
            return self.crosstransformer(x, xt)
        bins = x.shape[2]
        x = self.channel_upsampler(x.flatten(2)).unflatten(2, (bins, -1))
        x, xt = self.crosstransformer(x, self.channel_upsampler_t(xt))
        x = self.channel_downsampler(x.flatten(2)).unflatten(2, (bins, -1))
        return x, self.channel_downsampler_t(xt)
