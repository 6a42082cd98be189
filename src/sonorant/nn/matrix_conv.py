"""Convolutions over time on time-major memory, for inference on CPU.

With sound laid out as `[batch, time, channels]` nothing needs to be rearranged between layers, and
every layer has a form that runs near the processor's peak:

- many channels: the kernel's two or three strides are as many taps over blocks of `stride` samples,
  with a third fewer products (`minimal_filtering.py`). A transposed convolution is such a filter
  too, whose output needs no overlap-add;
- few channels: the built-in two-dimensional convolution, which reads this memory as an image of
  height 1 with the channels last (the built-in one-dimensional one would rearrange it);
- few frames: one matrix product over copied windows, since calls cost more than copies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from sonorant.nn.minimal_filtering import MinimalFilter

# From this many weights per tap fewer products outweigh the additions around them (measured).
LARGE_TAP = 2**15
# Up to so many frames, which stay in the processor's cache, three taps from so many weights on are
# quickest as a product each (measured).
TAP_FRAMES = 2**11
SMALL_TAP = 2**11
# Up to this many frames all taps go in one product over copied windows.
FEW_FRAMES = 16

Conv = nn.Conv1d | nn.ConvTranspose1d
Form = TypeVar("Form")


class PackedWeight:
    """Weights rearranged for the forms in use, kept while the layer's weight stays the same.

    A weight under weight norm is computed anew at every access, and so is packed anew.
    """

    def __init__(self) -> None:
        self._source: Tensor | None = None
        self._version = -1
        self._forms: dict[Callable[..., Any], Any] = {}

    def form(self, conv: Conv, pack: Callable[[Conv], Form]) -> Form:
        """What `pack` makes of the weight of `conv`."""
        if is_parametrized(conv) or conv.weight.is_inference():
            return pack(conv)  # made anew at every access, or without a version to tell changes by
        weight = conv.weight
        if self._source is not weight or self._version != weight._version:
            self._source, self._version = weight, weight._version
            self._forms.clear()
        if pack not in self._forms:
            self._forms[pack] = pack(conv)
        form: Form = self._forms[pack]
        return form


def conv_time_major(x: Tensor, conv: nn.Conv1d, packed: PackedWeight) -> Tensor:
    """The convolution `conv`, without padding.

    Shape: x [batch, time, in] -> [batch, frames, out].
    """
    stride, dilation, kernel_size = conv.stride[0], conv.dilation[0], conv.kernel_size[0]
    if kernel_size == stride == 1:
        return pointwise_sum([(conv, packed, x)])
    span = (kernel_size - 1) * dilation + 1
    frames = (x.shape[1] - span) // stride + 1
    strides = kernel_size / stride
    large = stride * conv.in_channels * conv.out_channels >= LARGE_TAP
    if large and dilation == 1 and strides in (2, 3):
        needed = x[:, : frames * stride + kernel_size - stride]
        blocks = needed.reshape(x.shape[0], -1, stride * conv.in_channels)
        return packed.form(conv, _block_filter)(blocks, conv.bias)
    weights_per_tap = conv.in_channels * conv.out_channels
    if stride == 1 and kernel_size == 3 and frames <= TAP_FRAMES and weights_per_tap >= SMALL_TAP:
        return _sum_of_taps(x, conv, packed.form(conv, _taps))
    if frames <= FEW_FRAMES:
        windows = x.unfold(1, span, stride)[..., ::dilation].flatten(2)
        return F.linear(windows, conv.weight.flatten(1), conv.bias)
    return _direct(x, packed.form(conv, _image_weight), conv.bias, stride, dilation)


def _sum_of_taps(x: Tensor, conv: nn.Conv1d, taps: list[Tensor]) -> Tensor:
    """A convolution of stride 1 as one product per tap, of the input where it lies."""
    dilation = conv.dilation[0]
    frames = x.shape[1] - dilation * (len(taps) - 1)
    y = x.new_empty(x.shape[0], frames, conv.out_channels)
    for row, sound in zip(y, x, strict=True):
        torch.addmm(_bias(conv), sound[:frames], taps[0], out=row)
        for start, tap in enumerate(taps[1:], start=1):
            row.addmm_(sound[start * dilation :][:frames], tap)
    return y


def pointwise_sum(terms: list[tuple[nn.Conv1d, PackedWeight, Tensor]]) -> Tensor:
    """The sum of convolutions of one tap, each of its own input, in one accumulator.

    Shape: inputs [batch, time, in] -> [batch, time, out].
    """
    bias = sum((_bias(conv) for conv, _, _ in terms[1:]), start=_bias(terms[0][0]))
    conv, packed, x = terms[0]
    y = torch.addmm(bias, x.flatten(0, 1), packed.form(conv, _matrix))
    for conv, packed, other in terms[1:]:
        y.addmm_(other.flatten(0, 1), packed.form(conv, _matrix))
    return y.view(*x.shape[:2], -1)


def two_convs(x: Tensor, before: nn.Conv1d, after: nn.Conv1d) -> Tensor:
    """`after`, of one tap, applied to `before`, both computed as one, without padding.

    Pays where `before` has few inputs. Shape: x [batch, time, in] -> [batch, frames, out].
    """
    matrix = after.weight[..., 0]
    weight = torch.einsum("om,mik->oik", matrix, before.weight)
    bias = _bias(after) + matrix @ _bias(before)
    return _direct(x, _channels_last(weight), bias, before.stride[0], before.dilation[0])


def add_pointwise(y: Tensor, x: Tensor, conv: nn.Conv1d, packed: PackedWeight) -> None:
    """Add a convolution of one tap to `y`.

    Shapes: y [batch, time, out], contiguous, x [batch, time, in].
    """
    if conv.bias is not None:
        y += conv.bias
    y.view(-1, y.shape[-1]).addmm_(x.flatten(0, 1), packed.form(conv, _matrix))


def conv_transpose_time_major(x: Tensor, conv: nn.ConvTranspose1d, packed: PackedWeight) -> Tensor:
    """The transposed convolution `conv` where two frames meet: all but its first and last stride.

    Its kernel spans two strides.
    Shape: x [batch, frames + 1, in] -> [batch, frames * stride, out].
    """
    stride = conv.stride[0]
    bias = None if conv.bias is None else conv.bias.repeat(stride)
    if stride * conv.in_channels * conv.out_channels >= LARGE_TAP:
        y = packed.form(conv, _transposed_filter)(x, bias)
    else:
        y = _direct(x, packed.form(conv, _transposed_image_weight), bias)
    return y.view(x.shape[0], -1, conv.out_channels)


def _direct(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, dilation: int = 1
) -> Tensor:
    image = x.transpose(1, 2).unsqueeze(2)
    y = F.conv2d(image, weight, bias, stride=(1, stride), dilation=(1, dilation))
    return y.squeeze(2).transpose(1, 2).contiguous()


def _bias(conv: Conv) -> Tensor:
    return conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias


def _matrix(conv: Conv) -> Tensor:
    """[in, out], of a kernel of one."""
    return conv.weight[..., 0].t().contiguous()


def _taps(conv: Conv) -> list[Tensor]:
    """[in, out] each."""
    return [tap.t().contiguous() for tap in conv.weight.unbind(-1)]


def _image_weight(conv: Conv) -> Tensor:
    """[out, in, 1, kernel] with the channels last in memory, without which nothing is gained."""
    return _channels_last(conv.weight)


def _channels_last(weight: Tensor) -> Tensor:
    image: Tensor = weight[:, :, None].contiguous(memory_format=torch.channels_last)
    return image


def _block_filter(conv: Conv) -> MinimalFilter:
    by_time = conv.weight.permute(2, 1, 0)  # [kernel, in, out]
    return MinimalFilter([tap.flatten(0, 1) for tap in by_time.split(conv.stride[0])])


def transposed_taps(conv: Conv) -> list[Tensor]:
    """[in, stride * out] each: for the frame before, and for the current one."""
    by_time = conv.weight.permute(0, 2, 1)  # [in, kernel, out]
    current, before = by_time.split(conv.stride[0], dim=1)
    return [before.flatten(1), current.flatten(1)]


def _transposed_filter(conv: Conv) -> MinimalFilter:
    return MinimalFilter(transposed_taps(conv))


def _transposed_image_weight(conv: Conv) -> Tensor:
    return _channels_last(torch.stack(transposed_taps(conv)).permute(2, 1, 0))
