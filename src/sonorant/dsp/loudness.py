"""K-weighting and gated loudness of ITU-R BS.1770-4, in LKFS (dB relative to full scale).

Two versions of the K-weighting filters. PUBLISHED: the rounded parameters and the clamp to [-1, 1]
that the public training code uses (torchaudio); losses and normalisation follow it. STANDARD: the
coefficients of the standard's tables 1 and 2, without a clamp; use it to measure.

The filters are recursive but forget within a few thousand samples: each is applied as a convolution
with its impulse response through the FFT, which is quick and has gradients.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from sonorant.dsp.fft_convolution import fft_conv1d
from sonorant.errors import ShapeError

BLOCK_SECONDS = 0.4
BLOCK_STEP = 0.25  # of a block; blocks overlap by three quarters
ABSOLUTE_GATE = -70.0  # LKFS
RELATIVE_GATE = -10.0  # dB below the loudness of the blocks above the absolute gate
CHANNEL_WEIGHTS = (1.0, 1.0, 1.0, 1.41, 1.41)  # left, right, centre, left and right surround
OFFSET = -0.691  # dB, undoes the gain of the filters at 997 Hz
FORGOTTEN = 1e-10  # an impulse response ends when its slowest part has decayed to this
BLOCK_FLOOR = torch.finfo(torch.float32).eps  # energy added by `block_loudness`


@dataclass(frozen=True)
class Biquad:
    """y[n] = b0 x[n] + b1 x[n-1] + b2 x[n-2] - a1 y[n-1] - a2 y[n-2], from silence."""

    b: tuple[float, float, float]
    a: tuple[float, float]

    @classmethod
    def scaled(cls, b: tuple[float, float, float], a: tuple[float, float, float]) -> Biquad:
        """With the coefficient of y[n] made 1."""
        return cls((b[0] / a[0], b[1] / a[0], b[2] / a[0]), (a[1] / a[0], a[2] / a[0]))


@dataclass(frozen=True)
class Weighting:
    """A version of K-weighting: its two filters by sample rate, and whether they clamp."""

    filters: Callable[[int], tuple[Biquad, Biquad]]
    clamp: bool


def biquad(x: Tensor, coefficients: Biquad, clamp: bool = False) -> Tensor:
    """x `[..., time]` through a recursive filter of second order; clamp: then to [-1, 1]."""
    response = _impulse_response(coefficients, x.dtype, x.device)
    past = response.shape[-1] - 1
    padded = functional.pad(x.reshape(-1, 1, x.shape[-1]), (past, 0))
    y = fft_conv1d(padded, response.flip(0)[None, None]).reshape(x.shape)
    return y.clamp(-1, 1) if clamp else y


def published_filters(sample_rate: int) -> tuple[Biquad, Biquad]:
    """High shelf (+4 dB, 1500 Hz, Q 1/sqrt 2) and high-pass (38 Hz, Q 0.5).

    Forms: R. Bristow-Johnson, "Cookbook formulae for audio EQ biquad filter coefficients".
    """
    angle, q = 2 * math.pi * 1500 / sample_rate, 1 / math.sqrt(2)
    gain, c = 10 ** (4 / 40), math.cos(angle)
    slope = math.sqrt(gain) * math.sin(angle) / q
    up, down = (gain + 1) + (gain - 1) * c, (gain + 1) - (gain - 1) * c
    shelf = Biquad.scaled(
        (gain * (up + slope), -2 * gain * ((gain - 1) + (gain + 1) * c), gain * (up - slope)),
        (down + slope, 2 * ((gain - 1) - (gain + 1) * c), down - slope),
    )
    angle, q = 2 * math.pi * 38 / sample_rate, 0.5
    alpha, c = math.sin(angle) / (2 * q), math.cos(angle)
    highpass = Biquad.scaled(((1 + c) / 2, -(1 + c), (1 + c) / 2), (1 + alpha, -2 * c, 1 - alpha))
    return shelf, highpass


def standard_filters(sample_rate: int) -> tuple[Biquad, Biquad]:
    """The filters of BS.1770-4, tables 1 and 2, which hold for 48 kHz, moved to another rate."""
    shelf = (1.53512485958697, -2.69169618940638, 1.19839281085285)
    shelf_past = (1.0, -1.69065929318241, 0.73248077421585)
    highpass, highpass_past = (1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621)
    return (
        _moved(shelf, shelf_past, sample_rate),
        _moved(highpass, highpass_past, sample_rate),
    )


PUBLISHED = Weighting(published_filters, clamp=True)
STANDARD = Weighting(standard_filters, clamp=False)


def k_weighted(x: Tensor, sample_rate: int, weighting: Weighting = PUBLISHED) -> Tensor:
    """x `[..., time]` as loud at every frequency as an ear hears it.

    >>> k_weighted(torch.zeros(2, 1, 4000), 16000).shape
    torch.Size([2, 1, 4000])
    """
    for coefficients in weighting.filters(sample_rate):
        x = biquad(x, coefficients, weighting.clamp)
    return x


def loudness(x: Tensor, sample_rate: int, weighting: Weighting = PUBLISHED) -> Tensor:
    """Integrated loudness `[...]` in LKFS of sounds `[..., channels, time]`.

    Blocks of 0.4 s, of which those above -70 LKFS and above 10 dB below these count; the part of a
    block at the end does not. NaN if no block is above -70 LKFS: silence has no loudness.
    Raises: ShapeError if the sound is shorter than a block or has more than five channels.

    >>> time = torch.arange(48000) / 48000
    >>> tone = torch.sin(2 * torch.pi * 997 * time)
    >>> round(float(loudness(tone[None], 48000, STANDARD)), 2)
    -3.01
    """
    energy = _block_energy(x, sample_rate, weighting)
    weights = _channel_weights(energy)
    blocks = _to_lkfs((energy * weights).sum(dim=-2))
    kept = blocks > ABSOLUTE_GATE
    gate = _gated(energy, kept, weights) + RELATIVE_GATE
    return _gated(energy, kept & (blocks > gate[..., None]), weights)


def block_loudness(x: Tensor, sample_rate: int, weighting: Weighting = PUBLISHED) -> Tensor:
    """Loudness `[..., blocks]` of each block of 0.4 s of sounds `[..., channels, time]`, ungated.

    1.2e-7 is added to each energy, so silence has about -70 LKFS and a gradient.
    """
    energy = _block_energy(x, sample_rate, weighting)
    return _to_lkfs((energy * _channel_weights(energy)).sum(dim=-2) + BLOCK_FLOOR)


def _block_energy(x: Tensor, sample_rate: int, weighting: Weighting) -> Tensor:
    """Mean square `[..., channels, blocks]` of the weighted sound."""
    block = round(BLOCK_SECONDS * sample_rate)
    if x.dim() < 2 or x.shape[-2] > len(CHANNEL_WEIGHTS) or x.shape[-1] < block:
        raise ShapeError(
            f"loudness needs [..., channels, time] with up to {len(CHANNEL_WEIGHTS)} channels and "
            f"at least {block} samples ({BLOCK_SECONDS} s), got {list(x.shape)}"
        )
    weighted = k_weighted(x, sample_rate, weighting)
    return weighted.square().unfold(-1, block, round(block * BLOCK_STEP)).mean(dim=-1)


def _channel_weights(energy: Tensor) -> Tensor:
    return energy.new_tensor(CHANNEL_WEIGHTS[: energy.shape[-2]])[:, None]


def _gated(energy: Tensor, kept: Tensor, weights: Tensor) -> Tensor:
    """Loudness `[...]` of the kept blocks together; NaN if there are none."""
    mean = (energy * kept[..., None, :]).sum(dim=-1) / kept.sum(dim=-1)[..., None]
    return _to_lkfs((mean * weights[:, 0]).sum(dim=-1))


def _to_lkfs(energy: Tensor) -> Tensor:
    return OFFSET + 10 * torch.log10(energy)


def _moved(
    b: tuple[float, float, float], a: tuple[float, float, float], sample_rate: int
) -> Biquad:
    """A filter given for 48 kHz, for another rate: the same corner frequency, gains and Q.

    In p = (1 - z^-1) / (1 + z^-1), which is i tan(pi f / rate) at frequency f, the filter is a
    quotient of polynomials of second order, and a change of rate is a change of scale of p.
    """
    numerator, denominator = _swap_z_and_p(b), _swap_z_and_p(a)
    corner = math.sqrt(denominator[0] / denominator[2])  # in p, at 48 kHz
    scale = corner / math.tan(math.atan(corner) * 48_000 / sample_rate)
    moved = []
    for c0, c1, c2 in (numerator, denominator):
        moved.append(_swap_z_and_p((c0, c1 * scale, c2 * scale**2)))
    return Biquad.scaled(*moved)


def _swap_z_and_p(c: tuple[float, float, float]) -> tuple[float, float, float]:
    """Coefficients in p of a polynomial in z^-1, or the other way round, up to a factor."""
    return c[0] + c[1] + c[2], 2 * (c[0] - c[2]), c[0] - c[1] + c[2]


@lru_cache(maxsize=32)
def _impulse_response(coefficients: Biquad, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The response `[samples]` until it is forgotten, computed in float64."""
    (b0, b1, b2), (a1, a2) = coefficients.b, coefficients.a
    root = cmath.sqrt(a1 * a1 - 4 * a2)
    slowest = max(abs(-a1 + root), abs(-a1 - root)) / 2
    samples = 3 + math.ceil(math.log(FORGOTTEN) / math.log(slowest)) if slowest else 3
    forced = [b0, b1, b2] + [0.0] * (samples - 3)
    response = [0.0, 0.0]
    for value in forced:
        response.append(value - a1 * response[-1] - a2 * response[-2])
    with torch.inference_mode(False):  # so that the kept response can be used in training
        return torch.tensor(response[2:], dtype=dtype, device=device)
