"""Start a SEANet pair as a working transform codec, so that short trainings have a head start.

With random weights a SEANet pair first has to discover that sound can pass through it at all, which
takes thousands of steps. Here the first weights make it a block cosine transform: the strided
layers gather the samples of one hop in channels, the last one turns them into cosine coefficients,
the latent carries the lowest of these, and the decoder goes the same way back.

A signal passes an ELU almost unchanged as a pair of channels of opposite sign, for
(elu(x) - elu(-x)) / 2 = x - |x| x / 4 + ...: every signal stands twice, and is kept small. All
other channels start at random and are free to learn what the transform cannot do; training changes
everything.

Own method. The cosine transform is the DCT-II, orthonormal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from sonorant.errors import ConfigError
from sonorant.nn.conv import StreamingConv1d, StreamingConvTranspose1d
from sonorant.nn.lstm import SkipLSTM
from sonorant.nn.seanet import ResidualBlock, SEANetConfig, SEANetDecoder, SEANetEncoder

Layer = TypeVar("Layer", bound=nn.Module)

SIGNAL_SCALE = 0.2  # of samples inside the network: small enough for the ELU, as above
COEFFICIENT_SCALE = 0.125  # of coefficients beside samples: a steady tone adds up over one hop
TILT_BANDS = 16  # coefficients after which the latent's emphasis of high ones has doubled in power
BRANCH_SCALE = 1e-3  # what residual branches first add to the channels of the signal
CLOSED_GATE = -10.0  # bias of the LSTM's output gates on the signal: it adds nothing at first


@torch.no_grad()
def start_as_transform(
    encoder: SEANetEncoder, decoder: SEANetDecoder, config: SEANetConfig
) -> None:
    """Set the first weights of a causal mono pair with one residual block per stage.

    Raises: ConfigError for other kinds of SEANet, or one too narrow to hold a stage's samples.
    """
    _check(config)
    hop = math.prod(config.ratios)
    deepest = config.base_filters * 2 ** len(config.ratios)
    kept = min(config.dimension, deepest // 2)
    cosines = _cosines(kept, hop)
    # Latents are of the size of the coefficients themselves, high ones raised.
    tilt = torch.sqrt(1 + torch.arange(kept) / TILT_BANDS) / (COEFFICIENT_SCALE * SIGNAL_SCALE)
    _start_encoder(encoder, config, cosines * COEFFICIENT_SCALE, tilt)
    _start_decoder(decoder, config, cosines / COEFFICIENT_SCALE, tilt)


def _check(config: SEANetConfig) -> None:
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


def _cosines(count: int, length: int) -> Tensor:
    """The lowest `count` rows of the orthonormal DCT-II, `[count, length]`."""
    rows = torch.arange(count)[:, None]
    columns = torch.arange(length)[None]
    basis = torch.cos(math.pi / length * (columns + 0.5) * rows) * math.sqrt(2 / length)
    basis[0] /= math.sqrt(2)
    return basis


def _start_encoder(
    encoder: SEANetEncoder, config: SEANetConfig, cosines: Tensor, tilt: Tensor
) -> None:
    layers = iter(encoder.layers)
    samples = 1
    first = torch.full((1, 1, 1), SIGNAL_SCALE)
    _pass(_next(layers, StreamingConv1d), torch.cat([first, -first]), config.kernel_size - 1)
    ratios = tuple(reversed(config.ratios))
    for stage, ratio in enumerate(ratios):
        _pass_block(_next(layers, ResidualBlock), 2 * samples)
        # Channel `tap * samples + phase` takes that tap of channel `phase`.
        last = stage + 1 == len(ratios)
        gather = cosines if last else torch.eye(ratio * samples)
        weight = gather.view(-1, ratio, samples).transpose(1, 2)
        _pass(_next(layers, StreamingConv1d), _paired(weight), ratio)
        samples *= ratio
    _close(encoder, 2 * len(cosines))
    weight = torch.cat([torch.diag(tilt), -torch.diag(tilt)], dim=1)[..., None] / 2
    _pass(_next(layers, StreamingConv1d), weight, config.last_kernel_size - 1)


def _start_decoder(
    decoder: SEANetDecoder, config: SEANetConfig, cosines: Tensor, tilt: Tensor
) -> None:
    layers = iter(decoder.layers)
    count, samples = cosines.shape
    weight = torch.cat([torch.diag(1 / tilt), -torch.diag(1 / tilt)])[..., None]
    _pass(_next(layers, StreamingConv1d), weight, config.kernel_size - 1)
    _close(decoder, 2 * count)
    for stage, ratio in enumerate(config.ratios):
        samples //= ratio
        scatter = cosines if stage == 0 else torch.eye(ratio * samples)
        weight = scatter.view(-1, ratio, samples).permute(2, 0, 1)
        _spread(_next(layers, StreamingConvTranspose1d), _paired(weight).transpose(0, 1))
        _pass_block(_next(layers, ResidualBlock), 2 * samples)
    last = torch.full((1, 1, 1), 1 / SIGNAL_SCALE) / 2
    _pass(_next(layers, StreamingConv1d), torch.cat([last, -last], 1), config.last_kernel_size - 1)


def _paired(weight: Tensor) -> Tensor:
    """Weights `[2 out, 2 in, taps]` that see and give every signal with both signs."""
    positive = torch.cat([weight, -weight], dim=1) / 2
    return torch.cat([positive, -positive])


def _next(layers: Iterator[nn.Module], kind: type[Layer]) -> Layer:
    """The next layer of that kind."""
    return next(layer for layer in layers if isinstance(layer, kind))


def _pass(layer: StreamingConv1d, weight: Tensor, tap: int) -> None:
    """Let the first outputs see only `weight` [out, in, taps] of the first inputs from `tap` on."""
    conv = layer.conv
    outputs, inputs, taps = weight.shape
    full = conv.weight.clone()
    full[:outputs] = 0
    full[:outputs, :inputs, tap : tap + taps] = weight
    _set_weight(conv, full)
    if conv.bias is not None:
        conv.bias[:outputs] = 0


def _spread(layer: StreamingConvTranspose1d, weight: Tensor) -> None:
    """The same for a transposed convolution; `weight` [in, out, taps] fills its first taps."""
    conv = layer.conv
    inputs, outputs, taps = weight.shape
    full = conv.weight.clone()
    full[:, :outputs] = 0
    full[:inputs, :outputs, :taps] = weight
    _set_weight(conv, full)
    if conv.bias is not None:
        conv.bias[:outputs] = 0


def _set_weight(conv: nn.Conv1d | nn.ConvTranspose1d, weight: Tensor) -> None:
    if is_parametrized(conv):
        conv.weight = weight  # weight norm takes it apart
    else:
        conv.weight.copy_(weight)


def _pass_block(block: ResidualBlock, samples: int) -> None:
    """A residual block that at first hands its first `samples` channels on."""
    shortcut, last = block.shortcut, block.block.layers[-1]
    assert isinstance(shortcut, StreamingConv1d)
    assert isinstance(last, StreamingConv1d)
    _pass(shortcut, torch.eye(samples)[..., None], 0)
    branch = last.conv
    full = branch.weight.clone()
    full[:samples] *= BRANCH_SCALE
    _set_weight(branch, full)
    if branch.bias is not None:
        branch.bias[:samples] = 0


def _close(model: nn.Module, signals: int) -> None:
    """Keep the LSTM from adding anything to the first `signals` channels."""
    for layer in model.modules():
        if isinstance(layer, SkipLSTM):
            output_gates = 3 * layer.lstm.hidden_size
            bias = getattr(layer.lstm, f"bias_ih_l{layer.lstm.num_layers - 1}")
            bias[output_gates : output_gates + signals] = CLOSED_GATE
