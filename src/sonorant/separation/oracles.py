"""What separation could reach, and what it must beat: ideal masks of the true sources; the mixture.

The oracles know the true sources and may only choose a gain for every time and frequency: an upper
bound for everything that works by masking a spectrogram. They are those of the SiSEC campaigns
(Stöter, Liutkus and Ito, arXiv 1804.06267, section 4): spectrograms of 2048 samples, half
overlapping.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sonorant.dsp.stft import istft, stft
from sonorant.separation.wiener import wiener_iteration

WINDOW = 2048  # samples, as in SiSEC 2018
THRESHOLD = 0.5  # of the mixture's magnitude or power, above which a bin is a source's own
FLOOR = 1e-10  # keeps silent bins finite

Oracle = Callable[[Tensor, Tensor], Tensor]
"""From the mixture `[channels, time]` and the true sources `[sources, channels, time]` to estimates
of the sources' shape."""


def ideal_binary_mask(mixture: Tensor, references: Tensor, power: float = 1.0) -> Tensor:
    """Every bin whole or not at all, for each source on its own. power: 1 of magnitudes, 2 of
    their squares. Shapes as of `Oracle`."""
    mix, true = _spectrum(mixture), _spectrum(references)
    mask = true.abs() ** power >= THRESHOLD * (mix.abs() ** power + FLOOR)
    return _sound(mix * mask, mixture)


def ideal_ratio_mask(mixture: Tensor, references: Tensor, power: float = 1.0) -> Tensor:
    """Every bin in proportion to the sources' magnitudes (power 1) or their squares (2)."""
    mix, true = _spectrum(mixture), _spectrum(references)
    shares = true.abs() ** power
    return _sound(mix * shares / (shares.sum(dim=0) + FLOOR), mixture)


def multichannel_wiener(mixture: Tensor, references: Tensor) -> Tensor:
    """The Wiener filter with the sources' true powers, and true covariances between channels."""
    mix, true = _spectrum(mixture), _spectrum(references)
    estimates = wiener_iteration(true.permute(3, 2, 1, 0), mix.permute(2, 1, 0))
    return _sound(estimates.permute(3, 2, 1, 0), mixture)


def mixture_as_estimate(mixture: Tensor, references: Tensor) -> Tensor:
    """The mixture for every source, divided by their number: the challenge's lowest bar
    (arXiv 2108.13559)."""
    return (mixture / len(references)).expand_as(references)


ORACLES: dict[str, Oracle] = {
    "ibm1": partial(ideal_binary_mask, power=1.0),
    "ibm2": partial(ideal_binary_mask, power=2.0),
    "irm1": partial(ideal_ratio_mask, power=1.0),
    "irm2": partial(ideal_ratio_mask, power=2.0),
    "mwf": multichannel_wiener,
}
BASELINES: dict[str, Oracle] = {"mixture": mixture_as_estimate, **ORACLES}
"""By the names that commands know them by; the oracles' are SiSEC's."""


def _spectrum(signals: Tensor) -> Tensor:
    """`[..., bins, frames]`, with enough silence after the sound for the last frame.

    In float64: covariances between channels that are nearly alike are hard to invert.
    """
    padded = torch.nn.functional.pad(signals.double(), (0, WINDOW))
    return stft(padded, WINDOW, WINDOW // 2)


def _sound(spectrum: Tensor, mixture: Tensor) -> Tensor:
    return istft(spectrum, WINDOW, WINDOW // 2, length=mixture.shape[-1]).to(mixture.dtype)
