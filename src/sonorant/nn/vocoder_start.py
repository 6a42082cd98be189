"""Start a SEANet pair as a vocoder: levels of noise bands and of low tones, and back.

At the rates of speech codecs no waveform can be kept. What is kept here is, of every latent step,
the level of each band of noise in a few slots of time, as a logarithm, and the level of low tones,
which tell the pitch. No layer but convolutions and ELUs is needed:

- elu(u) + elu(-u) rectifies (see `noise_bands`): a filter and its quadrature give a level;
- elu(-a e) = exp(-a e) - 1 saturates: its sum over rates a in geometric progression is, with its
  sign turned, a logarithm of e, 0 for silence;
- elu(x) + 1 = exp(x) for x < 0 is the way back. The 1 is what the same ELU makes of silence, which
  a channel of its own takes away again.

The decoder gives the levels to carriers that repeat with every latent step. Noise of the lower
bands and tones take the way of the transform start, cosines of what one step at the second slowest
rate holds, which pass ELUs in pairs of both signs. Higher bands, for which there are not enough
channels, pass as levels, which are positive, and meet their carriers one stage later.

Own method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sonorant.errors import ConfigError
from sonorant.nn.conv import StreamingConv1d, StreamingConvTranspose1d
from sonorant.nn.noise_bands import (
    LOUDEST_DB,
    RECTIFIER_GAIN,
    NoiseBands,
    elu_saturation,
    noise_bands,
)
from sonorant.nn.seanet import ResidualBlock, SEANetConfig, SEANetDecoder, SEANetEncoder
from sonorant.nn.weight_setting import (
    SIGNAL_SCALE,
    cosines_of,
    let_through,
    next_layer,
    paired,
    quiet_branch,
    set_weight,
    silence_biases,
    spread_out,
)

COEFFICIENT_SCALE = 0.125  # of coefficients beside samples: a steady tone adds up
LOUDEST = 10 ** (LOUDEST_DB / 20)  # root mean square of a band at which its exponential is 1
TONE_GAIN = 100.0  # of a tone's amplitude before it is rectified; its square range ends at -40 dB
TONE_SCALE = 0.5  # of a tone's level in the latent, beside the logarithms
TONE_SLOPE = 4 / math.pi * 0.85  # of both rectified quadratures, over what ordinary levels take
CARRIERS = 4  # steps after which the carriers of the high bands repeat
FREE_SCALE = 0.1  # of the decoder's channels that no signal uses
BRANCH_SCALE = 1e-3  # what residual branches of the decoder first add to signals
FADE = 0.5  # of a slot, and of a step, in which one level gives way to the next


@dataclass(frozen=True)
class Vocoder:
    """What the latent carries, in this order: of each band the level in each slot, then the tones.

    bands: of noise. slots: of time in one latent step. tones: how many, from the second multiple of
    the latent rate on; the noise begins above them.
    """

    config: SEANetConfig
    sample_rate: int
    bands: int
    slots: int
    tones: int

    def __post_init__(self) -> None:
        config = self.config
        fits = config.causal and config.channels == 1 and len(config.ratios) >= 3
        if not fits or config.skip != "identity" or config.lstm_layers or config.norm != "none":
            raise ConfigError(
                "the vocoder start is for causal mono models without norm or LSTM, with three or "
                "more ratios and unchanged shortcuts"
            )
        if self.bands < 1 or self.slots < 1 or self.tones < 2 or self.steps % self.slots:
            raise ConfigError(
                f"the vocoder start needs noise bands, two or more tones, and slots that divide "
                f"{self.steps} steps"
            )
        narrowest = 2 * self.inner // config.ratios[1]
        rows = self.bands * self.slots
        needed = [
            (self.dimensions, config.dimension),
            (2 * narrowest, self.width(2)),
            (4 * self.bands + 2 * self.low_cosines, self.width(1)),
            (rows * len(self.noise.rates) + 4 * self.tones, self.width(0)),
            (2 * self.cosines + CARRIERS * self.high_bands, self.width(1)),
        ]
        for channels, available in needed:
            if channels > available:
                raise ConfigError(
                    f"{available} channels cannot hold the {channels} of the vocoder start; take "
                    "fewer bands or tones, or raise base_filters"
                )

    def width(self, stage: int) -> int:
        """Channels after so many of the decoder's stages."""
        return self.config.base_filters * 2 ** (len(self.config.ratios) - stage)

    @property
    def steps(self) -> int:
        """Steps at the second slowest rate in one latent step."""
        return self.config.ratios[0]

    @property
    def inner(self) -> int:
        """Samples in one of these steps."""
        return math.prod(self.config.ratios[1:])

    @property
    def hop(self) -> int:
        return self.steps * self.inner

    @property
    def dimensions(self) -> int:
        return self.bands * self.slots + self.tones

    @property
    def tones_hz(self) -> Tensor:
        return (torch.arange(self.tones) + 2) * (self.sample_rate / self.hop)

    @property
    def noise(self) -> NoiseBands:
        lowest = (self.tones + 2.5) * self.sample_rate / self.hop
        return noise_bands(self.bands, lowest, self.sample_rate, elu_saturation)

    @property
    def low_cosines(self) -> int:
        """Cosines of one step that the tones reach into."""
        return math.ceil(2 * self.inner / self.sample_rate * float(self.tones_hz[-1])) + 1

    @property
    def cosines(self) -> int:
        """Cosines of one step that the decoder has channels for, beside the high bands."""
        return 3 * self.width(1) // 8

    @property
    def high_bands(self) -> int:
        """Bands above those cosines, at least by their middle."""
        edges = torch.tensor(self.noise.edges_hz)
        highest = self.cosines / self.inner * self.sample_rate / 2
        return int(((edges[1:] + edges[:-1]) / 2 > highest).sum())


