"""What separation could reach, and what it must beat: ideal masks of the true sources; the mixture.

The oracles know the true sources and may only choose a gain for every time and frequency: an upper
bound for everything that works by masking a spectrogram. They are those of the SiSEC campaigns
(Stöter, Liutkus and Ito, arXiv 1804.06267, section 4): spectrograms of 2048 samples, half
overlapping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from sonorant.dsp.stft import istft, stft
from sonorant.separation.wiener import inverse_of

WINDOW = 2048  # samples, as in SiSEC 2018
HOP = WINDOW // 2
BLOCK = 512 * HOP  # samples worked off at once, some 200 MB of spectrograms for four stereo stems
THRESHOLD = 0.5  # of the mixture's magnitude or power, above which a bin is a source's own
FLOOR = 1e-10  # keeps silent bins finite

Oracle = Callable[[Tensor, Tensor], Tensor]
"""From the mixture `[channels, time]` and the true sources `[sources, channels, time]` to estimates
of the sources' shape."""


def ideal_binary_mask(mixture: Tensor, references: Tensor, power: float = 1.0) -> Tensor:
    """Every bin whole or not at all, for each source on its own. power: 1 of magnitudes, 2 of
    their squares. Shapes as of `Oracle`."""

    def estimates(mix: Tensor, true: Tensor) -> Tensor:
        mask = true.abs() ** power >= THRESHOLD * (mix.abs() ** power + FLOOR)
        return mix * mask

    return _in_blocks(mixture, references, estimates)


def ideal_ratio_mask(mixture: Tensor, references: Tensor, power: float = 1.0) -> Tensor:
    """Every bin in proportion to the sources' magnitudes (power 1) or their squares (2)."""

    def estimates(mix: Tensor, true: Tensor) -> Tensor:
        shares = true.abs() ** power
        return mix * shares / (shares.sum(dim=0) + FLOOR)

    return _in_blocks(mixture, references, estimates)


def multichannel_wiener(mixture: Tensor, references: Tensor) -> Tensor:
    """The Wiener filter with the sources' true covariances between channels, one for every bin,
    and powers, one for every bin and frame. As in SiSEC's published oracles, covariances are means
    over frames that all weigh the same, and powers those that fit them best."""
    covariances = _covariances(references)  # [sources, bins, channels, channels]
    inverses = inverse_of(covariances)
    noise = FLOOR * torch.eye(len(mixture), dtype=covariances.dtype)

    def estimates(mix: Tensor, true: Tensor) -> Tensor:
        y = true.permute(0, 2, 3, 1)[..., None]  # [sources, bins, frames, channels, 1]
        power = (y.mH @ inverses[:, :, None] @ y).real.clamp(min=0) / len(mixture)
        each = power * covariances[:, :, None]
        x = mix.permute(1, 2, 0)[..., None]
        whitened = inverse_of(each.sum(dim=0) + noise) @ x
        return (each @ whitened)[..., 0].permute(0, 3, 1, 2)

    return _in_blocks(mixture, references, estimates)


def _covariances(references: Tensor) -> Tensor:
    """Of the sources, `[sources, bins, channels, channels]`, with a trace of `channels`."""
    channels, total = references.shape[1], torch.zeros(())
    for kept, held in _blocks(references.shape[-1]):
        first = (kept.start - held.start) // HOP
        last = None if kept.stop == references.shape[-1] else (kept.stop - held.start) // HOP
        true = _spectrum(references[..., held])[..., first:last]
        weights = 1 / (FLOOR + true.abs().square().mean(dim=1))
        total = total + torch.einsum("jcft,jdft,jft->jfcd", true, true.conj(), weights.to(true))
    trace = total.diagonal(dim1=-2, dim2=-1).sum(dim=-1).real.clamp(min=FLOOR)
    identity = torch.eye(channels, dtype=total.dtype)
    return total * (channels / trace)[..., None, None] + FLOOR * identity


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


def _in_blocks(
    mixture: Tensor, references: Tensor, estimates: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Sounds of what is estimated from spectrograms of the mixture and of the sources, block by
    block, so that memory does not grow with the song."""
    result = torch.empty_like(references)
    for kept, held in _blocks(mixture.shape[-1]):
        made = estimates(_spectrum(mixture[..., held]), _spectrum(references[..., held]))
        sound = istft(made, WINDOW, HOP, length=held.stop - held.start)
        result[..., kept] = sound[..., kept.start - held.start : kept.stop - held.start]
    return result


def _blocks(samples: int) -> Iterator[tuple[slice, slice]]:
    """Which samples come of each block, and which are read for them: the windows around them."""
    for start in range(0, samples, BLOCK):
        stop = min(start + BLOCK, samples)
        yield (
            slice(start, stop),
            slice(max(0, start - 2 * WINDOW), min(samples, stop + 2 * WINDOW)),
        )


def _spectrum(signals: Tensor) -> Tensor:
    """`[..., bins, frames]`, with enough silence after the sound for the last frame.

    In float64: covariances between channels that are nearly alike are hard to invert.
    """
    padded = torch.nn.functional.pad(signals.double(), (0, WINDOW))
    return stft(padded, WINDOW, HOP)
