"""Start a SEANet pair as a working transform codec, so that short trainings have a head start.

With random weights a SEANet pair first has to discover that sound can pass through it at all, which
takes thousands of steps. Here the first weights make it a block cosine transform: the strided
layers gather the samples of one hop in channels, the last one turns them into cosine coefficients,
the latent carries the lowest of these, and the decoder goes the same way back.

A signal passes an ELU almost unchanged as a pair of channels of opposite sign, for
(elu(x) - elu(-x)) / 2 = x - |x| x / 4 + ...: every signal stands twice, and is kept small. All
other channels start at random and are free to learn what the transform cannot do; training changes
everything.

The latent has no room for the coefficients of high frequencies. Of those it can carry the levels in
a few bands instead, measured on the way in and given to noise on the way out: `noise_bands`.

Own method. The cosine transform is the DCT-II, orthonormal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sonorant.errors import ConfigError
from sonorant.nn.conv import StreamingConv1d, StreamingConvTranspose1d
from sonorant.nn.lstm import SkipLSTM
from sonorant.nn.noise_bands import RATES, RECTIFIER_GAIN, NoiseBands, noise_bands
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

COEFFICIENT_SCALE = 0.125  # of coefficients beside samples: a steady tone adds up over one hop
TILT_BANDS = 16  # coefficients after which the latent's emphasis of high ones has doubled in power
BRANCH_SCALE = 1e-3  # what residual branches first add to the channels of the signal
FREE_SCALE = 0.1  # of the channels that no signal uses, at the decoder's start
CLOSED_GATE = -14.0  # bias of the LSTM's output gates on the signal: it adds nothing at first
OPEN_GATE = 6.0  # bias of a gate that lets almost everything through
HALF_OPEN_GATE = -3.0  # of the logarithm's output gates: its terms are no louder than the signal
LEVEL_SCALE = 0.5  # of a band's logarithm in the latent, beside the coefficients
QUIET_SCALE = 0.1  # of that logarithm on its way to the decoder's LSTM
FAINT_WEIGHT = 1e-5  # of channels that only the LSTM fills: weight norm cannot hold zeros
CELL_LEVEL = math.tanh(1.0)  # what an LSTM's full cell gives
GATES = ("input", "forget", "cell", "output")  # in the order of the weights' rows
FADE = 0.25  # of a frame, in which the noise of one gives way to the next


@torch.no_grad()
def start_as_transform(
    encoder: SEANetEncoder,
    decoder: SEANetDecoder,
    config: SEANetConfig,
    sample_rate: int,
    bands: int = 0,
) -> None:
    """Set the first weights of a causal mono pair with one residual block per stage.

    `bands` dimensions of the latent carry levels of noise, the others coefficients.
    Raises: ConfigError for other kinds of SEANet, or one too narrow for what it shall hold.
    """
    hop = math.prod(config.ratios)
    deepest = config.base_filters * 2 ** len(config.ratios)
    kept = min(config.dimension - bands, deepest // 2)
    _check(config, kept, bands)
    cosines = cosines_of(kept, hop)
    for module in (encoder, decoder):
        silence_biases(module)
    # Latents are of the size of the coefficients themselves, high ones raised.
    tilt = torch.sqrt(1 + torch.arange(kept) / TILT_BANDS) / (COEFFICIENT_SCALE * SIGNAL_SCALE)
    noise = noise_bands(bands, kept / hop * sample_rate / 2, sample_rate) if bands else None
    _start_encoder(encoder, config, cosines * COEFFICIENT_SCALE, tilt, noise)
    _start_decoder(decoder, config, cosines / COEFFICIENT_SCALE, tilt, noise)


def _check(config: SEANetConfig, kept: int, bands: int) -> None:
    fits = config.causal and config.channels == 1 and config.residual_layers == 1
    if not fits or config.skip != "convolution":
        raise ConfigError(
            "the transform start is for causal mono models with one residual block per stage and "
            "convolutional shortcuts; train this one from random weights"
        )
    samples, width = 1, config.base_filters
    for ratio in tuple(reversed(config.ratios))[:-1]:
        samples, width = samples * ratio, width * 2
        if 2 * samples > width:
            raise ConfigError(
                f"{width} channels cannot hold {samples} samples twice; raise base_filters for the "
                "transform start"
            )
    room = min((width - 2 * samples) // 4, (2 * width - 2 * kept) // (1 + RATES), kept - 1)
    if bands and (bands > room or len(config.ratios) < 2):
        raise ConfigError(f"there is no room for {bands} noise bands; raise base_filters")
    if bands and config.lstm_layers != 1:
        raise ConfigError(f"noise bands need one LSTM layer, not {config.lstm_layers}")


def _start_encoder(
    encoder: SEANetEncoder,
    config: SEANetConfig,
    cosines: Tensor,
    tilt: Tensor,
    noise: NoiseBands | None,
) -> None:
    layers = iter(encoder.layers)
    samples, detectors = 1, 0
    first = torch.full((1, 1, 1), SIGNAL_SCALE)
    let_through(
        next_layer(layers, StreamingConv1d), torch.cat([first, -first]), config.kernel_size - 1
    )
    ratios = tuple(reversed(config.ratios))
    for stage, ratio in enumerate(ratios):
        _pass_block(next_layer(layers, ResidualBlock), 2 * samples, detectors)
        # Channel `tap * samples + phase` takes that tap of channel `phase`.
        last = stage + 1 == len(ratios)
        gather = cosines if last else torch.eye(ratio * samples)
        weight = paired(gather.view(-1, ratio, samples).transpose(1, 2))
        layer = next_layer(layers, StreamingConv1d)
        let_through(layer, weight, ratio)
        if noise is not None and stage + 2 == len(ratios):
            filters = paired(_detectors(noise, ratio, samples))
            let_through(layer, filters, 0, len(weight))
            detectors = len(filters)
        if noise is not None and last:
            let_through(layer, _levels(noise, ratio), ratio, len(weight), 2 * samples)
        samples *= ratio
    _close(encoder, 2 * len(cosines))
    weight = torch.cat([torch.diag(tilt), -torch.diag(tilt)], dim=1) / 2
    if noise is not None:
        _set_logarithms(_lstm(encoder), noise, 2 * len(cosines))
        gate = 1 / (1 + math.exp(-HALF_OPEN_GATE))
        level = torch.cat([torch.zeros(1, 1), torch.full((1, RATES), LEVEL_SCALE / gate)], dim=1)
        weight = torch.block_diag(weight, *[level] * noise.count)
    let_through(next_layer(layers, StreamingConv1d), weight[..., None], config.last_kernel_size - 1)


def _detectors(noise: NoiseBands, ratio: int, samples: int) -> Tensor:
    """Band filters over all taps of a convolution that sees `samples` samples at each."""
    filters = noise.detectors(2 * ratio * samples) * (RECTIFIER_GAIN / SIGNAL_SCALE)
    return filters.view(-1, 2 * ratio, samples).transpose(1, 2)


def _levels(noise: NoiseBands, ratio: int) -> Tensor:
    """Weights `[bands * (1 + RATES), detectors, taps]`: each band's mean level from its detectors,
    and what its logarithm's terms in the LSTM first get beside: almost nothing."""
    band = torch.full((1 + RATES, 2), FAINT_WEIGHT)
    band[0] = 1 / ratio
    once = torch.block_diag(*[band] * noise.count)
    return torch.cat([once, once], dim=1)[..., None].expand(-1, -1, ratio)