@torch.no_grad()
def start_as_vocoder(encoder: SEANetEncoder, decoder: SEANetDecoder, vocoder: Vocoder) -> None:
    """Set the first weights of a pair. Latents have `vocoder.dimensions`; others are 0."""
    for module in (encoder, decoder):
        silence_biases(module)
    _start_encoder(encoder, vocoder)
    _start_decoder(decoder, vocoder)


# -- encoder --------------------------------------------------------------------------------------


def _start_encoder(encoder: SEANetEncoder, vocoder: Vocoder) -> None:
    config = vocoder.config
    layers = iter(encoder.layers)
    samples = 1
    first = torch.full((1, 1, 1), SIGNAL_SCALE)
    opening = next_layer(layers, StreamingConv1d)
    let_through(opening, torch.cat([first, -first]), config.kernel_size - 1)
    ratios = tuple(reversed(config.ratios))
    for ratio in ratios[:-2]:
        quiet_branch(next_layer(layers, ResidualBlock), 2 * samples, 0.0)
        gather = torch.eye(ratio * samples).view(-1, ratio, samples).transpose(1, 2)
        let_through(next_layer(layers, StreamingConv1d), paired(gather), ratio)
        samples *= ratio
    quiet_branch(next_layer(layers, ResidualBlock), 2 * samples, 0.0)
    detect = next_layer(layers, StreamingConv1d)
    filters, cosines = _detectors(vocoder, ratios[-2], samples)
    let_through(detect, filters, 0)
    let_through(detect, cosines, ratios[-2], len(filters))
    signals = len(filters) + len(cosines)
    quiet_branch(next_layer(layers, ResidualBlock), signals, 0.0)
    collect = next_layer(layers, StreamingConv1d)
    terms, tones = _terms(vocoder), _tone_filters(vocoder)
    let_through(collect, terms, ratios[-1])
    let_through(collect, tones, 0, len(terms), len(filters))
    last = next_layer(layers, StreamingConv1d)
    rates = len(vocoder.noise.rates)
    levels = torch.block_diag(*[-torch.ones(1, rates)] * (vocoder.bands * vocoder.slots))
    sums = torch.eye(vocoder.tones).repeat(1, 4) * TONE_SCALE
    weight = torch.zeros_like(last.conv.weight)
    weight[: vocoder.dimensions, : len(terms) + len(tones), -1] = torch.block_diag(levels, sums)
    set_weight(last.conv, weight)


def _detectors(vocoder: Vocoder, ratio: int, samples: int) -> tuple[Tensor, Tensor]:
    """Weights of the second last strided layer: the bands' filters over all its taps, and the low
    cosines of its own samples."""
    filters = vocoder.noise.detectors(2 * ratio * samples) * (RECTIFIER_GAIN / SIGNAL_SCALE)
    cosines = cosines_of(vocoder.low_cosines, ratio * samples) * COEFFICIENT_SCALE
    return (
        paired(filters.view(-1, 2 * ratio, samples).transpose(1, 2)),
        paired(cosines.view(-1, ratio, samples).transpose(1, 2)),
    )


