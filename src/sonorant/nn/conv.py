"""Convolutions over time with the padding rules of the codecs, the same offline and live.

Source: padding of SEANet as used in EnCodec (arXiv 2210.13438, section 3.2) and Mimi
(arXiv 2410.00037, section 3.3.1). With effective kernel K = (kernel - 1) * dilation + 1 and
P = K - stride, a causal convolution pads P samples on the left, a centred one P - P // 2 on the
left and P // 2 on the right; both pad on the right what the last, partial frame lacks. A transposed
convolution trims P = kernel - stride samples of its output.

Each layer owns two forms of the same product and picks one by length: the direct convolution for
long inputs, one matrix product for the few frames of a live step, where the direct form is several
times slower on CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from sonorant.errors import ShapeError
from sonorant.nn.state import State, StreamingModule

PadMode = Literal["reflect", "zero", "replicate"]
Norm = Literal["none", "weight_norm", "time_group_norm"]

# Up to this many output frames the matrix form wins on CPU (benchmarks/convolution.py).
MATRIX_FORM_FRAMES = 16
GROUP_NORM_EPSILON = 1e-5  # the published models' GroupNorm


@dataclass(frozen=True)
class ConvStyle:
    """What all convolutions of one model share."""

    causal: bool
    pad_mode: PadMode
    norm: Norm


def pad_time(x: Tensor, left: int, right: int, mode: PadMode) -> Tensor:
    """Pad `[batch, channels, time]` on both sides of time.

    An input too short to be reflected first gets zeros on the right, and as many samples are cut
    off again afterwards, as in the published models.
    """
    if left == 0 and right == 0:
        return x
    if mode == "zero":
        return F.pad(x, (left, right))
    if mode == "replicate":
        return F.pad(x, (left, right), "replicate")
    missing = max(0, max(left, right) - x.shape[-1] + 1)
    padded = F.pad(F.pad(x, (0, missing)) if missing else x, (left, right), "reflect")
    return padded[..., : padded.shape[-1] - missing]


def _start(x: Tensor, length: int, mode: PadMode) -> Tensor:
    """The `length` samples that offline padding would put before the first live chunk."""
    if mode == "replicate":
        return x[..., :1].expand(-1, -1, length)
    return x[..., 1 : length + 1].flip(-1)


class StreamingConv1d(StreamingModule):
    """Convolution over time with the codecs' padding.

    Shape: x [batch, in_channels, time] -> [batch, out_channels, ceil(time / stride)].
    State: `past` [batch, in_channels, P], the last input samples; `started` [batch, 1] for paddings
    that depend on the first chunk. Only causal layers stream.
    A live chunk is a multiple of `stride` samples; one that is not ends the stream. In reflect mode
    the first live chunk holds more than P samples, unless the state is a low-latency one, which
    starts from zeros.
    Raises: ShapeError if a centred convolution is called live.

    >>> conv = StreamingConv1d(1, 1, kernel_size=3)
    >>> conv(torch.ones(1, 1, 4)).shape
    torch.Size([1, 1, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        dilation: int = 1,
        style: ConvStyle = ConvStyle(causal=True, pad_mode="reflect", norm="none"),
    ) -> None:
        super().__init__()
        self.style = style
        self.stride = stride
        self.span = (kernel_size - 1) * dilation + 1
        self.padding = self.span - stride
        conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, dilation=dilation)
        self.conv = weight_norm(conv) if style.norm == "weight_norm" else conv
        self.norm = _group_norm(out_channels, style)

    def fresh_state(self, batch_size: int) -> dict[str, Tensor]:
        like = self.conv.weight
        tensors = {"past": like.new_zeros(batch_size, self.conv.in_channels, self.padding)}
        if self.style.pad_mode != "zero":
            tensors["started"] = like.new_zeros(batch_size, 1, dtype=torch.bool)
        return tensors

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        return self.norm(self._convolve(self._pad(x, state)))

    def _pad(self, x: Tensor, state: State | None) -> Tensor:
        missing = -x.shape[-1] % self.stride
        if state is None:
            right = 0 if self.style.causal else self.padding // 2
            return pad_time(x, self.padding - right, right + missing, self.style.pad_mode)
        if not self.style.causal:
            raise ShapeError("a centred convolution looks ahead and cannot run live")
        slot = state[self]
        past = slot.past
        if self.style.pad_mode != "zero":
            if not state.low_latency and x.shape[-1] > self.padding:
                start = _start(x, self.padding, self.style.pad_mode)
                past = torch.where(slot.started[..., None], past, start)
            state.update(slot.started, torch.ones_like(slot.started))
        joined = torch.cat([past, x], dim=-1)
        state.update(slot.past, joined[..., joined.shape[-1] - self.padding :])
        return pad_time(joined, 0, missing, self.style.pad_mode)

    def _convolve(self, x: Tensor) -> Tensor:
        conv = self.conv
        frames = (x.shape[-1] - self.span) // self.stride + 1
        if not 1 < frames <= MATRIX_FORM_FRAMES or x.is_cuda:
            return F.conv1d(x, conv.weight, conv.bias, self.stride, dilation=conv.dilation)
        windows = x.unfold(-1, self.span, self.stride)[..., :: conv.dilation[0]]
        columns = windows.transpose(1, 2).flatten(2)
        return F.linear(columns, conv.weight.flatten(1), conv.bias).transpose(1, 2)