def _set_logarithms(lstm: nn.LSTM, noise: NoiseBands, channel: int) -> None:
    """Each band's channels from `channel` on are its level and the terms of its logarithm."""
    for band in range(noise.count):
        level = channel + band * (1 + RATES)
        _close_gates(lstm, level, 1)
        for term, rate in enumerate(noise.rates):
            weights, biases = _open_unit(lstm, level + 1 + term)
            weights["cell"][level] = rate
            biases["output"].fill_(HALF_OPEN_GATE)


def _start_decoder(
    decoder: SEANetDecoder,
    config: SEANetConfig,
    cosines: Tensor,
    tilt: Tensor,
    noise: NoiseBands | None,
) -> None:
    layers = iter(decoder.layers)
    count, samples = cosines.shape
    first = next_layer(layers, StreamingConv1d)
    weight = torch.cat([torch.diag(1 / tilt), -torch.diag(1 / tilt)])
    if noise is not None:
        level = torch.tensor([[QUIET_SCALE / LEVEL_SCALE], [FAINT_WEIGHT]])
        weight = torch.block_diag(weight, *[level] * noise.count)
    set_weight(first.conv, first.conv.weight * FREE_SCALE)
    let_through(first, weight[..., None], config.kernel_size - 1)
    _close(decoder, 2 * count)
    if noise is not None:
        _set_exponentials(first, _lstm(decoder), noise, 2 * count)
    for stage, ratio in enumerate(config.ratios):
        samples //= ratio
        scatter = cosines if stage == 0 else torch.eye(ratio * samples)
        spread = paired(scatter.view(-1, ratio, samples).permute(2, 0, 1))
        layer = next_layer(layers, StreamingConvTranspose1d)
        spread_out(layer, spread.transpose(0, 1))
        if noise is not None and stage == 0:
            spread_out(layer, _carriers(noise, ratio, samples), 2 * count)
        _pass_block(next_layer(layers, ResidualBlock), 2 * samples)
    last = torch.full((1, 1, 1), 1 / SIGNAL_SCALE) / 2
    let_through(
        next_layer(layers, StreamingConv1d),
        torch.cat([last, -last], 1),
        config.last_kernel_size - 1,
    )


