"""Energies of filtered signals from correlations alone, for all frames at once.

The energy of e + sum_i g_i * r_i is a quadratic form of the filters g whose coefficients are the
inner products of references r and estimates e with each other, delayed: what a frame's correlations
hold. So no signal is ever filtered: all energies of all frames are one product of two matrices.
Differences of large numbers lose digits; how many is known from the signals' own energies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Combinations:
    """Signals made of rows (see `Signals`), whose energies are asked for.

    filters: `[combinations, channels, references, taps]`, what is taken of the references.
    estimates: `[combinations, channels]`, indices of the rows that are added, or -1 for none.
    """

    filters: Tensor
    estimates: Tensor

    def energies(self, correlations: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
        """Energies `[frames, combinations]`, summed over channels, and the sizes of the numbers
        that they are differences of.

        correlations: `[frames, taps, references, rows]`; squares: `[frames, rows]`, energies.
        """
        weights = torch.stack([self._weights(each) for each in range(len(self.filters))])
        energies = correlations.flatten(1) @ weights.flatten(1).T
        norms = squares.sqrt()
        delayed = norms[:, : self.filters.shape[2]]
        sizes = torch.einsum("fi,nis,fs->fn", delayed, weights.abs().sum(dim=1), norms)
        own = squares[:, self.estimates.clamp(min=0)] * (self.estimates >= 0)
        return energies + own.sum(dim=-1), sizes + own.sum(dim=-1)

    def _weights(self, which: int) -> Tensor:
        """What one combination's energy takes of correlations: `[taps, references, rows]`."""
        filters = self.filters[which]
        channels, references, taps = filters.shape
        spectra = torch.fft.rfft(filters, n=2 * taps)
        products = torch.einsum("cif,cjf->ijf", spectra, spectra.conj())
        weights = filters.new_zeros(taps, references, 2 * references)
        weights[:, :, :references] = torch.fft.irfft(products, n=2 * taps)[..., :taps].movedim(2, 0)
        weights[1:] *= 2  # both directions of a delay
        for channel in range(channels):
            row = int(self.estimates[which, channel])
            if row >= 0:
                weights[:, :, row] += 2 * filters[channel].T
        return weights