def _terms(vocoder: Vocoder) -> Tensor:
    """Weights `[bands * slots * rates, detectors, steps]`: each band's mean level in each slot,
    times each rate, with its sign turned."""
    length = vocoder.steps // vocoder.slots
    rates = torch.tensor(vocoder.noise.rates) / length
    terms = torch.zeros(vocoder.bands, vocoder.slots, len(rates), 4 * vocoder.bands, vocoder.steps)
    for band in range(vocoder.bands):
        for slot in range(vocoder.slots):
            for quadrature in (0, 1):
                for sign in (0, 1):
                    detector = 2 * (sign * vocoder.bands + band) + quadrature
                    steps = slice(slot * length, (slot + 1) * length)
                    terms[band, slot, :, detector, steps] = -rates[:, None]
    return terms.flatten(0, 2)


def _tone_filters(vocoder: Vocoder) -> Tensor:
    """Weights `[4 * tones, low cosines of both signs, taps]`: each tone's amplitude, both
    quadratures with both signs, over a window of two latent steps."""
    length = 2 * vocoder.hop
    time = torch.arange(length)
    window = torch.hann_window(length)
    phase = 2 * math.pi / vocoder.sample_rate * vocoder.tones_hz[:, None] * time
    gain = TONE_GAIN * 2 / float(window.sum()) / (COEFFICIENT_SCALE * SIGNAL_SCALE)
    filters = torch.cat([window * phase.cos(), window * phase.sin()]) * gain
    cosines = cosines_of(vocoder.low_cosines, vocoder.inner)
    by_step = filters.view(len(filters), -1, vocoder.inner)
    return paired(torch.einsum("fsn,cn->fcs", by_step, cosines))


# -- decoder --------------------------------------------------------------------------------------


def _start_decoder(decoder: SEANetDecoder, vocoder: Vocoder) -> None:
    config, noise = vocoder.config, vocoder.noise
    layers = iter(decoder.layers)
    rows = vocoder.bands * vocoder.slots
    first = next_layer(layers, StreamingConv1d)
    exponents = torch.zeros(rows + 1, vocoder.dimensions)
    exponents[:rows, :rows] = noise.slope * torch.eye(rows)
    tones = torch.zeros(vocoder.tones, vocoder.dimensions)
    tones[:, rows:] = torch.eye(vocoder.tones) / (TONE_SLOPE * TONE_GAIN * TONE_SCALE)
    set_weight(first.conv, first.conv.weight * FREE_SCALE)
    let_through(first, torch.cat([exponents, tones])[..., None], config.kernel_size - 1)
    assert first.conv.bias is not None
    first.conv.bias[: rows + 1] = noise.offset - math.log(LOUDEST)
    _start_carriers(next_layer(layers, StreamingConvTranspose1d), vocoder)
    quiet_branch(
        next_layer(layers, ResidualBlock),
        2 * vocoder.cosines + CARRIERS * vocoder.high_bands,
        BRANCH_SCALE,
    )
    samples = vocoder.inner // config.ratios[1]
    _start_high_carriers(next_layer(layers, StreamingConvTranspose1d), vocoder)
    quiet_branch(next_layer(layers, ResidualBlock), 2 * samples, BRANCH_SCALE)
    for ratio in config.ratios[2:]:
        samples //= ratio
        scatter = torch.eye(ratio * samples).view(-1, ratio, samples).permute(2, 0, 1)
        layer = next_layer(layers, StreamingConvTranspose1d)
        spread_out(layer, paired(scatter).transpose(0, 1))
        quiet_branch(next_layer(layers, ResidualBlock), 2 * samples, BRANCH_SCALE)
    last = torch.full((1, 1, 1), 1 / SIGNAL_SCALE) / 2
    closing = next_layer(layers, StreamingConv1d)
    let_through(closing, torch.cat([last, -last], 1), config.last_kernel_size - 1)


