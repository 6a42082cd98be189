"""BSSEval: how far a separated source is from the true one, and what the difference is made of.

An estimate is projected by least squares, with filters of 512 taps, onto the true source it stands
for and onto all true sources. What the first projection leaves to the source is distortion in space
and colour, what the second adds is interference, and what no filter explains is artefacts. Version
4 fits the filters once to the whole track and then looks at it frame by frame; version 3 fits them
in every frame.

Source: Vincent, Gribonval and Févotte, IEEE TASLP 14(4), 2006; with images, Vincent et al., Signal
Processing 92(8), 2012; version 4, Stöter, Liutkus and Ito, SiSEC 2018 (arXiv 1804.06267), as in the
museval package, whose numbers these are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, permutations

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sonorant.errors import ConfigError, ShapeError
from sonorant.separation.correlations import Signals
from sonorant.separation.distortion_filters import DistortionFilters, Pairs
from sonorant.separation.frame_energies import Combinations

TAPS = 512
"""Of the distortion filters (arXiv 1804.06267)."""
FIRST_LOOK = 256
"""Samples that mostly show already that a frame is not silent."""
TRUSTED = 1e-9
"""Share of the numbers that an energy is a difference of, below which it is computed anew. Rounding
leaves 1e-16 of them."""


class BssEvalConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """window_samples, hop_samples: of the frames; None makes the whole track one frame.

    framewise_filters: version 3. images: score images of sources, where wrong gains and filters
    count; else sources, where they are forgiven and there is no ISR. permute: give the estimates to
    the references in the order of the largest mean SIR.
    """

    window_samples: int | None = None
    hop_samples: int | None = None
    taps: int = TAPS
    framewise_filters: bool = False
    images: bool = True
    permute: bool = False


@dataclass(frozen=True)
class BssScores:
    """Ratios in dB, float64 `[sources, frames]`. NaN: a reference or an estimate is silent there.

    permutation: int64 `[sources, frames]`, or one column for the track in version 4: which estimate
    each reference was given.
    """

    sdr: Tensor
    isr: Tensor
    sir: Tensor
    sar: Tensor
    permutation: Tensor


def bss_eval(
    references: Tensor, estimates: Tensor, config: BssEvalConfig | None = None
) -> BssScores:
    """Score estimates `[sources, channels, time]` against the true sources of the same shape.

    SDR over all, ISR for space and colour, SIR for interference, SAR for artefacts. A last frame
    that is not full is left out. If any reference or estimate is silent in a frame (its channels
    add up to zero at every sample), nothing is scored in it: all sources are NaN there.
    Raises: ShapeError for shapes that differ or are empty, ConfigError for an impossible config.

    >>> truth = torch.randn(2, 1, 4000, dtype=torch.float64)
    >>> scores = bss_eval(truth, truth + 0.1 * truth.flip(0), BssEvalConfig(2000, 2000, taps=16))
    >>> scores.sdr.shape, bool((scores.sdr - 20).abs().max() < 1)
    (torch.Size([2, 2]), True)
    """
    config = config or BssEvalConfig()
    _check(references, estimates, config)
    signals = Signals(references, estimates)
    count = len(references)
    pairs = [(j, k) for j in range(count) for k in range(count) if config.permute or j == k]
    spans = list(frames(signals.samples, config.window_samples, config.hop_samples))
    sounding = [_sounds(references[..., s]) and _sounds(estimates[..., s]) for s in spans]
    ratios = torch.full((4, len(pairs), len(spans)), torch.nan, dtype=torch.float64)
    if config.framewise_filters:
        for index, span in enumerate(spans):
            if sounding[index]:
                frame = Signals(references[..., span], estimates[..., span])
                whole = [slice(0, frame.samples)]
                ratios[..., index : index + 1] = _score_track(frame, whole, pairs, config)
    elif any(sounding):
        ratios = _score_track(signals, spans, pairs, config)
        ratios[..., ~torch.tensor(sounding)] = torch.nan
    return _permuted(ratios, count, config)


def frames(samples: int, window: int | None, hop: int | None) -> Iterator[slice]:
    """The full frames of a track of that many samples."""
    if window is None or window >= samples:
        yield slice(0, samples)
        return
    assert hop is not None
    for start in range(0, samples - window + 1, hop):
        yield slice(start, start + window)


def _check(references: Tensor, estimates: Tensor, config: BssEvalConfig) -> None:
    if references.dim() != 3 or not references.numel():
        raise ShapeError(f"references must be [sources, channels, time], not {references.shape}")
    if estimates.shape != references.shape:
        raise ShapeError(
            f"estimates have the shape {list(estimates.shape)} and references "
            f"{list(references.shape)}; cut or pad the estimates to the references"
        )
    sizes = (config.taps, config.window_samples, config.hop_samples)
    if any(size is not None and size < 1 for size in sizes):
        raise ConfigError(f"window, hop and taps must have a sample or more: {config}")
    if (config.window_samples is None) != (config.hop_samples is None):
        raise ConfigError("give both a window and a hop, or neither for the whole track")


def _sounds(signals: Tensor) -> bool:
    """Whether none of the signals `[sources, channels, time]` is silent."""
    for part in (signals[..., :FIRST_LOOK], signals):
        if bool((part.sum(dim=1) != 0).any(dim=1).all()):
            return True
    return False


def _score_track(
    signals: Signals, spans: Sequence[slice], pairs: Pairs, config: BssEvalConfig
) -> Tensor:
    """Ratios `[4, pairs, frames]`, with filters of the whole track."""
    shape = (len(spans), config.taps, signals.references, 2 * signals.references)
    correlations = signals.sources.new_empty(shape, dtype=torch.float64)
    for span, target in zip(spans, correlations, strict=True):
        target.copy_(signals.correlate(span, config.taps))
    whole = _joined(signals, spans, correlations, config.taps)
    filters = DistortionFilters.fit(whole, len(signals.sources), pairs)
    return _score_frames(signals, spans, correlations, filters, pairs, config.images)


def _joined(signals: Signals, spans: Sequence[slice], correlations: Tensor, taps: int) -> Tensor:
    """The whole track's correlations: of frames, where they follow each other, and across them.

    correlations: `[frames, taps, references, rows]`.
    """
    following = all(one.stop == other.start for one, other in pairwise(spans))
    if not following or spans[0].stop < taps:
        return signals.correlate(slice(0, signals.samples), taps)
    rest = slice(spans[-1].stop, signals.samples)
    edges = [span.stop for span in spans if span.stop < signals.samples]
    whole = correlations.sum(dim=0)
    if edges:
        whole += signals.correlate_across(edges, taps)
    if rest.start < rest.stop:
        whole += signals.correlate(rest, taps)
    return whole


def _score_frames(
    signals: Signals,
    spans: Sequence[slice],
    correlations: Tensor,
    filters: DistortionFilters,
    pairs: Pairs,
    images: bool,
) -> Tensor:
    """Ratios `[4, pairs, frames]` from the frames' correlations; where digits are lost, anew."""
    combinations = _combinations(signals, filters, pairs, images)
    squares = torch.stack([signals.squares(span) for span in spans])
    energies, sizes = combinations.energies(correlations, squares)
    lost = (energies < TRUSTED * sizes).any(dim=1)
    both = energies.unflatten(1, (4, 2, len(pairs)))
    ratios = torch.stack(
        [
            _energies_anew(signals, span, filters, pairs, images) if again else known
            for span, known, again in zip(spans, both, lost, strict=True)
        ]
    )
    return _decibels(ratios, images)


