"""Projections of estimates onto true sources: the filters, and what comes out of them.

Source: Vincent et al., Signal Processing 92(8), 2012, section 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sonorant.separation import block_toeplitz
from sonorant.separation.correlations import BLOCKS_AT_ONCE, Signals, block_samples

RIDGE = float(np.finfo(np.float64).eps)
"""Added to the diagonal of the normal equations, as museval does."""

Pairs = Sequence[tuple[int, int]]
"""Indices of a source and of an estimate that is compared with it."""


@dataclass(frozen=True)
class DistortionFilters:
    """The filters that predict estimates best from references, which are channels of sources.

    everything: `[estimates, channels, references, taps]`, from all references. own: `[pairs,
    channels, references, taps]`, from the channels of the pair's source; the others are 0.
    """

    everything: Tensor
    own: Tensor

    @classmethod
    def fit(cls, correlations: Tensor, sources: int, pairs: Pairs) -> DistortionFilters:
        """By least squares from correlations `[taps, references, rows]` (see `Signals`).

        pairs: by source, and as many for each source.
        """
        taps, references, _ = correlations.shape
        channels = references // sources
        among, targets = correlations.clone().tensor_split([references], dim=-1)
        among[0] += RIDGE * torch.eye(references, dtype=among.dtype, device=among.device)
        rows = [slice(source * channels, (source + 1) * channels) for source in range(sources)]
        wanted = [
            torch.cat([targets[:, rows[source], rows[k]] for j, k in pairs if j == source], -1)
            for source in range(sources)
        ]
        each = torch.stack([among[:, here, here] for here in rows])
        # Both solutions are chains of small products, which one core works off as quickly as two.
        with block_toeplitz.one_thread(), ThreadPoolExecutor(1) as beside:
            later = beside.submit(block_toeplitz.solve, each, torch.stack(wanted))
            solved = block_toeplitz.solve(among[None], targets[None])[0]
            alone = later.result()
        everything = solved.permute(2, 1, 0).unflatten(0, (sources, channels))
        by_pair = alone.unflatten(-1, (-1, channels)).permute(0, 3, 4, 2, 1).flatten(0, 1)
        own = by_pair.new_zeros(len(pairs), channels, references, taps)
        for index, (source, _) in enumerate(pairs):
            own[index, :, rows[source]] = by_pair[index]
        return cls(everything, own)

    @property
    def taps(self) -> int:
        return self.own.shape[-1]

    @cached_property
    def spectra(self) -> Tensor:
        """`[frequencies, outputs, references]`: all channels of `everything`, then of `own`."""
        filters = torch.cat([self.everything, self.own]).flatten(0, 1)
        return torch.fft.rfft(filters, n=block_samples(self.taps)).permute(2, 0, 1).contiguous()

    def project(self, signals: Signals, span: slice) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A span of signals, in silence, block by block: `[..., channels, blocks, time]`.

        Gives the rows `[sources and estimates, ...]`, the projections of estimates onto everything
        `[estimates, ...]`, and those of pairs onto their own source `[pairs, ...]`. After the span
        the filters sound on for taps - 1 samples.
        """
        size, reach = block_samples(self.taps), self.taps - 1
        step = size - reach
        channels, estimates = self.own.shape[1], len(self.everything)
        samples = span.stop - span.start
        blocks = -(-(samples + reach) // step)
        rows = signals.rows(span, blocks * step)
        before = functional.pad(rows[: signals.references], (reach, 0)).unfold(-1, size, step)
        pieces = rows.unflatten(-1, (blocks, step)).split(BLOCKS_AT_ONCE, dim=1)
        for piece, some in zip(pieces, before.split(BLOCKS_AT_ONCE, dim=1), strict=True):
            inputs = torch.fft.rfft(some).permute(2, 0, 1).contiguous()
            outputs = torch.bmm(self.spectra, inputs).permute(1, 2, 0).contiguous()
            made = torch.fft.irfft(outputs, n=size)[..., reach:].unflatten(0, (-1, channels))
            everything, own = made.tensor_split([estimates])
            yield piece.unflatten(0, (-1, channels)), everything, own