def _start_carriers(layer: StreamingConvTranspose1d, vocoder: Vocoder) -> None:
    """Exponentials and tones to cosines of both signs, and to levels of the high bands."""
    low = vocoder.bands - vocoder.high_bands
    noise = vocoder.noise.noise(vocoder.hop).repeat(1, 2)[:, None] * _slot_windows(vocoder)
    waves = (noise * LOUDEST)[:low]  # [bands, slots, samples]
    order = torch.arange(vocoder.tones)
    # Neighbours in quadrature to what lies between them: together they keep a steady amplitude.
    time = torch.arange(2 * vocoder.hop)
    phase = 2 * math.pi / vocoder.sample_rate * vocoder.tones_hz[:, None] * time
    steady = torch.sin(phase + math.pi / 2 * order[:, None] ** 2)
    tones = steady * _window(
        vocoder.hop, round(FADE * vocoder.hop / vocoder.slots), 2 * vocoder.hop
    )
    cosines = cosines_of(vocoder.cosines, vocoder.inner) * (COEFFICIENT_SCALE * SIGNAL_SCALE)
    spectra = [
        torch.einsum("wsn,cn->wcs", each.view(len(each), -1, vocoder.inner), cosines)
        for each in (waves.flatten(0, 1), tones)
    ]
    rows, channels = vocoder.bands * vocoder.slots, vocoder.cosines
    weight = layer.conv.weight * FREE_SCALE
    weight[: rows + 1] = 0  # in silence these channels are not 0: no other may hear them
    weight[:, : 2 * channels + CARRIERS * vocoder.high_bands] = 0
    exponentials = torch.zeros(rows, 2 * channels + CARRIERS * vocoder.high_bands, weight.shape[2])
    exponentials[: len(spectra[0]), : 2 * channels] = torch.cat([spectra[0], -spectra[0]], 1)
    exponentials[len(spectra[0]) :, 2 * channels :] = _high_levels(vocoder)
    weight[:rows, : exponentials.shape[1]] = exponentials
    weight[rows, : exponentials.shape[1]] = -exponentials.sum(dim=0)
    weight[rows + 1 : rows + 1 + vocoder.tones, : 2 * channels] = torch.cat(
        [spectra[1], -spectra[1]], 1
    )
    set_weight(layer.conv, weight)


def _high_levels(vocoder: Vocoder) -> Tensor:
    """Weights `[high bands * slots, high bands * carriers, taps]`: a slot's level in its steps, to
    each step's carrier in turn."""
    length = vocoder.steps // vocoder.slots
    weight = torch.zeros(
        vocoder.high_bands, vocoder.slots, vocoder.high_bands, CARRIERS, 2 * vocoder.steps
    )
    for band in range(vocoder.high_bands):
        for slot in range(vocoder.slots):
            for step in range(slot * length, (slot + 1) * length):
                weight[band, slot, band, step % CARRIERS, step] = 1
    return weight.flatten(2, 3).flatten(0, 1)


def _start_high_carriers(layer: StreamingConvTranspose1d, vocoder: Vocoder) -> None:
    """Cosines to samples, and the high bands' levels to noise."""
    ratio = vocoder.config.ratios[1]
    samples = vocoder.inner // ratio
    cosines = cosines_of(vocoder.cosines, vocoder.inner) / COEFFICIENT_SCALE
    spread = paired(cosines.view(-1, ratio, samples).permute(2, 0, 1)).transpose(0, 1)
    noise = vocoder.noise.noise(CARRIERS * vocoder.inner)[-vocoder.high_bands :]
    window = _window(vocoder.inner, round(FADE * vocoder.inner), 2 * vocoder.inner)
    waves = torch.stack(
        [
            noise.roll(-carrier * vocoder.inner, 1)[:, : 2 * vocoder.inner]
            for carrier in range(CARRIERS)
        ],
        dim=1,
    )
    waves = (waves * window * (LOUDEST * SIGNAL_SCALE)).flatten(0, 1)
    waves = waves.view(-1, 2 * ratio, samples).transpose(1, 2)
    weight = layer.conv.weight * FREE_SCALE
    weight[:, : 2 * samples] = 0
    weight[: len(spread), : 2 * samples, :ratio] = spread
    high = slice(len(spread), len(spread) + len(waves))
    weight[high, : 2 * samples] = torch.cat([waves, -waves], dim=1)
    set_weight(layer.conv, weight)


def _slot_windows(vocoder: Vocoder) -> Tensor:
    """`[slots, samples]` over two latent steps; they add up to 1 from step to step."""
    slot = vocoder.hop // vocoder.slots
    window = _window(slot, round(FADE * slot), 2 * vocoder.hop)
    return torch.stack([window.roll(index * slot) for index in range(vocoder.slots)])


def _window(length: int, fade: int, total: int) -> Tensor:
    """1 for `length` samples, less what it fades in over, and fading out after them."""
    ramp = (torch.arange(fade) + 0.5) / fade
    window = torch.zeros(total)
    window[:length] = 1
    window[:fade] = ramp
    window[length : length + fade] = 1 - ramp
    return window
