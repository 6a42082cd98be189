"""The residual branches of Demucs as matrix products, for CPU without gradients.

A branch narrows C channels to a few, H, and widens these to 2 C, which are normalised, gated and
added to its input. At the high rates the wide tensor is the largest of the whole model. Here it
only ever exists in pieces that fit the cache, since what its normalisation needs to know follows
from the narrow one, h: with the wide layer W h + b, the mean m = W mean(h) + b of its channels,

    mean = mean over channels of m       variance = variance of m + sum(W'W * cov(h)) / 2C

of every row (sound), and so the normalised piece is one product with a few rows more:

    g (W h + b - mean) / std + o = [g W, g b, -g, o] [h / std; 1 / std; mean / std; 1]

The gated mix of the channels behind the branches exists in such pieces only as well.

Shapes: x [batch, channels, rows, time] with contiguous memory, where the rows are sounds of their
own: the bins of a spectrogram, or a single one.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sonorant.nn.conv import uses_matrix_form

PIECE = 2**18  # numbers of a wide piece: 1 MB, half of what a core's cache holds (measured best)
LARGE = 2**22  # numbers of a wide tensor, 16 MB, from which pieces pay (measured)
FEWEST_STEPS = 256  # of a piece, so that wide layers still make products worth calling


def narrow(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """A convolution to few channels: one product for all taps, then shifted sums.

    The kernel is odd, and padded to keep the length.
    """
    batch, channels, rows, time = x.shape
    taps, dilation = conv.kernel_size[0], conv.dilation[0]
    weight = conv.weight.permute(2, 0, 1).reshape(-1, channels)
    products = weight @ x.view(batch, channels, rows * time)
    products = products.view(batch, taps, -1, rows, time)
    result = products[:, taps // 2]
    if conv.bias is not None:
        result += conv.bias[:, None, None]
    for tap in range(taps):
        shift = (tap - taps // 2) * dilation
        if 0 < shift < time:
            result[..., :-shift] += products[:, tap, ..., shift:]
        elif 0 < -shift < time:
            result[..., -shift:] += products[:, tap, ..., :shift]
    return result


def normalize(h: Tensor, norm: nn.GroupNorm) -> Tensor:
    """Group normalisation with one group, of every row on its own."""
    centred = h - h.mean(dim=-1, keepdim=True).mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True).mean(dim=1, keepdim=True)
    factor = norm.weight[:, None, None] * (variance + norm.eps).rsqrt()
    return torch.addcmul(norm.bias[:, None, None], centred, factor)


def add_gated(
    x: Tensor, h: Tensor, widen: nn.Conv1d, norm: nn.Module, scale: Tensor, out: Tensor
) -> None:
    """out = x + scale * GLU(norm(widen(h))), piece by piece; out may be x.

    norm: a group normalisation with one group, or none.
    """
    batch, channels, rows, time = x.shape
    weight, bias = widen.weight[:, :, 0], widen.bias
    assert bias is not None
    if isinstance(norm, nn.GroupNorm):
        weight, h = _normalizing(weight, bias, h, norm)
    else:
        weight = torch.cat([weight, bias[:, None]], dim=1)
        h = torch.cat([h, torch.ones_like(h[:, :1])], dim=1)
    weight[:channels] *= scale[:, None]  # of the gated half; the other one gates
    h, x, out = h.reshape(batch, -1, rows * time), x.flatten(2), out.view(batch, channels, -1)
    for row in range(batch):
        for piece, wide in _pieces(weight, rows * time):
            torch.mm(weight, h[row, :, piece], out=wide)
            gate = wide[channels:].sigmoid_()
            torch.addcmul(x[row, :, piece], wide[:channels], gate, out=out[row, :, piece])


def gates_in_place(x: Tensor, widen: nn.Module) -> bool:
    """Whether `gate_in_place` can stand in for the layer and its gate, and is faster."""
    return (
        isinstance(widen, nn.Conv1d | nn.Conv2d)
        and set(widen.kernel_size) == set(widen.stride) == {1}
        and widen.groups == 1
        and widen.bias is not None
        and widen.out_channels == 2 * widen.in_channels
        and x.dtype == widen.weight.dtype == torch.float32
        and x.is_contiguous()
        and 2 * x.numel() >= LARGE
        and uses_matrix_form(x)
    )


def gate_in_place(x: Tensor, widen: nn.Conv1d | nn.Conv2d) -> Tensor:
    """GLU(widen(x)) of a layer of one tap, from C to 2 C channels, written into x."""
    channels = x.shape[1]
    weight, bias = widen.weight.flatten(1), widen.bias
    assert bias is not None
    for row in x.flatten(2):
        for piece, wide in _pieces(weight, row.shape[1]):
            torch.addmm(bias[:, None], weight, row[:, piece], out=wide)
            torch.mul(wide[:channels], wide[channels:].sigmoid_(), out=row[:, piece])
    return x


def _pieces(weight: Tensor, steps: int) -> Iterator[tuple[slice, Tensor]]:
    """Pieces of that many steps, and memory for the product of each with the weight."""
    most = max(FEWEST_STEPS, PIECE // len(weight))
    memory = weight.new_empty(len(weight), min(most, steps))
    for start in range(0, steps, most):
        piece = slice(start, min(start + most, steps))
        yield piece, memory[:, : piece.stop - start]


def _normalizing(
    weight: Tensor, bias: Tensor, h: Tensor, norm: nn.GroupNorm
) -> tuple[Tensor, Tensor]:
    """The matrix [2 C, H + 3] and its input [batch, H + 3, rows, time], as above."""
    batch, width, rows, time = h.shape
    mean_h = h.mean(dim=-1, keepdim=True)
    centred = (h - mean_h).transpose(1, 2).flatten(0, 1)
    products = centred @ centred.transpose(1, 2)  # [batch * rows, H, H]
    means = mean_h[..., 0].transpose(1, 2).flatten(0, 1) @ weight.t() + bias
    variance = means.var(dim=1, correction=0)
    variance += (products * (weight.t() @ weight)).sum(dim=(1, 2)) / (time * len(weight))
    inverse = (variance + norm.eps).rsqrt().view(batch, rows, 1)
    extended = h.new_empty(batch, width + 3, rows, time)
    torch.mul(h, inverse[:, None], out=extended[:, :width])
    extended[:, width] = inverse
    extended[:, width + 1] = means.mean(dim=1).view(batch, rows, 1) * inverse
    extended[:, width + 2] = 1
    gain = norm.weight[:, None]
    matrix = torch.cat([gain * weight, gain * bias[:, None], -gain, norm.bias[:, None]], dim=1)
    return matrix, extended
