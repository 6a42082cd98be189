"""Filters of two or three taps with a third fewer products.

Source: Winograd, "Arithmetic Complexity of Computations" (1980): F(m, r) gives m outputs of a
filter of r taps from m + r - 1 products. With the points 0, 1, -1 and infinity that is three
outputs of two taps, or two outputs of three, from four products instead of six. Every factor is 1
or 1/2, so the result is as exact as the plain sum. Here a product is one over channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Below this many frames reading the fourth matrix costs more than the products that are saved.
FAST_FILTER_FRAMES = 24


class MinimalFilter:
    """y[t] = bias + sum over k of x[t + k] @ taps[k], for two or three taps of shape [in, out]."""

    def __init__(self, taps: Sequence[Tensor]) -> None:
        self.taps = [tap.contiguous() for tap in taps]
        even = self.taps[0] if len(taps) == 2 else self.taps[0] + self.taps[2]
        self.half_sum = (even + self.taps[1]) / 2
        self.half_difference = (even - self.taps[1]) / 2

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Shape: x [batch, frames + taps - 1, in], bias [out] -> [batch, frames, out]."""
        frames = x.shape[1] - len(self.taps) + 1
        y = x.new_empty(x.shape[0], frames, self.half_sum.shape[1])
        for row in range(x.shape[0]):
            if frames < FAST_FILTER_FRAMES:
                self._plain(x[row], bias, y[row])
            else:
                self._fast(x[row], bias, y[row])
        return y

    def _plain(self, x: Tensor, bias: Tensor | None, y: Tensor) -> None:
        _affine(bias, x[: len(y)], self.taps[0], y)
        for start, tap in enumerate(self.taps[1:], start=1):
            y.addmm_(x[start : start + len(y)], tap)

    def _fast(self, x: Tensor, bias: Tensor | None, y: Tensor) -> None:
        """Frames in groups of three (of two taps) or two (of three), the rest plainly."""
        size = 5 - len(self.taps)
        groups = len(y) // size
        first, second, third, fourth = (x[i : i + size * groups : size][:groups] for i in range(4))
        outputs = [y[i::size][:groups] for i in range(size)]
        plus = _affine(bias, second + third, self.half_sum)
        minus = (third - second) @ self.half_difference
        for i, output in enumerate(outputs):
            torch.add(plus, minus, alpha=(-1) ** i, out=output)
        outputs[0].addmm_(first - third, self.taps[0])
        outputs[-1].addmm_(fourth - second, self.taps[-1])
        if rest := len(y) - size * groups:
            self._plain(x[size * groups :], bias, y[-rest:])


def _affine(bias: Tensor | None, x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """bias + x @ weight. Shapes: x [rows, in], weight [in, out]."""
    if bias is None:
        return torch.mm(x, weight, out=out)
    return torch.addmm(bias, x, weight, out=out)
