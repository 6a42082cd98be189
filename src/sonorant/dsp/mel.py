"""The mel scale and mel spectrograms.

Scale: mel = 2595 log10(1 + f / 700) (O'Shaughnessy 1987, the scale of HTK). Filters: triangles of
height 1 between equally spaced points of that scale, without area normalisation.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor


def mel_frequencies(count: int, f_min: float, f_max: float) -> Tensor:
    """`count` frequencies in Hz, equally spaced in mels from f_min to f_max, both included.

    >>> mel_frequencies(3, 0.0, 8000.0).round().tolist()
    [0.0, 1768.0, 8000.0]
    """
    low, high = 2595 * torch.log10(1 + torch.tensor([f_min, f_max], dtype=torch.float32) / 700)
    return _equally_spaced(float(low), float(high), count)


@lru_cache(maxsize=64)
def mel_filterbank(
    n_freqs: int,
    n_mels: int,
    sample_rate: int,
    f_min: float = 0.0,
    f_max: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Triangular filters `[n_freqs, n_mels]`, built once; do not write into them.

    n_freqs: bins of the spectrogram, at linspace(0, sample_rate // 2, n_freqs) Hz.
    f_max: in Hz, None for half the sample rate. A low filter narrower than a bin may be all zero.
    """
    highest = sample_rate / 2 if f_max is None else f_max
    with torch.inference_mode(False):  # so that the cached filters can be used in training
        # The published filterbank takes its ends in float64, the published bands (see
        # `mel_frequencies`) in float32: 2e-3 Hz at 8 kHz, which long filters amplify.
        low, high = (2595 * math.log10(1 + hz / 700) for hz in (f_min, highest))
        points = _equally_spaced(low, high, n_mels + 2)
        bins = torch.linspace(0, sample_rate // 2, n_freqs)
        widths = points.diff()
        distances = points[None, :] - bins[:, None]
        rising = -distances[:, :-2] / widths[:-1]
        falling = distances[:, 2:] / widths[1:]
        return torch.minimum(rising, falling).clamp(min=0).to(device, dtype)


def mel_spectrogram(
    spectrum: Tensor,
    sample_rate: int,
    n_mels: int,
    f_min: float = 0.0,
    f_max: float | None = None,
    power: float = 2.0,
) -> Tensor:
    """Mel spectrogram `[..., n_mels, frames]` of a complex one `[..., n_freqs, frames]`.

    spectrum: from `sonorant.dsp.stft.stft`. power: 2 for energy, 1 for magnitude.

    >>> from sonorant.dsp.stft import stft
    >>> mel_spectrogram(stft(torch.zeros(1, 4000), 512, 128), sample_rate=16000, n_mels=40).shape
    torch.Size([1, 40, 32])
    """
    if power == 2:
        energy = spectrum.real.square() + spectrum.imag.square()
    else:
        energy = spectrum.abs() ** power
    filters = mel_filterbank(
        spectrum.shape[-2], n_mels, sample_rate, f_min, f_max, energy.dtype, energy.device
    )
    return filters.T @ energy


def _equally_spaced(low_mel: float, high_mel: float, count: int) -> Tensor:
    mels = torch.linspace(low_mel, high_mel, count)
    return 700 * (10 ** (mels / 2595) - 1)