def _set_exponentials(
    first: StreamingConv1d, lstm: nn.LSTM, noise: NoiseBands, channel: int
) -> None:
    """Each band's channels from `channel` on are its logarithm and, by the LSTM, its level."""
    silence = 1 / (1 + math.exp(-noise.offset)) * CELL_LEVEL
    for band in range(noise.count):
        logarithm = channel + 2 * band
        _close_gates(lstm, logarithm, 1)
        weights, biases = _open_unit(lstm, logarithm + 1)
        biases["cell"].fill_(OPEN_GATE)
        weights["output"][logarithm] = noise.slope / QUIET_SCALE
        biases["output"].fill_(noise.offset)
        if first.conv.bias is not None:
            first.conv.bias[logarithm + 1] = -silence


def _carriers(noise: NoiseBands, ratio: int, samples: int) -> Tensor:
    """Weights `[2 * bands, outputs, taps]`: nothing for the logarithm, a carrier for the level."""
    hop = ratio * samples
    waves = noise.carriers(hop, round(FADE * hop)) * (SIGNAL_SCALE / CELL_LEVEL)
    waves = torch.stack([waves * FAINT_WEIGHT, waves], dim=1)
    positive = waves.reshape(-1, 2 * ratio, samples).transpose(1, 2)
    return torch.cat([positive, -positive], dim=1)


def _pass_block(block: ResidualBlock, samples: int, detectors: int = 0) -> None:
    """A residual block that at first hands on its first `samples` channels, and the `detectors`
    after them, to which its branch is deaf: they are loud."""
    shortcut = block.shortcut
    assert shortcut is not None
    signals = samples + detectors
    let_through(shortcut, torch.eye(signals)[..., None], 0)
    quiet_branch(block, signals, BRANCH_SCALE)
    first = next(layer for layer in block.block.layers if isinstance(layer, StreamingConv1d))
    full = first.conv.weight.clone()
    full[:, samples:signals] *= BRANCH_SCALE
    set_weight(first.conv, full)


def _close(model: nn.Module, signals: int) -> None:
    """Keep the LSTM from adding anything to the first `signals` channels."""
    for layer in model.modules():
        if isinstance(layer, SkipLSTM):
            _close_gates(layer.lstm, 0, signals)


def _close_gates(lstm: nn.LSTM, channel: int, channels: int) -> None:
    output_gates = 3 * lstm.hidden_size + channel
    bias = getattr(lstm, f"bias_ih_l{lstm.num_layers - 1}")
    bias[output_gates : output_gates + channels] = CLOSED_GATE


def _lstm(model: nn.Module) -> nn.LSTM:
    return next(layer.lstm for layer in model.modules() if isinstance(layer, SkipLSTM))


def _open_unit(lstm: nn.LSTM, unit: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A unit that hears nothing yet, takes all of its cell's input, and remembers nothing.

    Returns its rows of input weights and its biases, by gate.
    """
    input_weight, weight, input_bias, bias = lstm.all_weights[0]
    rows = dict(zip(GATES, range(unit, 4 * lstm.hidden_size, lstm.hidden_size), strict=True))
    for row in rows.values():
        for tensor in (input_weight, weight, input_bias, bias):
            tensor[row] = 0
    input_bias[rows["input"]] = OPEN_GATE
    input_bias[rows["forget"]] = CLOSED_GATE
    weights = {gate: input_weight[row] for gate, row in rows.items()}
    return weights, {gate: input_bias[row] for gate, row in rows.items()}
