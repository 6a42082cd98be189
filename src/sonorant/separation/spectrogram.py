"""Spectrograms as the hybrid separators cut them: one frame per hop, without the highest bin.

Sources: Hybrid Demucs (arXiv 2111.03600, section 3.1); numbers and the padding of the models of the
2021 challenge as in the published package (demucs 4.1.0).
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from sonorant.dsp.stft import istft, stft
from sonorant.separation.blocks import pad1d

# Frames that padding adds on either side, which only see it in part, and that are left out.
EDGE_FRAMES = 2


def spectrogram(x: Tensor, n_fft: int, hop_samples: int, padding: int = 0) -> Tensor:
    """Centred spectrogram of x [..., time], scaled by 1 / sqrt(FFT size).

    padding: how many times n_fft zeros the FFT adds to the window of n_fft samples.
    Shape: complex [..., n_fft * (1 + padding) // 2 + 1, 1 + time // hop_samples].

    >>> import torch
    >>> spectrogram(torch.zeros(2, 1000), 64, 16).shape
    torch.Size([2, 33, 63])
    """
    size = n_fft * (1 + padding)
    return stft(x, size, hop_samples, win_length=n_fft) / math.sqrt(size)


def waveform(z: Tensor, hop_samples: int, length: int, padding: int = 0) -> Tensor:
    """The inverse of `spectrogram`: sound [..., length]."""
    size = 2 * (z.shape[-2] - 1)
    n_fft = size // (1 + padding)
    return istft(z, size, hop_samples, win_length=n_fft, length=length) * math.sqrt(size)


class PlainSpectrogram:
    """The spectrogram without its highest bin, the hop a quarter of n_fft.

    forward: x [..., channels, time] -> complex [..., channels, n_fft // 2, frames].
    """

    def __init__(self, n_fft: int) -> None:
        self.n_fft = n_fft
        self.hop_samples = n_fft // 4

    def forward(self, x: Tensor) -> Tensor:
        return spectrogram(x, self.n_fft, self.hop_samples)[..., :-1, :]

    def inverse(self, z: Tensor, length: int) -> Tensor:
        """Sound [..., channels, length]; the highest bin is silent."""
        return self._sound(z, 0, length)

    def _sound(self, z: Tensor, edges: int, length: int) -> Tensor:
        """The sound of z between so many silent frames on either side."""
        *items, bins, frames = z.shape
        whole = z.new_zeros(*items, frames + 2 * edges, bins + 1)  # as the inverse FFT takes it
        whole[..., edges : edges + frames, :-1] = z.transpose(-1, -2)
        return waveform(whole.transpose(-1, -2), self.hop_samples, length)


class FramePerHop(PlainSpectrogram):
    """The same with ceil(time / hop) frames, as many as strided convolutions over the sound give.

    The sound is reflected on both sides, also where it is short.
    Shape: x [batch, channels, time] -> complex [batch, channels, n_fft // 2, frames].
    """

    @property
    def margin(self) -> int:
        """Samples of padding on the left, and at least on the right."""
        return self.hop_samples // 2 * 3

    def forward(self, x: Tensor) -> Tensor:
        frames = math.ceil(x.shape[-1] / self.hop_samples)
        right = self.margin + frames * self.hop_samples - x.shape[-1]
        z = super().forward(self.pad(x, self.margin, right))
        return z[..., EDGE_FRAMES : EDGE_FRAMES + frames]

    def inverse(self, z: Tensor, length: int) -> Tensor:
        padded = math.ceil(length / self.hop_samples) * self.hop_samples + 2 * self.margin
        x = self._sound(z, EDGE_FRAMES, padded)
        return x[..., self.margin : self.margin + length]

    @staticmethod
    def pad(x: Tensor, left: int, right: int) -> Tensor:
        return pad1d(x, left, right, "reflect")


class ShiftedFramePerHop(FramePerHop):
    """What some models of the 2021 challenge learned with: zeros around the sound, and an inverse
    that comes `margin` samples late.
    """

    def inverse(self, z: Tensor, length: int) -> Tensor:
        padded = math.ceil(length / self.hop_samples) * self.hop_samples
        return self._sound(z, EDGE_FRAMES, padded)[..., :length]

    @staticmethod
    def pad(x: Tensor, left: int, right: int) -> Tensor:
        return F.pad(x, (left, right))
