"""The residual branches of Demucs as matrix products, for CPU without gradients.

A branch narrows C channels to a few, H, and widens these to 2 C, which are normalised, gated and
added to its input. At the high rates the wide tensor is the largest of the whole model. Here it
only ever exists in pieces that fit the cache, since what its normalisation needs to know follows
from the narrow one, h: with the wide layer W h + b, the mean m = W mean(h) + b of its channels,

    mean = mean over channels of m       variance = variance of m + sum(W'W * cov(h)) / 2C

of every row (sound), and so the normalised piece is one product with a few rows more:

    g (W h + b - mean) / std + o = [g W, g b, -g, o] [h / std; 1 / std; mean / std; 1]

Shapes: x [batch, channels, rows, time] with contiguous memory, where the rows are sounds of their
own: the bins of a spectrogram, or a single one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PIECE = 2**18  # numbers of a wide piece: 1 MB, half of what a core's cache holds (measured best)
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
    steps = max(FEWEST_STEPS, PIECE // len(weight))
    wide = x.new_empty(len(weight), min(steps, rows * time))
    for row in range(batch):
        for start in range(0, rows * time, steps):
            piece = slice(start, start + steps)
            target = out[row, :, piece]
            y = wide[:, : target.shape[1]]
            torch.mm(weight, h[row, :, piece], out=y)
            gate = y[channels:].sigmoid_()
            torch.addcmul(x[row, :, piece], y[:channels], gate, out=target)


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
