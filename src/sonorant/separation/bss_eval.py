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
from itertools import permutations

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from sonorant.errors import ConfigError, ShapeError
from sonorant.separation import block_toeplitz

TAPS = 512
"""Of the distortion filters (arXiv 1804.06267)."""
BLOCK_TAPS = 8
"""Fourier transforms take blocks of this many times the taps, and one eighth of them is overlap."""
BLOCKS_AT_ONCE = 16
"""Bounds the memory at a few tens of MB, and stays in the processor's cache."""
RIDGE = float(np.finfo(np.float64).eps)
"""Added to the diagonal of the normal equations, as museval does."""


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
    references, estimates = references.double(), estimates.double()
    count = len(references)
    pairs = [(j, k) for j in range(count) for k in range(count) if config.permute or j == k]
    spans = list(frames(references.shape[-1], config.window_samples, config.hop_samples))
    ratios = torch.full((4, len(pairs), len(spans)), torch.nan, dtype=torch.float64)
    filters = None
    for index, span in enumerate(spans):
        true, guess = references[..., span], estimates[..., span]
        if not (_sounds(true) and _sounds(guess)):
            continue
        if config.framewise_filters:
            filters = _Filters.fit(true, guess, config.taps, pairs)
        elif filters is None:
            filters = _Filters.fit(references, estimates, config.taps, pairs)
        ratios[:, :, index] = _ratios(true, guess, filters, pairs, config.images)
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
    if config.taps < 1 or min(config.window_samples or 1, config.hop_samples or 1) < 1:
        raise ConfigError(f"window, hop and taps must be at least 1: {config}")
    if (config.window_samples is None) != (config.hop_samples is None):
        raise ConfigError("give both a window and a hop, or neither for the whole track")


def _sounds(signals: Tensor) -> bool:
    """Whether none of the signals `[sources, channels, time]` is silent."""
    return bool((signals.sum(dim=1) != 0).any(dim=1).all())


@dataclass(frozen=True)
class _Filters:
    """Least-squares filters of a track, as spectra `[frequency, outputs, references]`.

    Outputs: every channel of every estimate from all references, then for each pair of a source and
    an estimate its channels from that source alone. References: channels of all sources.
    """

    spectra: Tensor
    taps: int

    @classmethod
    def fit(
        cls, references: Tensor, estimates: Tensor, taps: int, pairs: Sequence[tuple[int, int]]
    ) -> _Filters:
        sources, channels, time = references.shape
        inputs = sources * channels
        flat = references.reshape(inputs, time)
        correlations = _correlations(flat, torch.cat([flat, estimates.reshape(inputs, time)]), taps)
        among, with_estimates = correlations[None].tensor_split([inputs], dim=-1)
        among = among.contiguous()
        among[:, 0] += RIDGE * torch.eye(inputs, dtype=among.dtype, device=among.device)
        outputs = inputs + len(pairs) * channels
        filters = among.new_zeros(taps, outputs, inputs)
        filters[:, :inputs] = block_toeplitz.solve(among, with_estimates)[0].transpose(1, 2)
        own = [slice(source * channels, (source + 1) * channels) for source in range(sources)]
        guesses = [[k for j, k in pairs if j == source] for source in range(sources)]
        alone = block_toeplitz.solve(
            torch.stack([among[0, :, here, here] for here in own]),
            torch.stack(
                [
                    torch.cat([with_estimates[0, :, here, own[k]] for k in guesses[source]], dim=-1)
                    for source, here in enumerate(own)
                ]
            ),
        )
        width = alone.shape[-1]
        for source, here in enumerate(own):
            first = inputs + source * width
            filters[:, first : first + width, here] = alone[source].transpose(1, 2)
        return cls(torch.fft.rfft(filters, n=_block_samples(taps), dim=0), taps)


def _block_samples(taps: int) -> int:
    """A power of two, for the transform's speed."""
    return int(2 ** np.ceil(np.log2(BLOCK_TAPS * taps)))


