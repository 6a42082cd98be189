"""Convolution with long filters through the FFT, block by block (overlap-save); frames; volume.

Block size and conventions as published in julius (0.2.8).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sonorant.errors import ShapeError

VOLUME_FLOOR = 1e-8  # of the mean square, so that silence has -80 dB


def fft_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int = 1,
    padding: int = 0,
    block_ratio: float = 5,
) -> Tensor:
    """What `torch.nn.functional.conv1d` gives, faster for filters of about 128 samples or more.

    x [batch, in_channels, time], weight [out_channels, in_channels, kernel], bias [out_channels]
    -> [batch, out_channels, (time + 2 * padding - kernel) // stride + 1]. padding: zeros on either
    side. block_ratio: block size in kernels; larger blocks mean fewer and longer transforms.
    Raises: ShapeError if the padded signal is shorter than the filter.

    >>> fft_conv1d(torch.zeros(2, 3, 1000), torch.zeros(4, 3, 200), stride=2).shape
    torch.Size([2, 4, 401])
    """
    x = functional.pad(x, (padding, padding))
    samples, kernel = x.shape[-1], weight.shape[-1]
    if samples < kernel:
        raise ShapeError(f"a filter of {kernel} samples does not fit into {samples} samples")
    block = min(max(int(block_ratio * kernel), kernel), samples)
    step = block - kernel + 1
    blocks = torch.fft.rfft(unfold(x, block, step))
    filters = torch.fft.rfft(weight, block)
    y = torch.fft.irfft(_correlated(blocks, filters), block)[..., :step].flatten(-2)
    y = y[..., : samples - kernel + 1 : stride]
    return y if bias is None else y + bias[:, None]


def _correlated(blocks: Tensor, filters: Tensor) -> Tensor:
    """Spectra [b, d, n, f]: blocks [b, c, n, f] times the conjugate of filters [d, c, f], over c.

    In real numbers, which is slower than complex ones for many channels, but rounds as published:
    long filters otherwise differ by more than the published results are exact.
    """

    def summed(a: Tensor, b: Tensor) -> Tensor:
        return torch.einsum("bcnf,dcf->bdnf", a, b)

    return torch.complex(
        summed(blocks.real, filters.real) + summed(blocks.imag, filters.imag),
        summed(blocks.imag, filters.real) - summed(blocks.real, filters.imag),
    )


def unfold(x: Tensor, kernel_size: int, stride: int) -> Tensor:
    """Frames `[..., frames, kernel_size]` of a signal `[..., time]`, zeros after its end.

    Every sample is in a frame: ceil((max(time, kernel_size) - kernel_size) / stride) + 1 frames.

    >>> unfold(torch.arange(5), kernel_size=3, stride=3)
    tensor([[0, 1, 2],
            [3, 4, 0]])
    """
    samples = max(x.shape[-1], kernel_size)
    frames = -(-(samples - kernel_size) // stride) + 1
    covered = (frames - 1) * stride + kernel_size
    x = functional.pad(x, (0, max(0, covered - x.shape[-1])))
    return x.unfold(-1, kernel_size, stride)


def volume(x: Tensor, floor: float = VOLUME_FLOOR) -> Tensor:
    """Volume `[...]` in dB of a signal `[..., time]`: 10 log10 of its mean square.

    >>> volume(torch.ones(2, 100)).tolist()
    [0.0, 0.0]
    """
    return 10 * torch.log10(floor + x.square().mean(dim=-1))
