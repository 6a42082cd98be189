"""Hybrid Demucs: one U-Net over the spectrogram and one over the waveform, joined at the bottom.

Source: "Hybrid Spectrogram and Waveform Source Separation" (arXiv 2111.03600), section 3, and the
published package (demucs 4.1.0), whose names and order the attributes have. `HybridModel` is what
Hybrid Demucs shares with HTDemucs.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import msgspec
import torch
from torch import Tensor, nn

from sonorant.separation.blocks import DConvConfig, ScaledEmbedding, rescale_convolutions
from sonorant.separation.demucs import LEVEL_FLOOR, MUSDB_SOURCES
from sonorant.separation.hybrid_layers import (
    BandedDecoder,
    BandedEncoder,
    DecoderLayer,
    EncoderLayer,
    LayerPlan,
)
from sonorant.separation.separator import Separator
from sonorant.separation.spectrogram import FramePerHop, PlainSpectrogram, ShiftedFramePerHop
from sonorant.separation.wiener import wiener_in_blocks

MASK_FLOOR = 1e-8  # added to the magnitudes that masks divide by (published package)


class HybridConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What Hybrid Demucs and HTDemucs have in common.

    channels, time_channels, growth: width of the first layer of the spectrogram's branch and of
        the waveform's (None for the same), and its factor from layer to layer.
    n_fft: samples of a window; the hop is a quarter.
    complex_as_channels: real and imaginary parts go in and out as channels. Otherwise magnitudes
        do, and a Wiener filter makes spectrograms of them, with that many wiener_iterations
        (training_wiener_iterations in training mode): 0 takes the phase of the mixture, below 0 a
        mask on it. wiener_residual: what is left over is one source more, not given out.
    kernel_size, stride: of both branches; time_stride of layers over time behind the last bin.
    context, encoder_context: steps and bins on either side that the gated mixes of the channels
        see, in the decoder and in the encoder; without `rewrite` there are none.
    band_edges: as shares of all bins, where the bands meet that the outer `banded_layers` layers
        have weights of their own for; empty for none.
    embedding_weight: of the bins' embedding behind the first layer, 0 for none; embedding_scale,
        smooth_embedding: see `ScaledEmbedding`.
    norm_from_layer: first layer with group norms, of norm_groups groups.
    dconv: the residual branches; dconv_in_encoder, dconv_in_decoder: where they stand.
    rescale: see `rescale_convolutions`; 0 to leave the initial weights as they are.
    """

    sources: tuple[str, ...] = MUSDB_SOURCES
    sample_rate: int = 44_100
    audio_channels: int = 2
    segment_seconds: float = 40.0
    channels: int = 48
    time_channels: int | None = None
    growth: float = 2.0
    depth: int = 6
    n_fft: int = 4096
    complex_as_channels: bool = True
    wiener_iterations: int = 0
    training_wiener_iterations: int = 0
    wiener_residual: bool = False
    kernel_size: int = 8
    stride: int = 4
    time_stride: int = 2
    rewrite: bool = True
    context: int = 1
    encoder_context: int = 0
    band_edges: tuple[float, ...] = ()
    banded_layers: int = 2
    embedding_weight: float = 0.2
    embedding_scale: float = 10.0
    smooth_embedding: bool = True
    norm_from_layer: int = 4
    norm_groups: int = 4
    dconv: DConvConfig = DConvConfig()
    dconv_in_encoder: bool = True
    dconv_in_decoder: bool = False
    rescale: float = 0.1

    @property
    def spectrum_channels(self) -> int:
        """Maps of a spectrogram per sound."""
        return self.audio_channels * (2 if self.complex_as_channels else 1)

    def dconv_of(self, layer: int) -> DConvConfig:
        """The residual branches of a layer, 0 the outermost."""
        return self.dconv