def _combinations(
    signals: Signals, filters: DistortionFilters, pairs: Pairs, images: bool
) -> Combinations:
    """The signals whose energies make the ratios, in the order of `_parts`, of all pairs each."""
    channels = filters.own.shape[1]
    source = torch.zeros_like(filters.own)
    for index, (j, _) in enumerate(pairs):
        for channel in range(channels):
            source[index, channel, j * channels + channel, 0] = 1
    everything = filters.everything[[k for _, k in pairs]]
    estimate = torch.tensor(
        [
            [signals.references + k * channels + channel for channel in range(channels)]
            for _, k in pairs
        ]
    )
    none = torch.full_like(estimate, -1)
    parts = _parts(source, torch.zeros_like(source), filters.own, everything, images)
    # What is taken from an estimate is what its place holds, with the estimate added.
    added = (none, estimate, none, none, none, none, none, estimate)
    return Combinations(torch.cat([part for both in parts for part in both]), torch.cat(added))


def _parts(
    source: Tensor, estimate: Tensor, own: Tensor, everything: Tensor, images: bool
) -> tuple[tuple[Tensor, Tensor], ...]:
    """What SDR, ISR, SIR and SAR are ratios of: what is good, and what is wrong."""
    target = source if images else own
    return (
        (target, estimate - target),
        (source, own - source),
        (own, everything - own),
        (everything, estimate - everything),
    )


def _energies_anew(
    signals: Signals, span: slice, filters: DistortionFilters, pairs: Pairs, images: bool
) -> Tensor:
    """The energies `[4, 2, pairs]` of one frame from the signals themselves."""
    energies = torch.zeros(4, 2, len(pairs), dtype=torch.float64)
    for rows, everything, own in filters.project(signals, span):
        sources, estimates = rows.chunk(2)
        for index, (j, k) in enumerate(pairs):
            parts = _parts(sources[j], estimates[k], own[index], everything[k], images)
            energies[..., index] += torch.tensor(
                [[float(part.square().sum()) for part in both] for both in parts],
                dtype=torch.float64,
            )
    return energies


def _decibels(energies: Tensor, images: bool) -> Tensor:
    """`[frames, 4, 2, pairs]` to ratios `[4, pairs, frames]`."""
    good, wrong = energies.permute(2, 1, 3, 0)
    ratios = 10 * torch.log10(good / wrong)
    ratios[wrong == 0] = torch.inf
    if not images:
        ratios[1] = torch.nan
    return ratios


def _permuted(ratios: Tensor, sources: int, config: BssEvalConfig) -> BssScores:
    """The scores of every reference with the estimate it is given. ratios: `[4, pairs, frames]`."""
    spans = ratios.shape[-1]
    columns = spans if config.framewise_filters else 1
    order = np.tile(np.arange(sources)[:, None], (1, columns))
    if not config.permute:
        return _scores(ratios, order)
    table = ratios.reshape(4, sources, sources, spans).numpy()
    choices = np.array(list(permutations(range(sources))))
    for column in range(columns):
        sir = table[2, :, :, column : column + 1] if config.framewise_filters else table[2]
        means = [sir[np.arange(sources), choice].mean() for choice in choices]
        # NaN counts as the largest, so that a silent frame keeps the order, as in museval.
        order[:, column] = choices[np.argmax(means)]
    chosen = table[:, np.arange(sources)[:, None], order, np.arange(spans)]
    return _scores(torch.from_numpy(chosen), order)


def _scores(ratios: Tensor, order: npt.NDArray[np.int64]) -> BssScores:
    sdr, isr, sir, sar = ratios
    return BssScores(sdr, isr, sir, sar, torch.from_numpy(order))
