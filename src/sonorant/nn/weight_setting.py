"""Setting the weights of SEANet layers by hand, for starts that already do something.

A signal passes an ELU almost unchanged as a pair of channels of opposite sign, for
(elu(x) - elu(-x)) / 2 = x - |x| x / 4 + ...: every signal stands twice, and is kept small.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from sonorant.nn.conv import StreamingConv1d, StreamingConvTranspose1d
from sonorant.nn.seanet import ResidualBlock

Layer = TypeVar("Layer", bound=nn.Module)

SIGNAL_SCALE = 0.2  # of samples inside the network: small enough for the ELU, as above


def cosines_of(count: int, length: int) -> Tensor:
    """The lowest `count` rows of the orthonormal DCT-II, `[count, length]`."""
    rows = torch.arange(count)[:, None]
    columns = torch.arange(length)[None]
    basis = torch.cos(math.pi / length * (columns + 0.5) * rows) * math.sqrt(2 / length)
    basis[0] /= math.sqrt(2)
    return basis


def silence_biases(model: nn.Module) -> None:
    """Without biases silence stays silence, however training moves the weights."""
    for name, parameter in model.named_parameters():
        if "bias" in name.rpartition(".")[2]:
            parameter.zero_()


def paired(weight: Tensor) -> Tensor:
    """Weights `[2 out, 2 in, taps]` that see and give every signal with both signs."""
    positive = torch.cat([weight, -weight], dim=1) / 2
    return torch.cat([positive, -positive])


def next_layer(layers: Iterator[nn.Module], kind: type[Layer]) -> Layer:
    """The next layer of that kind."""
    return next(layer for layer in layers if isinstance(layer, kind))


def let_through(
    layer: StreamingConv1d, weight: Tensor, tap: int, output: int = 0, first_input: int = 0
) -> None:
    """Let outputs from `output` on see only `weight` [out, in, taps], of inputs from `first_input`
    and taps from `tap` on."""
    conv = layer.conv
    outputs, inputs, taps = weight.shape
    rows = slice(output, output + outputs)
    full = conv.weight.clone()
    full[rows] = 0
    full[rows, first_input : first_input + inputs, tap : tap + taps] = weight
    set_weight(conv, full)
    if conv.bias is not None:
        conv.bias[rows] = 0


def spread_out(layer: StreamingConvTranspose1d, weight: Tensor, first_input: int = 0) -> None:
    """The same for a transposed convolution; `weight` [in, out, taps] fills its first taps."""
    conv = layer.conv
    inputs, outputs, taps = weight.shape
    full = conv.weight.clone()
    full[first_input:, :outputs] = 0
    full[first_input : first_input + inputs, :outputs, :taps] = weight
    set_weight(conv, full)
    if conv.bias is not None:
        conv.bias[:outputs] = 0


def quiet_branch(block: ResidualBlock, signals: int, scale: float) -> None:
    """Let the branch of a residual block add only `scale` of what it might to the first `signals`
    channels."""
    last = block.last.conv
    full = last.weight.clone()
    full[:signals] *= scale
    set_weight(last, full)
    if last.bias is not None:
        last.bias[:signals] = 0


def set_weight(conv: nn.Conv1d | nn.ConvTranspose1d, weight: Tensor) -> None:
    if is_parametrized(conv):
        conv.weight = weight  # weight norm takes it apart
    else:
        conv.weight.copy_(weight)
