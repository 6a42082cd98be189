"""Convolutions over time with the padding rules of the codecs, the same offline and live.

Source: padding of SEANet as used in EnCodec (arXiv 2210.13438, section 3.2) and Mimi
(arXiv 2410.00037, section 3.3.1). With effective kernel K = (kernel - 1) * dilation + 1 and
P = K - stride, a causal convolution pads P samples on the left, a centred one P - P // 2 on the
left and P // 2 on the right; both pad on the right what the last, partial frame lacks. A transposed
convolution trims P = kernel - stride samples of its output.

Each layer owns two forms of the same product: the direct convolution, which trains and runs on
accelerators, and matrix products on time-major memory (`matrix_conv.py`), several times faster on
CPU for live steps and for strided and transposed layers of any length. Sound passes between layers
as `[batch, channels, time]` either way; the matrix form only lays it out in memory by time, so that
layers in a row convert nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from sonorant.errors import ShapeError
from sonorant.nn.elu import ELU
from sonorant.nn.matrix_conv import (
    FEW_FRAMES,
    PackedWeight,
    conv_time_major,
    conv_transpose_time_major,
    transposed_taps,
)
from sonorant.nn.norm import TimeGroupNorm
from sonorant.nn.state import State, StreamingModule

PadMode = Literal["reflect", "zero", "replicate"]
Norm = Literal["none", "weight_norm", "time_group_norm"]

GROUP_NORM_EPSILON = 1e-5  # the published models' GroupNorm


@dataclass(frozen=True)
class ConvStyle:
    """What all convolutions of one model share."""

    causal: bool
    pad_mode: PadMode
    norm: Norm


def pad_time(x: Tensor, left: int, right: int, mode: PadMode, dim: int = -1) -> Tensor:
    """Pad a sound on both sides along its time dimension `dim`.

    An input too short to be reflected first gets zeros on the right, and as many samples are cut
    off again afterwards, as in the published models.
    """
    if left == 0 and right == 0:
        return x
    missing = max(0, max(left, right) - x.shape[dim] + 1) if mode == "reflect" else 0
    if missing:
        x = torch.cat([x, _zeros(x, missing, dim)], dim)
    padded = torch.cat([_start(x, left, mode, dim), x, _after(x, right, mode, dim)], dim)
    return padded.narrow(dim, 0, padded.shape[dim] - missing)


def _zeros(x: Tensor, length: int, dim: int) -> Tensor:
    shape = list(x.shape)
    shape[dim] = length
    return x.new_zeros(shape)


def _repeat(x: Tensor, length: int, dim: int) -> Tensor:
    shape = [-1] * x.dim()
    shape[dim] = length
    return x.expand(shape)


def _start(x: Tensor, length: int, mode: PadMode, dim: int) -> Tensor:
    """The `length` samples that padding puts before a sound longer than that."""
    if mode == "zero":
        return _zeros(x, length, dim)
    if mode == "replicate":
        return _repeat(x.narrow(dim, 0, 1), length, dim)
    return x.narrow(dim, 1, length).flip(dim)


def _after(x: Tensor, length: int, mode: PadMode, dim: int) -> Tensor:
    """The `length` samples that padding puts after a sound longer than that."""
    if mode == "zero":
        return _zeros(x, length, dim)
    if mode == "replicate":
        return _repeat(x.narrow(dim, x.shape[dim] - 1, 1), length, dim)
    return x.narrow(dim, x.shape[dim] - 1 - length, length).flip(dim)


def uses_matrix_form(x: Tensor) -> bool:
    """Whether layers compute on `x` as matrix products: on CPU, without gradients."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


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
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.style = style
        self.stride = stride
        self.span = (kernel_size - 1) * dilation + 1
        self.padding = self.span - stride
        conv = nn.Conv1d(
            in_channels, out_channels, kernel_size, stride, dilation=dilation, bias=bias
        )
        self.conv = weight_norm(conv) if style.norm == "weight_norm" else conv
        self.norm = _group_norm(out_channels, style)
        self.packed = PackedWeight()
        self.live_product: nn.Module | None = None

    def fresh_state(self, batch_size: int) -> dict[str, Tensor]:
        like = self.conv.weight
        tensors = {"past": like.new_zeros(batch_size, self.conv.in_channels, self.padding)}
        if self.style.pad_mode != "zero":
            tensors["started"] = like.new_zeros(batch_size, 1, dtype=torch.bool)
        return tensors

    def forward(
        self, x: Tensor, state: State | None = None, activation: ELU | None = None
    ) -> Tensor:
        """`activation` is applied to the input first, in the pass that pads it."""
        if self.live_product is not None and x.shape[-1] <= FEW_FRAMES * self.stride:
            padded = self._pad(x.transpose(1, 2), state, 1, activation)
            channels = self.conv.in_channels
            windows = padded.flatten(1).unfold(1, self.span * channels, self.stride * channels)
            y = self.live_product(windows).transpose(1, 2)
        elif uses_matrix_form(x):
            padded = self._pad(x.transpose(1, 2), state, 1, activation)
            y = conv_time_major(padded, self.conv, self.packed).transpose(1, 2)
        else:
            y = self.conv(self._pad(x, state, 2, activation))
        return self.norm(y)

    def add_live_product(self) -> None:
        """Also hold the weight as one linear layer, which few frames then take.

        Linear layers can be packed (`linear.py`), and the time of few frames goes into reading
        weights. The layer must not be trained from here on. Without dilation only.
        """
        by_time = self.conv.weight.transpose(1, 2)  # [out, kernel, in]
        self.live_product = _linear(by_time.flatten(1), self.conv.bias)

    def _pad(self, x: Tensor, state: State | None, dim: int, activation: ELU | None) -> Tensor:
        length, mode = x.shape[dim], self.style.pad_mode
        right = -length % self.stride
        if state is None and not self.style.causal:
            right += self.padding // 2
            left = self.padding - self.padding // 2
        elif not self.style.causal:
            raise ShapeError("a centred convolution looks ahead and cannot run live")
        else:
            left = self.padding
        if left + right == 0 or (
            state is None and (torch.is_grad_enabled() or length <= max(left, right))
        ):
            activated = x if activation is None else activation(x)
            return pad_time(activated, left, right, mode, dim)
        return self._assemble(x, state, dim, activation, left, right)

    def _assemble(
        self,
        x: Tensor,
        state: State | None,
        dim: int,
        activation: ELU | None,
        left: int,
        right: int,
    ) -> Tensor:
        """What comes before, the activated input, and padding, written once into new memory."""
        length, mode = x.shape[dim], self.style.pad_mode
        shape = list(x.shape)
        shape[dim] += left + right
        joined = x.new_empty(shape)
        centre = joined.narrow(dim, left, length)
        if activation is None:
            centre.copy_(x)
        else:
            activation.into(x, centre)
        if left:
            before = joined.narrow(dim, 0, left)
            before.copy_(self._before(centre, state, dim, left))
            if state is not None:
                kept = joined.narrow(dim, length, left)
                state.update(state[self].past, kept.transpose(dim, 2))
        if right:
            so_far = joined.narrow(dim, 0, left + length)
            joined.narrow(dim, left + length, right).copy_(_after(so_far, right, mode, dim))
        return joined

    def _before(self, x: Tensor, state: State | None, dim: int, length: int) -> Tensor:
        """The `length` samples before the activated input: padding, or what a stream has kept."""
        mode = self.style.pad_mode
        if state is None:
            return _start(x, length, mode, dim)
        slot = state[self]
        past = slot.past.transpose(dim, 2)
        if mode == "zero":
            return past
        if mode == "replicate" or (not state.low_latency and x.shape[dim] > length):
            start = _start(x, length, mode, dim)
            past = torch.where(slot.started[..., None], past, start)
        state.update(slot.started, torch.ones_like(slot.started))
        return past


