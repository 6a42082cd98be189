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
        weights = self._weights()
        energies = correlations.flatten(1) @ weights.flatten(1).T
        norms = squares.sqrt()
        delayed = norms[:, : self.filters.shape[2]]
        sizes = torch.einsum("fi,nis,fs->fn", delayed, weights.abs().sum(dim=1), norms)
        own = squares[:, self.estimates.clamp(min=0)] * (self.estimates >= 0)
        return energies + own.sum(dim=-1), sizes + own.sum(dim=-1)

    def _weights(self) -> Tensor:
        """What the energies take of correlations: `[combinations, taps, references, rows]`."""
        count, channels, references, taps = self.filters.shape
        weights = self.filters.new_zeros(count, taps, references, 2 * references)
        spectra = torch.fft.rfft(self.filters, n=2 * taps)
        for each, target in zip(spectra, weights, strict=True):
            by_frequency = each.permute(2, 1, 0)
            products = by_frequency @ by_frequency.mH  # [frequencies, references, references]
            lags = torch.fft.irfft(products.permute(1, 2, 0), n=2 * taps)[..., :taps]
            target[..., :references] = lags.movedim(2, 0)
        weights[:, 1:] *= 2  # both directions of a delay
        for channel in range(channels):
            for which, row in enumerate(self.estimates[:, channel].tolist()):
                if row >= 0:
                    weights[which, :, :, row] += 2 * self.filters[which, channel].T
        return weights
