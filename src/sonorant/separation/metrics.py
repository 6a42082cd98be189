"""Figures of separation as the campaigns report them: per song, per source, and over all songs.

Two families: the frame-wise ratios of BSSEval (`sonorant.separation.bss_eval`), of which SiSEC 2018
reports the median over the frames of a song and then the median over the songs
(arXiv 1804.06267), and the one ratio per song of the Music Demixing Challenge 2021
(arXiv 2108.13559), of which it reports the mean over the songs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sonorant.errors import ShapeError

DELTA = 1e-7
"""Keeps the ratio finite for silence (arXiv 2108.13559, section 3)."""


def global_sdr(references: Tensor, estimates: Tensor, delta: float = DELTA) -> Tensor:
    """The challenge's SDR in dB, float64 `[...]`, of whole songs `[..., channels, time]`.

    10 log10 of the true source's energy, over time and channels, to that of the difference. Always
    finite: a silent source left silent scores 0 dB.
    Raises: ShapeError for different shapes.

    >>> round(global_sdr(torch.ones(2, 100), torch.full((2, 100), 0.9)).item(), 3)
    20.0
    """
    if references.shape != estimates.shape:
        raise ShapeError(
            f"estimates have the shape {list(estimates.shape)}, references {list(references.shape)}"
        )
    references, estimates = references.double(), estimates.double()
    energy = references.square().sum(dim=(-2, -1))
    error = (references - estimates).square().sum(dim=(-2, -1))
    return 10 * torch.log10((energy + delta) / (error + delta))


def median_over_frames(ratios: Tensor) -> Tensor:
    """The median `[...]` of the frames `[..., frames]` that have a figure, NaN if none has.

    Of an even number of frames the mean of the two in the middle.
    """
    return torch.nanquantile(ratios, 0.5, dim=-1)


def fit_length(estimates: Tensor, samples: int) -> Tensor:
    """Estimates `[..., time]` cut, or padded with zeros at the end, to a number of samples."""
    return torch.nn.functional.pad(estimates, (0, samples - estimates.shape[-1]))
