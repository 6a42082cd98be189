"""Inner products of signals with delayed others: all that BSSEval needs to know of a frame.

Long signals go in blocks through Fourier transforms, so that memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

BLOCK_TAPS = 4
"""Fourier transforms take blocks of this many times the taps, and a quarter of them is overlap.
Longer blocks overlap less, but their products have more frequencies (measured best)."""
BLOCKS_AT_ONCE = 32
"""Bounds the memory at a few tens of MB, and stays in the processor's cache."""
FREQUENCIES_AT_ONCE = 257
"""Of products, whose rearranged factors then stay in the cache."""


def block_samples(taps: int) -> int:
    """Length of the transforms: a power of two, for speed."""
    return int(2 ** np.ceil(np.log2(BLOCK_TAPS * taps)))


@dataclass(frozen=True)
class Signals:
    """True sources and estimates of one shape `[sources, channels, time]`, as one list of rows.

    References are the channels of the sources; rows are these and then those of the estimates.
    """

    sources: Tensor
    estimates: Tensor

    @property
    def references(self) -> int:
        return self.sources.shape[0] * self.sources.shape[1]

    @property
    def samples(self) -> int:
        return self.sources.shape[-1]

    def rows(self, span: slice, padded: int) -> Tensor:
        """Samples of a span in float64, with zeros after them: `[rows, padded]`."""
        rows = self.sources.new_zeros(2 * self.references, padded, dtype=torch.float64)
        assert 0 <= span.start <= span.stop <= self.samples
        parts = rows[:, : span.stop - span.start].chunk(2)
        for part, signals in zip(parts, (self.sources, self.estimates), strict=True):
            part.copy_(signals[..., span].flatten(0, 1))
        return rows

    def squares(self, span: slice) -> Tensor:
        """The rows' energies in a span: `[rows]`."""
        parts = [each[..., span].flatten(0, 1) for each in (self.sources, self.estimates)]
        norms = [torch.linalg.vector_norm(part, dim=-1, dtype=torch.float64) for part in parts]
        return torch.cat(norms).square()

    def correlate(self, span: slice, taps: int) -> Tensor:
        """`[taps, references, rows]`: references, delayed, times rows, summed over the span.

        What is outside the span counts as silence.
        """
        size = block_samples(taps)
        step = size - taps + 1
        total: Tensor | None = None
        for first in range(span.start, span.stop, BLOCKS_AT_ONCE * step):
            blocks = min(BLOCKS_AT_ONCE, -(-(span.stop - first) // step))
            length = blocks * step + taps - 1
            under = self.rows(slice(first, min(first + length, span.stop)), length).unfold(
                -1, size, step
            )
            delayed = torch.fft.rfft(under[: self.references, :, :step], n=size)
            products = _products(delayed, torch.fft.rfft(under))
            total = products if total is None else total.add_(products)
        assert total is not None, "a span without samples"
        return _lags(total, taps)

    def correlate_across(self, edges: Sequence[int], taps: int) -> Tensor:
        """As `correlate`, of references before each edge with rows after it, summed over edges.

        Edges must lie taps - 1 samples apart and from the start, or further.
        """
        reach = taps - 1
        size = block_samples(taps) // BLOCK_TAPS * 2
        before = torch.stack([self.rows(slice(edge - reach, edge), reach) for edge in edges], 1)
        spans = [slice(edge, min(edge + reach, self.samples)) for edge in edges]
        after = torch.stack([self.rows(span, reach) for span in spans], 1)
        delayed = torch.fft.rfft(before[: self.references], n=size)
        rows = torch.fft.rfft(functional.pad(after, (reach, 0)), n=size)
        return _lags(_products(delayed, rows), taps)


def _products(delayed: Tensor, rows: Tensor) -> Tensor:
    """Spectra `[references, blocks, frequencies]` and `[rows, ...]`, one conjugate times the other,
    summed over blocks: `[frequencies, references, rows]`."""
    frequencies = rows.shape[-1]
    products = rows.new_empty(frequencies, len(delayed), len(rows))
    for first in range(0, frequencies, FREQUENCIES_AT_ONCE):
        some = slice(first, first + FREQUENCIES_AT_ONCE)
        left = delayed[..., some].permute(2, 0, 1).contiguous().conj_physical_()
        right = rows[..., some].permute(2, 0, 1).contiguous()
        torch.bmm(left, right.transpose(1, 2), out=products[some])
    return products


def _lags(spectra: Tensor, taps: int) -> Tensor:
    """`[taps, references, rows]`: the first lags of `[frequencies, references, rows]`."""
    by_pair = spectra.flatten(1).t().contiguous()  # as the transform takes it, or it copies itself
    lags = torch.fft.irfft(by_pair)[:, :taps]
    return lags.t().unflatten(1, spectra.shape[1:])