class HDemucsConfig(HybridConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hybrid Demucs. The defaults are those of the published package.

    hybrid: with the branch on the waveform.
    shifted_spectrogram: as two models of the 2021 challenge have it (`ShiftedFramePerHop`).
    attention_from_layer, lstm_from_layer: first layers whose residual branches have these.
    """

    hybrid: bool = True
    shifted_spectrogram: bool = False
    attention_from_layer: int = 4
    lstm_from_layer: int = 4

    def dconv_of(self, layer: int) -> DConvConfig:
        return msgspec.structs.replace(
            self.dconv,
            attention=layer >= self.attention_from_layer,
            lstm=layer >= self.lstm_from_layer,
        )


class HybridModel(Separator):
    """U-Nets over the spectrogram (`encoder`, `decoder`) and the waveform (`tencoder`, `tdecoder`).

    Shape: mix [batch, channels, time] -> [batch, sources, channels, time].
    """

    config: HybridConfig

    def __init__(self, config: HybridConfig, with_waveform: bool) -> None:
        super().__init__(config)
        self.sources = config.sources
        self.sample_rate = config.sample_rate
        self.audio_channels = config.audio_channels
        self.segment_samples = int(config.segment_seconds * config.sample_rate)
        self.spectrogram = PlainSpectrogram(config.n_fft)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        self.tencoder, self.tdecoder = nn.ModuleList(), nn.ModuleList()
        self.bins = [config.n_fft // 2]
        """Bins at the input of each layer; 1 for layers over time."""
        self._build_layers(config, with_waveform)
        if config.embedding_weight:
            self.freq_emb = ScaledEmbedding(
                self.bins[1], config.channels, config.embedding_scale, config.smooth_embedding
            )
        if config.rescale:
            rescale_convolutions(self, config.rescale)

    def _build_layers(self, config: HybridConfig, with_waveform: bool) -> None:
        spectrum = _Widths(config.spectrum_channels, config.channels)
        sound = _Widths(config.audio_channels, config.time_channels or config.channels)
        for index in range(config.depth):
            bins = self.bins[-1]
            plan = _plan(config, bins, index)
            if plan.over_bins and not plan.pads:  # the last bin, where the branches meet
                spectrum.after = sound.after = max(spectrum.after, sound.after)
            banded = bool(config.band_edges) and index < config.banded_layers
            self.encoder.append(_encoder(config, index, plan, spectrum, banded))
            self.decoder.insert(0, _decoder(config, index, plan, spectrum, banded))
            if with_waveform and plan.over_bins:
                time_plan = dataclasses.replace(
                    plan,
                    kernel_size=config.kernel_size,
                    over_bins=False,
                    pads=True,
                    only_strided=not plan.pads,
                )
                self.tencoder.append(_encoder(config, index, time_plan, sound, False))
                self.tdecoder.insert(0, _decoder(config, index, time_plan, sound, False))
            spectrum.advance(config.growth)
            sound.advance(config.growth)
            self.bins.append(1 if bins <= config.kernel_size else bins // config.stride)
        self.bottom_widths = spectrum.before, sound.before
        """Channels of the branches where they meet."""

    @abstractmethod
    def meet(self, x: Tensor, xt: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoders of the spectrum and the sound begin with, of what the encoders end."""

    def forward(self, mix: Tensor) -> Tensor:
        spectrum = self.spectrogram.forward(mix)
        maps = as_channels(spectrum) if self.config.complex_as_channels else spectrum.abs()
        x, level = normalized(maps)
        xt, sound_level = normalized(mix)
        x, xt = self._unet(x, xt)
        # One source after the other, so that all that is needed on the way stays small.
        spectra = self._spectra(spectrum, x.chunk(len(self.sources), dim=1), level)
        stems = torch.stack([self.spectrogram.inverse(z, mix.shape[-1]) for z in spectra], dim=1)
        if not self.tencoder:
            return stems
        sounds = xt.unflatten(1, (len(self.sources), -1))
        return stems + sounds * sound_level.std[:, None] + sound_level.mean[:, None]

    def _unet(self, x: Tensor, xt: Tensor) -> tuple[Tensor, Tensor]:
        """Maps [batch, channels, bins, frames] and sound [batch, channels, time], each to those of
        all sources."""
        skips: list[Tensor] = []
        time_skips: list[Tensor] = []
        lengths, time_lengths = [], []
        for index, encode in enumerate(self.encoder):
            inject = None
            lengths.append(x.shape[-1])
            if index < len(self.tencoder):
                time_encode = self.tencoder[index]
                assert isinstance(time_encode, EncoderLayer)
                time_lengths.append(xt.shape[-1])
                xt = time_encode(xt)
                if time_encode.plan.only_strided:
                    inject = xt
                else:
                    time_skips.append(xt)
            x = encode(x, inject)
            if index == 0 and self.config.embedding_weight:
                x = x + self.config.embedding_weight * self.freq_emb.weight.t()[:, :, None]
            skips.append(x)
        x, xt = self.meet(x, xt)
        for decode, time_decode in self._decoders():
            x, before = decode(x, skips.pop(), lengths.pop())
            if time_decode is None:
                continue
            if time_decode.plan.only_strided:
                xt, _ = time_decode(before[:, :, 0], None, time_lengths.pop())
            else:
                xt, _ = time_decode(xt, time_skips.pop(), time_lengths.pop())
        return x, xt

    def _decoders(self) -> Iterator[tuple[nn.Module, DecoderLayer | None]]:
        """Pairs of decoder layers in the order they run; the inner ones may be alone."""
        alone = len(self.decoder) - len(self.tdecoder)
        for index, decode in enumerate(self.decoder):
            time_decode = self.tdecoder[index - alone] if index >= alone else None
            assert time_decode is None or isinstance(time_decode, DecoderLayer)
            yield decode, time_decode

    def _spectra(self, mix: Tensor, maps: Sequence[Tensor], level: Level) -> Iterator[Tensor]:
        """Complex spectrograms [batch, channels, bins, frames] of each source's decoder maps.

        mix: the mixture's. level: of what the encoder got, which the maps get back.
        """
        config = self.config
        restored = (torch.addcmul(level.mean, each, level.std) for each in maps)
        training = config.training_wiener_iterations
        iterations = training if self.training else config.wiener_iterations
        if config.complex_as_channels:
            yield from (torch.complex(each[:, 0::2], each[:, 1::2]) for each in restored)
        elif iterations < 0:
            phase = mix / (MASK_FLOOR + mix.abs())
            yield from (phase * each for each in restored)
        else:
            together = torch.stack(list(restored), dim=1)
            yield from wiener_in_blocks(together, mix, iterations, config.wiener_residual).unbind(1)


class HDemucs(HybridModel):
    """Hybrid Demucs (v3): the branches meet at the last bin, with an LSTM and local attention."""

    system: ClassVar[str] = "hdemucs"
    config_type: ClassVar[type[msgspec.Struct]] = HDemucsConfig
    config: HDemucsConfig

    def __init__(self, config: HDemucsConfig) -> None:
        super().__init__(config, with_waveform=config.hybrid)
        if config.hybrid:
            convention = ShiftedFramePerHop if config.shifted_spectrogram else FramePerHop
            self.spectrogram = convention(config.n_fft)

    def meet(self, x: Tensor, xt: Tensor) -> tuple[Tensor, Tensor]:
        """Nothing: all goes through the skip connections."""
        return torch.zeros_like(x), torch.zeros_like(xt)


@dataclass(frozen=True)
class Level:
    """Mean and standard deviation per item, shaped to fit what they were taken of."""

    mean: Tensor
    std: Tensor


def normalized(x: Tensor) -> tuple[Tensor, Level]:
    """x [batch, ...] brought to mean 0 and deviation 1 per item, and how to undo it."""
    axes = tuple(range(1, x.dim()))
    std, mean = torch.std_mean(x, axes, keepdim=True)
    return (x - mean) / (LEVEL_FLOOR + std), Level(mean, std)


def as_channels(z: Tensor) -> Tensor:
    """Complex [batch, channels, ...] as real [batch, 2 * channels, ...]: real part, imaginary part,
    of one channel after the other."""
    return torch.stack([z.real, z.imag], dim=2).flatten(1, 2)


@dataclass
class _Widths:
    """Channels before and after a layer of one branch."""

    before: int
    after: int

    def advance(self, growth: float) -> None:
        """On to the next layer."""
        self.before, self.after = self.after, int(growth * self.after)


def _plan(config: HybridConfig, bins: int, index: int) -> LayerPlan:
    """Layer `index` of the spectrum's branch, at whose input there are so many bins."""
    over_bins, last = bins > 1, bins <= config.kernel_size
    over_time = 2 * config.time_stride
    return LayerPlan(
        kernel_size=config.kernel_size if not last else bins if over_bins else over_time,
        stride=config.stride if over_bins else config.time_stride,
        over_bins=over_bins,
        pads=not (over_bins and last),
        norm_groups=config.norm_groups if index >= config.norm_from_layer else 0,
        rewrite=config.rewrite,
    )


def _encoder(
    config: HybridConfig, index: int, plan: LayerPlan, widths: _Widths, banded: bool
) -> EncoderLayer | BandedEncoder:
    dconv = config.dconv_of(index) if config.dconv_in_encoder else None

    def layer(plan: LayerPlan) -> EncoderLayer:
        return EncoderLayer(widths.before, widths.after, plan, dconv, config.encoder_context)

    if not banded:
        return layer(plan)
    plan = dataclasses.replace(plan, pads=False)
    return BandedEncoder([layer(plan) for _ in (*config.band_edges, 1)], config.band_edges)


def _decoder(
    config: HybridConfig, index: int, plan: LayerPlan, widths: _Widths, banded: bool
) -> DecoderLayer | BandedDecoder:
    dconv = config.dconv_of(index) if config.dconv_in_decoder else None
    per_source = config.spectrum_channels if plan.over_bins else config.audio_channels
    after = widths.before if index else len(config.sources) * per_source

    def layer(plan: LayerPlan) -> DecoderLayer:
        return DecoderLayer(
            widths.after,
            after,
            plan,
            dconv,
            context=config.context,
            sees_bins=not banded,
            outermost=index == 0,
        )

    if not banded:
        return layer(plan)
    plan = dataclasses.replace(plan, pads=False)
    return BandedDecoder([layer(plan) for _ in (*config.band_edges, 1)], config.band_edges)