def _correlations(references: Tensor, signals: Tensor, taps: int) -> Tensor:
    """`[taps, references, signals]`: inner products of references, delayed, with signals, in time.

    Blocks of the references are correlated with what lies under them and the taps after them.
    """
    size = _block_samples(taps)
    step = size - taps + 1
    time = signals.shape[-1]
    blocks = -(-time // step)
    padded = functional.pad(signals, (0, blocks * step + taps - 1 - time)).unfold(-1, size, step)
    total = torch.zeros((), dtype=torch.complex128, device=signals.device)
    for first in range(0, blocks, BLOCKS_AT_ONCE):
        under = padded[:, first : first + BLOCKS_AT_ONCE]
        delayed = torch.fft.rfft(under[: len(references), :, :step], n=size).permute(2, 0, 1)
        spectra = torch.fft.rfft(under).permute(2, 1, 0).contiguous()
        total = total + torch.bmm(delayed.conj().resolve_conj().contiguous(), spectra)
    return torch.fft.irfft(total, n=size, dim=0)[:taps]


def _ratios(
    true: Tensor, guess: Tensor, filters: _Filters, pairs: Sequence[tuple[int, int]], images: bool
) -> Tensor:
    """SDR, ISR, SIR and SAR in dB of every pair in one frame, `[4, pairs]`.

    The frame is taken out of its surroundings: before and after it there is silence.
    """
    sources, channels, _ = true.shape
    energies = torch.zeros(4, 2, len(pairs), dtype=torch.float64)
    projections = _filtered(true.flatten(0, 1), filters)
    pieces = (_pieces(signals, filters.taps) for signals in (true, guess))
    for projected, source, estimate in zip(projections, *pieces, strict=True):
        on_all, on_own = projected.unflatten(0, (-1, channels)).tensor_split([sources])
        for index, (j, k) in enumerate(pairs):
            s, e, own, everything = source[j], estimate[k], on_own[index], on_all[k]
            target = s if images else own
            of_and_against = (
                (target, e - target),
                (s, own - s),
                (own, everything - own),
                (everything, e - everything),
            )
            energies[..., index] += torch.tensor(
                [[_energy(part) for part in both] for both in of_and_against], dtype=torch.float64
            )
    ratios = 10 * torch.log10(energies[:, 0] / energies[:, 1])
    ratios[energies[:, 1] == 0] = torch.inf
    if not images:
        ratios[1] = torch.nan
    return ratios


def _energy(signals: Tensor) -> float:
    return float(torch.dot(signals.flatten(), signals.flatten()))


def _pieces(signals: Tensor, taps: int) -> Iterator[Tensor]:
    """`[..., time]` in silence as the blocks `[..., blocks, step]` that `_filtered` makes."""
    step = _block_samples(taps) - taps + 1
    blocks = -(-(signals.shape[-1] + taps - 1) // step)
    padded = functional.pad(signals, (0, blocks * step - signals.shape[-1]))
    yield from padded.unflatten(-1, (blocks, step)).split(BLOCKS_AT_ONCE, dim=-2)


def _filtered(references: Tensor, filters: _Filters) -> Iterator[Tensor]:
    """References `[references, time]` in silence through the filters: `[outputs, blocks, step]`."""
    size = _block_samples(filters.taps)
    step = size - filters.taps + 1
    blocks = -(-(references.shape[-1] + filters.taps - 1) // step)
    after = blocks * step - references.shape[-1]
    padded = functional.pad(references, (filters.taps - 1, after)).unfold(-1, size, step)
    for some in padded.split(BLOCKS_AT_ONCE, dim=1):
        spectra = torch.fft.rfft(some).permute(2, 0, 1).contiguous()
        outputs = torch.bmm(filters.spectra, spectra).permute(1, 2, 0).contiguous()
        yield torch.fft.irfft(outputs, n=size)[..., filters.taps - 1 :]


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