class StreamingConvTranspose1d(StreamingModule):
    """Transposed convolution over time, trimmed as the codecs do.

    Shape: x [batch, in_channels, frames] -> [batch, out_channels, frames * stride].
    State: `tail` [batch, out_channels, kernel_size - stride], the part of the output, without bias,
    that the next frames still add to. Only causal layers stream.
    Raises: ShapeError if a centred one is called live.

    `trim_right_ratio` is the share of the trimmed samples that a causal layer takes from the right.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        style: ConvStyle = ConvStyle(causal=True, pad_mode="reflect", norm="none"),
        trim_right_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        self.style = style
        self.stride = stride
        self.excess = kernel_size - stride
        if style.causal:
            self.trim_right = math.ceil(self.excess * trim_right_ratio)
        else:
            self.trim_right = self.excess // 2
        conv = nn.ConvTranspose1d(in_channels, out_channels, kernel_size, stride)
        self.conv = weight_norm(conv) if style.norm == "weight_norm" else conv
        self.norm = _group_norm(out_channels, style)

    def fresh_state(self, batch_size: int) -> dict[str, Tensor]:
        like = self.conv.weight
        return {"tail": like.new_zeros(batch_size, self.conv.out_channels, self.excess)}

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        if state is None:
            y = self.norm(self._convolve(x, with_bias=True))
            return y[..., self.excess - self.trim_right : y.shape[-1] - self.trim_right]
        if self.trim_right != self.excess:
            raise ShapeError("a transposed convolution that trims on the left cannot run live")
        tail = state[self].tail
        y = self._convolve(x, with_bias=False)
        y[..., : self.excess] += tail
        ready = x.shape[-1] * self.stride
        state.update(tail, y[..., ready:])
        y = y[..., :ready]
        return y if self.conv.bias is None else y + self.conv.bias[:, None]

    def _convolve(self, x: Tensor, with_bias: bool) -> Tensor:
        conv = self.conv
        bias = conv.bias if with_bias else None
        if x.shape[-1] > MATRIX_FORM_FRAMES or x.is_cuda:
            return F.conv_transpose1d(x, conv.weight, bias, self.stride)
        weight = conv.weight
        batch, _, frames = x.shape
        out_channels, kernel_size = weight.shape[1:]
        products = (x.transpose(1, 2) @ weight.flatten(1)).view(
            batch, frames, out_channels, kernel_size
        )
        y = _overlap_add(products, self.stride)
        return y if bias is None else y + bias[:, None]


def _overlap_add(products: Tensor, stride: int) -> Tensor:
    """Add up `[batch, frames, channels, kernel]` at steps of `stride` samples.

    Returns `[batch, channels, (frames - 1) * stride + kernel]`.
    """
    batch, frames, channels, kernel_size = products.shape
    shifts = -(-kernel_size // stride)
    products = F.pad(products, (0, shifts * stride - kernel_size)).permute(0, 2, 1, 3)
    y = products.new_zeros(batch, channels, frames + shifts - 1, stride)
    for shift in range(shifts):
        y[:, :, shift : shift + frames] += products[..., shift * stride : (shift + 1) * stride]
    return y.flatten(2)[..., : (frames - 1) * stride + kernel_size]


def _group_norm(channels: int, style: ConvStyle) -> nn.Module:
    """One-group normalisation over channels and time, or nothing.

    Raises: ShapeError for a causal layer, whose statistics would look ahead.
    """
    if style.norm != "time_group_norm":
        return nn.Identity()
    if style.causal:
        raise ShapeError("time_group_norm looks at the whole input and cannot be causal")
    return nn.GroupNorm(1, channels, eps=GROUP_NORM_EPSILON)
