"""Windowed-sinc filters without delay: low-pass banks, high-pass, band-pass, bands that sum to x.

Definition as published in julius (0.2.8). A cut-off c is a fraction of the sample rate, 0 to 0.5:

    h[k] = 2 c hann[k] sinc(2 pi c k) / sum,   |k| <= half,   half = int(zeros / c / 2)

so the filter spans `zeros` zero crossings of the sinc on either side. At c the gain is -6 dB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sonorant.dsp.fft_convolution import fft_conv1d
from sonorant.dsp.mel import mel_frequencies
from sonorant.errors import ConfigError, ShapeError

ZEROS = 8  # zero crossings, the published default
LONGEST_DIRECT_HALF = 32  # longer filters go through the FFT


def lowpass_bank(
    x: Tensor,
    cutoffs: Sequence[float],
    stride: int = 1,
    pad: bool = True,
    zeros: float = ZEROS,
) -> Tensor:
    """Signals `[len(cutoffs), ..., ceil(time / stride)]` below each cut-off, of x `[..., time]`.

    All filters are as long as that of the lowest cut-off above 0; cut-off 0 gives silence. pad:
    repeat the first and last sample beyond the ends; else only outputs within x are returned.
    stride: keep every so-many-th output.
    Raises: ConfigError for an impossible cut-off; ShapeError if x is shorter than an unpadded
    filter, or empty.

    >>> lowpass_bank(torch.zeros(2, 1, 500), [0.1, 0.3]).shape
    torch.Size([2, 2, 1, 500])
    """
    filters = lowpass_filters(tuple(cutoffs), zeros, x.dtype, x.device)
    taps = filters.shape[-1]
    half = taps // 2
    if x.shape[-1] < (1 if pad else taps):
        raise ShapeError(f"a signal of {x.shape[-1]} samples is too short for a filter of {taps}")
    rows = x.reshape(-1, 1, x.shape[-1])
    if pad:
        rows = functional.pad(rows, (half, half), mode="replicate")
    convolve = fft_conv1d if half > LONGEST_DIRECT_HALF else functional.conv1d
    y = convolve(rows, filters[:, None], stride=stride)
    return y.transpose(0, 1).reshape(len(filters), *x.shape[:-1], y.shape[-1])


def lowpass(
    x: Tensor, cutoff: float, stride: int = 1, pad: bool = True, zeros: float = ZEROS
) -> Tensor:
    """The part of x `[..., time]` below `cutoff`. See `lowpass_bank`.

    >>> lowpass(torch.ones(4, 100), 0.25).shape
    torch.Size([4, 100])
    """
    return lowpass_bank(x, [cutoff], stride, pad, zeros)[0]


def highpass(
    x: Tensor, cutoff: float, stride: int = 1, pad: bool = True, zeros: float = ZEROS
) -> Tensor:
    """The part of x `[..., time]` above `cutoff`: x less its low-pass. See `lowpass_bank`."""
    return _within(x, cutoff, stride, pad, zeros) - lowpass(x, cutoff, stride, pad, zeros)


def bandpass(
    x: Tensor,
    cutoff_low: float,
    cutoff_high: float,
    stride: int = 1,
    pad: bool = True,
    zeros: float = ZEROS,
) -> Tensor:
    """The part of x `[..., time]` between two cut-offs. See `lowpass_bank`.

    Raises: ConfigError if cutoff_low is above cutoff_high.
    """
    if cutoff_low > cutoff_high:
        raise ConfigError(f"no band reaches from {cutoff_low} to {cutoff_high}; swap the cut-offs")
    low, high = lowpass_bank(x, [cutoff_low, cutoff_high], stride, pad, zeros)
    return high - low


def split_bands(
    x: Tensor,
    sample_rate: int,
    n_bands: int | None = None,
    cutoffs_hz: Sequence[float] | None = None,
    zeros: float = ZEROS,
) -> Tensor:
    """Bands `[bands, ..., time]` of x `[..., time]`, from low to high; their sum is x.

    Either n_bands, equally wide in mels from 0 to half the sample rate, or the cut-offs between
    the bands in Hz, rising.
    Raises: ConfigError if both or neither are given, or the cut-offs do not rise.

    >>> x = torch.randn(1, 400)
    >>> torch.allclose(split_bands(x, 16000, n_bands=5).sum(0), x, atol=1e-6)
    True
    """
    if (n_bands is None) == (cutoffs_hz is None):
        raise ConfigError("split_bands needs either n_bands or cutoffs_hz")
    cutoffs = mel_cutoffs(n_bands, sample_rate) if cutoffs_hz is None else cutoffs_hz
    cutoffs = [cutoff / sample_rate for cutoff in cutoffs]
    if cutoffs != sorted(set(cutoffs)):
        raise ConfigError(f"cutoffs_hz must rise, got {cutoffs_hz}")
    if not cutoffs:
        return x[None]
    lows = lowpass_bank(x, cutoffs, zeros=zeros)
    return torch.cat([lows[:1], lows.diff(dim=0), (x - lows[-1])[None]])


def mel_cutoffs(n_bands: int | None, sample_rate: int) -> Sequence[Any]:
    """Cut-offs in Hz between bands that are equally wide in mels.

    Single-precision numbers, which make the angles of the filters single too, as published: over
    thousands of samples the difference would show.
    """
    if n_bands is None or n_bands < 1:
        raise ConfigError(f"n_bands must be at least 1, got {n_bands}")
    return list(mel_frequencies(n_bands + 1, 0, sample_rate / 2)[1:-1].numpy())


def _half(cutoffs: Sequence[float], zeros: float) -> int:
    """Samples on either side of the middle of the filters."""
    if not cutoffs or min(cutoffs) < 0 or max(cutoffs) > 0.5 or max(cutoffs) == 0:
        raise ConfigError(
            f"cut-offs are fractions of the sample rate from 0 to 0.5, at least one above 0; "
            f"got {list(cutoffs)}"
        )
    return int(zeros / min(cutoff for cutoff in cutoffs if cutoff > 0) / 2)


def _within(x: Tensor, cutoff: float, stride: int, pad: bool, zeros: float) -> Tensor:
    """The samples of x at which `lowpass` has its outputs."""
    half = 0 if pad else _half([cutoff], zeros)
    return x[..., half : x.shape[-1] - half : stride]


@lru_cache(maxsize=64)
def lowpass_filters(
    cutoffs: tuple[float, ...],
    zeros: float = ZEROS,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The low-pass filters `[len(cutoffs), taps]` of `lowpass_bank`; do not write into them."""
    half = _half(cutoffs, zeros)
    with torch.inference_mode(False):  # so that the kept filters can be used in training
        window = torch.hann_window(2 * half + 1, periodic=False, dtype=dtype, device=device)
        time = torch.arange(-half, half + 1, dtype=dtype, device=device)
        rows = []
        for cutoff in cutoffs:
            angle = float(2 * cutoff * math.pi) * time
            row = float(2 * cutoff) * window * torch.where(angle == 0, 1, torch.sin(angle) / angle)
            rows.append(row / row.sum() if cutoff else torch.zeros_like(window))
        return torch.stack(rows)
