"""Transposed convolutions over the bins of a spectrogram as matrix products, for CPU.

With a kernel of two strides, output bin i * stride + r is the sum of two products, of input bins i
and i - 1. A product per bin leaves the output with its bins outermost in memory, where no pass over
it is needed to bring the r in between; all layers behind take any order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sonorant.nn.conv import uses_matrix_form


def fits(x: Tensor, conv: nn.Module) -> bool:
    """Whether `transposed_convolution` can stand in for the layer, and is faster."""
    return (
        isinstance(conv, nn.ConvTranspose2d)
        and conv.kernel_size == (2 * conv.stride[0], 1)
        and conv.stride[1] == conv.groups == 1
        and conv.padding == conv.output_padding == (0, 0)
        and conv.dilation == (1, 1)
        and x.dtype == conv.weight.dtype == torch.float32
        and x.numel() > 0
        and uses_matrix_form(x)
    )


def transposed_convolution(x: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """The transposed convolution `conv`, for which `fits` is true.

    Shape: x [batch, in, bins, frames] -> [batch, out, (bins + 1) * stride, frames].
    """
    batch, channels, bins, frames = x.shape
    stride, out_channels = conv.stride[0], conv.out_channels
    halves = conv.weight[..., 0].split(stride, dim=2)  # [in, out, stride] each
    current, before = (
        half.permute(2, 1, 0).reshape(-1, channels).expand(bins, -1, -1) for half in halves
    )
    y = x.new_empty(batch, bins + 1, stride * out_channels, frames)
    for source, target in zip(x.transpose(1, 2), y, strict=True):
        torch.bmm(current, source, out=target[:-1])
        target[-1] = 0
        target[1:].baddbmm_(before, source)
    y = y.view(batch, -1, out_channels, frames)
    if conv.bias is not None:
        y += conv.bias[:, None]
    return y.transpose(1, 2)
