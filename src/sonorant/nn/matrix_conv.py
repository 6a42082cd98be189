"""Convolutions over time as matrix products on time-major memory, for inference on CPU.

With sound laid out as `[batch, time, channels]`, every tap of a convolution is one matrix product
on a shifted view, a strided convolution whose kernel spans two strides is a filter of two taps over
blocks of `stride` samples, and so is its transpose, whose output needs no overlap-add. Nothing is
copied, and the products run near the processor's peak, which the direct form does not reach for
strided, transposed and short inputs.

Two-tap filters of many frames use the fast algorithm F(2, 2) of Winograd ("Arithmetic Complexity of
Computations", 1980): two outputs for three products instead of four, exact up to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

# Below this many frames reading the weights costs more than the products that F(2, 2) saves.
FAST_FILTER_FRAMES = 24
# Up to this many frames all taps go in one product: the windows are small, and calls cost more.
FEW_FRAMES = 16


@dataclass(frozen=True)
class TwoTaps:
    """A filter y[t] = x[t + 1] @ current + x[t] @ previous over blocks."""

    current: Tensor
    previous: Tensor
    both: Tensor

    @classmethod
    def of(cls, current: Tensor, previous: Tensor) -> TwoTaps:
        """Shapes: current, previous [in, out]."""
        return cls(current.contiguous(), previous.contiguous(), (current + previous).contiguous())

    def __call__(self, blocks: Tensor, bias: Tensor) -> Tensor:
        """Shape: blocks [batch, frames + 1, in], bias [out] -> [batch, frames, out]."""
        batch, frames = blocks.shape[0], blocks.shape[1] - 1
        y = blocks.new_empty(batch, frames, self.current.shape[1])
        for row in range(batch):
            if frames >= FAST_FILTER_FRAMES:
                self._fast(blocks[row], bias, y[row])
            else:
                self._plain(blocks[row], bias, y[row])
        return y

    def _plain(self, x: Tensor, bias: Tensor, y: Tensor) -> None:
        torch.addmm(bias, x[:-1], self.previous, out=y)
        y.addmm_(x[1:], self.current)

    def _fast(self, x: Tensor, bias: Tensor, y: Tensor) -> None:
        pairs = len(y) // 2
        before, middle, after = (x[first : first + 2 * pairs : 2] for first in range(3))
        shared = torch.addmm(bias, middle, self.both)
        torch.addmm(shared, before - middle, self.previous, out=y[0 : 2 * pairs : 2])
        torch.addmm(shared, after - middle, self.current, out=y[1 : 2 * pairs : 2])
        if len(y) % 2:
            self._plain(x[-2:], bias, y[-1:])


class PackedWeight:
    """Weights rearranged for the matrix forms, kept while the layer's weight stays the same.

    A weight under weight norm is computed anew at every access, and so is packed anew.
    """

    def __init__(self) -> None:
        self._source: Tensor | None = None
        self._version = -1
        self._taps: list[Tensor] | TwoTaps | Tensor | None = None

    def conv(self, conv: nn.Conv1d) -> list[Tensor] | TwoTaps | Tensor:
        """Two block taps when the kernel spans two strides, else one matrix per tap, else all."""
        weight = conv.weight
        if self._fresh(conv, weight) or self._taps is None:
            stride, kernel_size = conv.stride[0], conv.kernel_size[0]
            by_time = weight.permute(2, 1, 0)  # [kernel, in, out]
            if stride == 1:
                self._taps = [tap.contiguous() for tap in by_time]
            elif kernel_size == 2 * stride:
                self._taps = TwoTaps.of(
                    current=by_time[stride:].flatten(0, 1), previous=by_time[:stride].flatten(0, 1)
                )
            else:
                self._taps = weight.flatten(1).t().contiguous()
        return self._taps

    def transposed(self, conv: nn.ConvTranspose1d) -> TwoTaps:
        """Block taps of a transposed convolution whose kernel spans two strides."""
        weight = conv.weight
        if self._fresh(conv, weight) or not isinstance(self._taps, TwoTaps):
            stride = conv.stride[0]
            by_time = weight.permute(0, 2, 1)  # [in, kernel, out]
            self._taps = TwoTaps.of(
                current=by_time[:, :stride].flatten(1), previous=by_time[:, stride:].flatten(1)
            )
        return self._taps

    def _fresh(self, module: nn.Module, weight: Tensor) -> bool:
        """Whether the weight differs from the one that was packed."""
        if is_parametrized(module) or weight.is_inference():
            return True  # made anew at every access, or without a version to tell changes by
        changed = self._source is not weight or self._version != weight._version
        self._source, self._version = weight, weight._version
        return changed


def conv_time_major(x: Tensor, conv: nn.Conv1d, packed: PackedWeight) -> Tensor:
    """The convolution `conv`, without padding.

    Shape: x [batch, time, in] -> [batch, frames, out].
    """
    stride, dilation, kernel_size = conv.stride[0], conv.dilation[0], conv.kernel_size[0]
    span = (kernel_size - 1) * dilation + 1
    frames = (x.shape[1] - span) // stride + 1
    bias = _bias(conv, conv.out_channels)
    taps = packed.conv(conv)
    if isinstance(taps, TwoTaps):
        blocks = x[:, : (frames + 1) * stride].contiguous()
        return taps(blocks.view(x.shape[0], frames + 1, -1), bias)
    few = kernel_size > 1 and (frames <= FEW_FRAMES or conv.in_channels == 1)
    if isinstance(taps, list) and not few:
        y = x.new_empty(x.shape[0], frames, conv.out_channels)
        for row in range(x.shape[0]):
            torch.addmm(bias, x[row, :frames], taps[0], out=y[row])
            for index, tap in enumerate(taps[1:], start=1):
                start = index * dilation
                y[row].addmm_(x[row, start : start + frames], tap)
        return y
    windows = x.unfold(1, span, stride)[..., ::dilation].flatten(2)
    return nn.functional.linear(windows, conv.weight.flatten(1), conv.bias)


def pointwise_sum(terms: list[tuple[nn.Conv1d, PackedWeight, Tensor]]) -> Tensor:
    """The sum of convolutions of one tap, each of its own input, in one accumulator.

    Shape: inputs [batch, time, in] -> [batch, time, out].
    """
    first = terms[0][0]
    bias = torch.stack([_bias(conv, conv.out_channels) for conv, _, _ in terms]).sum(dim=0)
    batch, time = terms[0][2].shape[:2]
    y = terms[0][2].new_empty(batch, time, first.out_channels)
    for row in range(batch):
        for index, (conv, packed, x) in enumerate(terms):
            taps = packed.conv(conv)
            assert isinstance(taps, list)
            if index == 0:
                torch.addmm(bias, x[row], taps[0], out=y[row])
            else:
                y[row].addmm_(x[row], taps[0])
    return y


def conv_transpose_time_major(x: Tensor, conv: nn.ConvTranspose1d, packed: PackedWeight) -> Tensor:
    """The transposed convolution `conv`, untrimmed and without bias.

    Its kernel spans two strides.
    Shape: x [batch, frames, in] -> [batch, (frames + 1) * stride, out].
    """
    padded = nn.functional.pad(x, (0, 0, 1, 1))
    taps = packed.transposed(conv)
    y = taps(padded, x.new_zeros(taps.current.shape[1]))
    return y.view(x.shape[0], -1, conv.out_channels)


def _bias(conv: nn.Conv1d, channels: int) -> Tensor:
    return conv.weight.new_zeros(channels) if conv.bias is None else conv.bias
