"""Convolutions of 3 x 3 over images with a quarter of the products, for CPU without gradients.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308),
section 4.3: F(4 x 4, 3 x 3) gives tiles of 4 x 4 outputs from 6 x 6 products instead of 144. What
enters and leaves the products are sums with small whole factors, so that the result is off by some
1e-5 of the largest output. Here a product is one over channels.

The columns of an image are kept apart by their place in a tile, so that all sums run over memory
that lies together, and the image is worked off in groups of rows that fit the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.nn.conv import uses_matrix_form

TILE = 4
WINDOW = TILE + 2
GROUP = 2**15  # numbers of one of the 36 kinds that enter the products at once (measured best)
# What the products of a kernel of three are with, section 4.3.
FACTORS = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)

FEWEST_CHANNELS = 48  # the narrowest layer measured, where it is 1.4 times faster than direct


def pays(x: Tensor, conv: nn.Module) -> bool:
    """Whether `convolve` can stand in for the layer, and is faster."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.kernel_size == (3, 3)
        and conv.padding == conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.bias is not None
        and conv.in_channels >= FEWEST_CHANNELS
        and x.dtype == torch.float32
        and x.numel() > 0
        and uses_matrix_form(x)
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
    """`finish` of the convolution of x, which is padded by zeros to keep its size.

    Shape: x [batch, in, rows, columns], weight [out, in, 3, 3] -> [batch, channels, rows, columns].
    finish: from [out, ...] to [channels, ...], each place on its own; it may write into its input.
    """
    factors = torch.tensor(FACTORS, dtype=weight.dtype)
    both = torch.kron(factors, factors)  # [36, 9]
    kernels = (both @ weight.flatten(2).permute(2, 0, 1).flatten(1)).view(-1, *weight.shape[:2])
    rows = [_image(row, kernels, bias.view(-1, 1, 1, 1, 1), finish) for row in x]
    return torch.stack(rows) if len(rows) > 1 else rows[0][None]


def _image(x: Tensor, kernels: Tensor, bias: Tensor, finish: Callable[[Tensor], Tensor]) -> Tensor:
    """One image, x [in, rows, columns]."""
    channels, rows, columns = x.shape
    high, wide = -(-rows // TILE), -(-columns // TILE)
    parts = x.new_zeros(TILE, channels, high * TILE + 2, wide + 2)
    inner = parts[:, :, 1 : rows + 1, 1 : wide + 1]
    inner.copy_(F.pad(x, (0, wide * TILE - columns)).unflatten(2, (wide, TILE)).permute(3, 0, 1, 2))
    step = max(1, min(high, GROUP // (channels * wide)))
    result: Tensor | None = None
    for start in range(0, high, step):
        count = min(step, high - start)
        window = parts[:, :, start * TILE : (start + count) * TILE + 2]
        y = finish(_tiles(window, kernels).add_(bias))  # [channels, TILE, TILE, count, wide]
        if result is None:
            result = x.new_empty(y.shape[0], high, TILE, wide, TILE)
        result[:, start : start + count] = y.permute(0, 3, 1, 4, 2)
    assert result is not None
    return result.view(-1, high * TILE, wide * TILE)[:, :rows, :columns]


def _tiles(parts: Tensor, kernels: Tensor) -> Tensor:
    """Some rows of tiles: the image's parts [TILE, in, rows + 2, wide + 2], by column of the tile.

    Shape: -> [out, TILE rows, TILE columns, high, wide].
    """
    _, channels, rows, columns = parts.shape
    high, wide = (rows - 2) // TILE, columns - 2
    by_row = parts.new_empty(WINDOW, TILE, channels, high, columns)
    lines = [parts[:, :, i : i + (high - 1) * TILE + 1 : TILE] for i in range(WINDOW)]
    _enter(lines, by_row)
    entered = parts.new_empty(WINDOW, WINDOW, channels, high, wide)
    # A window begins with the last column of the tile before, and ends with the first of the next.
    places = [(TILE - 1, 0), *((i, 1) for i in range(TILE)), (0, 2)]
    lines = [by_row[:, part, ..., at : at + wide] for part, at in places]
    _enter(lines, entered.transpose(0, 1))
    products = torch.bmm(kernels, entered.view(WINDOW**2, channels, -1))
    products = products.view(WINDOW, WINDOW, -1, high, wide)
    out = products.shape[2]
    by_column = parts.new_empty(TILE, WINDOW, out, high, wide)
    _leave(products.unbind(1), by_column)
    left = parts.new_empty(out, TILE, TILE, high, wide)
    _leave(by_column.unbind(1), left.permute(1, 2, 0, 3, 4))
    return left


def _enter(lines: Sequence[Tensor], out: Tensor) -> None:
    """The six sums of six neighbours that enter the products, into out[0] to out[5]."""
    d0, d1, d2, d3, d4, d5 = lines
    even, odd = torch.add(d4, d2, alpha=-4), torch.add(d3, d1, alpha=-4)
    torch.add(even, odd, out=out[1])
    torch.sub(even, odd, out=out[2])
    even, odd = torch.sub(d4, d2, out=even), torch.sub(d3, d1, out=odd)
    torch.add(even, odd, alpha=2, out=out[3])
    torch.sub(even, odd, alpha=2, out=out[4])
    torch.add(d4, d0, alpha=4, out=out[0]).sub_(d2, alpha=5)
    torch.add(d5, d1, alpha=4, out=out[5]).sub_(d3, alpha=5)


def _leave(products: Sequence[Tensor], out: Tensor) -> None:
    """The four outputs of six products, into out[0] to out[3]; the products are overwritten."""
    m0, m1, m2, m3, m4, m5 = products
    near, near_odd = m1 + m2, torch.sub(m1, m2, out=m1)
    far, far_odd = m3 + m4, torch.sub(m3, m4, out=m3)
    torch.add(m0, near, out=out[0]).add_(far)
    torch.add(near_odd, far_odd, alpha=2, out=out[1])
    torch.add(near, far, alpha=4, out=out[2])
    torch.add(near_odd, far_odd, alpha=8, out=out[3]).add_(m5)
