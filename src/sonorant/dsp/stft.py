"""Short-time Fourier transform with the conventions of the published codecs and separators.

Definition: X[f, m] = sum_k w[k] x[m * hop + k] exp(-2 pi i f k / n_fft), w the periodic Hann window
of `win_length` samples in the middle of n_fft; "normalized" divides by sqrt(sum w^2), so that the
energy does not depend on the window.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sonorant.errors import ShapeError

LEAST_WEIGHT = 1e-11  # what the windows over a sample have to sum up to, squared (torch's limit)
AT_ONCE = 2**22  # numbers of all frames that an inverse holds at once, 16 MB


def stft(
    x: Tensor,
    n_fft: int,
    hop_length: int,
    win_length: int | None = None,
    center: bool = True,
    normalized: bool = False,
    pad_mode: str = "reflect",
) -> Tensor:
    """Complex spectrogram `[..., n_fft // 2 + 1, frames]` of real sound `[..., time]`.

    Centred frames: frame m has its middle at sample m * hop_length of x, which is padded by
    n_fft // 2 on both sides with `pad_mode`: 1 + time // hop_length frames. Otherwise frame m
    starts there and only whole frames count.
    Raises: ShapeError if x is too short for one frame or for its padding.

    >>> stft(torch.zeros(2, 1, 1000), n_fft=64, hop_length=16).shape
    torch.Size([2, 1, 33, 63])
    """
    window = _checked_window(x, n_fft, win_length)
    needed = n_fft
    if center:
        needed = n_fft // 2 + 1 if pad_mode == "reflect" else 1
    if x.shape[-1] < needed:
        raise ShapeError(
            f"an STFT with n_fft={n_fft} needs at least {needed} samples, got {x.shape[-1]}; "
            "pad the sound or take a smaller n_fft"
        )
    spectrum = torch.stft(
        x.reshape(-1, x.shape[-1]),
        n_fft,
        hop_length,
        win_length=window.shape[-1],
        window=window,
        center=center,
        pad_mode=pad_mode,
        return_complex=True,
    )
    if normalized:
        spectrum = spectrum / window.square().sum().sqrt()
    return spectrum.reshape(*x.shape[:-1], *spectrum.shape[-2:])


def istft(
    spectrum: Tensor,
    n_fft: int,
    hop_length: int,
    win_length: int | None = None,
    normalized: bool = False,
    length: int | None = None,
) -> Tensor:
    """Sound `[..., time]` of a centred spectrogram `[..., n_fft // 2 + 1, frames]`.

    The least-squares inverse of `stft`: exact where the spectrogram came from one. Only centred
    spectrograms have an inverse, because the window is zero at the first sample of a frame.
    length: samples to return; by default hop_length * (frames - 1).
    Raises: ShapeError if the number of frequencies is not that of n_fft, or frames leave gaps.

    >>> x = torch.randn(1, 1000)
    >>> torch.allclose(istft(stft(x, 64, 16), 64, 16, length=1000), x, atol=1e-5)
    True
    """
    if spectrum.shape[-2] != n_fft // 2 + 1 or not spectrum.shape[-1]:
        raise ShapeError(
            f"n_fft={n_fft} means {n_fft // 2 + 1} frequencies in one or more frames, "
            f"but the spectrogram has {spectrum.shape[-2]} in {spectrum.shape[-1]}"
        )
    window = _checked_window(spectrum.real, n_fft, win_length)
    spread = n_fft - len(window)
    padded = F.pad(window, (spread // 2, spread - spread // 2))
    items = spectrum.reshape(-1, *spectrum.shape[-2:]).transpose(1, 2)  # [items, frames, bins]
    frames = items.shape[1]
    samples = hop_length * (frames - 1) if length is None else length
    end = min(n_fft // 2 + samples, hop_length * (frames - 1) + n_fft)
    heard = slice(n_fft // 2, end)
    weights = _overlap(padded.square().expand(1, frames, -1), hop_length)[:, heard]
    if weights.numel() and float(weights.min()) < LEAST_WEIGHT:
        raise ShapeError(
            f"frames of {len(window)} samples every {hop_length} leave samples out; "
            "take a smaller hop_length"
        )
    if normalized:
        padded = padded * window.square().sum().sqrt()
    sounds = []
    for group in items.split(max(1, AT_ONCE // (frames * n_fft))):
        windowed = torch.fft.irfft(group, n_fft).mul_(padded)
        sounds.append(_overlap(windowed, hop_length)[:, heard] / weights)
    x = F.pad(torch.cat(sounds), (0, samples - weights.shape[-1]))
    return x.reshape(*spectrum.shape[:-2], samples)


def _overlap(frames: Tensor, hop_length: int) -> Tensor:
    """The sum `[items, time]` of `[items, frames, samples]` that begin every `hop_length`."""
    items, count, samples = frames.shape
    hops = -(-samples // hop_length)
    total = frames.new_zeros(items, count + hops - 1, hop_length)
    for hop, part in enumerate(frames.split(hop_length, dim=-1)):
        total[:, hop : hop + count, : part.shape[-1]] += part
    return total.flatten(1)


def _checked_window(x: Tensor, n_fft: int, win_length: int | None) -> Tensor:
    length = n_fft if win_length is None else win_length
    if not 1 <= length <= n_fft:
        raise ShapeError(f"the window must have 1 to n_fft={n_fft} samples, got {length}")
    return hann_window(length, x.dtype, x.device)


@lru_cache(maxsize=64)
def hann_window(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The periodic Hann window `[length]`, built once; do not write into it."""
    # A tensor first made under inference_mode could never take part in a gradient later.
    with torch.inference_mode(False):
        return torch.hann_window(length, dtype=dtype, device=device)