class StreamingConvTranspose1d(StreamingModule):
    """Transposed convolution over time, trimmed as the codecs do.

    Shape: x [batch, in_channels, frames] -> [batch, out_channels, frames * stride].
    State: `past` [batch, in_channels, frames before], the last frames, which still add to what
    comes next. Only causal layers stream.
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
        self.past_frames = math.ceil(self.excess / stride)
        self.spans_two = kernel_size == 2 * stride
        if style.causal:
            self.trim_right = math.ceil(self.excess * trim_right_ratio)
        else:
            self.trim_right = self.excess // 2
        conv = nn.ConvTranspose1d(in_channels, out_channels, kernel_size, stride)
        self.conv = weight_norm(conv) if style.norm == "weight_norm" else conv
        self.norm = _group_norm(out_channels, style)
        self.packed = PackedWeight()
        self.live_product: nn.Module | None = None

    def fresh_state(self, batch_size: int) -> dict[str, Tensor]:
        like = self.conv.weight
        return {"past": like.new_zeros(batch_size, self.conv.in_channels, self.past_frames)}

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        trim_left = self.excess - self.trim_right
        if state is not None and trim_left:
            raise ShapeError("a transposed convolution that trims on the left cannot run live")
        if state is None and not (uses_matrix_form(x) and self.spans_two):
            y = self.norm(self.conv(x))
            return y[..., trim_left : y.shape[-1] - self.trim_right]
        y = self.norm(self._convolve(self._joined(x, state)))
        return y[..., trim_left : y.shape[-1] - self.trim_right] if trim_left else y

    def _joined(self, x: Tensor, state: State | None) -> Tensor:
        """The frames with what stands before them, and after them for the end of a centred layer.

        Shape: [batch, in_channels, frames] -> [batch, more frames, in_channels].
        """
        frames = x.transpose(1, 2)
        nothing = frames.new_zeros(len(x), self.past_frames, frames.shape[2])
        if self.trim_right != self.excess:
            return torch.cat([nothing, frames, nothing], dim=1)
        if state is None:
            return torch.cat([nothing, frames], dim=1)
        past = state[self].past
        joined = torch.cat([past.transpose(1, 2), frames], dim=1)
        state.update(past, joined[:, frames.shape[1] :].transpose(1, 2))
        return joined

    def _convolve(self, joined: Tensor) -> Tensor:
        """What frames from the first that is not past add to, with what the past adds there."""
        conv, frames = self.conv, joined.shape[1] - self.past_frames
        if self.live_product is not None and frames <= FEW_FRAMES:
            windows = joined.flatten(1).unfold(1, 2 * conv.in_channels, conv.in_channels)
            by_frame = self.live_product(windows)
            return by_frame.reshape(len(joined), -1, conv.out_channels).transpose(1, 2)
        if uses_matrix_form(joined) and self.spans_two:
            return conv_transpose_time_major(joined, conv, self.packed).transpose(1, 2)
        y = conv(joined.transpose(1, 2))
        return y[..., self.past_frames * self.stride : joined.shape[1] * self.stride]

    def add_live_product(self) -> None:
        """As in `StreamingConv1d`; for kernels that span two strides."""
        bias = self.conv.bias
        weight = torch.cat(transposed_taps(self.conv)).t()
        self.live_product = _linear(weight, None if bias is None else bias.repeat(self.stride))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of a weight [out, in], for inference."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _group_norm(channels: int, style: ConvStyle) -> nn.Module:
    """One-group normalisation over channels and time, or nothing.

    Raises: ShapeError for a causal layer, whose statistics would look ahead.
    """
    if style.norm != "time_group_norm":
        return nn.Identity()
    if style.causal:
        raise ShapeError("time_group_norm looks at the whole input and cannot be causal")
    return TimeGroupNorm(channels, GROUP_NORM_EPSILON)
