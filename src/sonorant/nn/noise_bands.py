"""Numbers behind the noise bands of the transform start: filters, levels on a log scale, carriers.

Above the frequencies whose waveform a small latent can carry, the ear needs little more than the
level in each band. A network of convolutions, ELUs and one LSTM can measure it, carry it as a
logarithm and give it to a carrier again, exactly enough to start from:

- elu(u) + elu(-u), close to u^2 for small u and to |u| for large ones, rectifies: a band filter and
  its quadrature give a level;
- the sum of tanh(a e) over rates a in geometric progression is a logarithm of e, 0 for silence;
- sigmoid(x), close to exp(x) for x < 0, is the way back.

Everything stays small in silence, so that what training changes elsewhere is not drowned in it.
Own method.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sonorant.dsp.mel import mel_frequencies

RECTIFIER_GAIN = 20.0  # its square range ends at -26 dB
RATES = 6  # terms of the logarithm
RATE_RATIO = 10.0  # one term for each 10 dB in the rectifier's square range
LOUDEST_DB = -14.0  # of one band's root mean square; above it the logarithm flattens
QUIETEST_DB = -70.0  # where the fit of level against logarithm begins
HIGHEST = 0.98  # of half the sample rate: where the highest band ends


@dataclass(frozen=True)
class NoiseBands:
    """Bands next to each other, as wide as each other in mel.

    edges_hz: one more than bands. rates: of the logarithm's terms. slope, offset: ln(root mean
    square) is about slope * (sum of the terms) + offset.
    """

    edges_hz: tuple[float, ...]
    sample_rate: float
    rates: tuple[float, ...]
    slope: float
    offset: float

    @property
    def count(self) -> int:
        return len(self.edges_hz) - 1

    def detectors(self, length: int) -> Tensor:
        """A band filter of each band and its quadrature, `[2 * bands, length]`, gain 1 in the
        middle of the band."""
        time = torch.arange(length) - (length - 1) / 2
        window = torch.hann_window(length + 2, periodic=False)[1:-1]
        filters = []
        for low, high in zip(self.edges_hz, self.edges_hz[1:], strict=False):
            shape = window * torch.sinc((high - low) / self.sample_rate * time)
            phase = math.pi * (low + high) / self.sample_rate * time
            gain = (shape * phase.cos().square()).sum()
            filters += [shape * phase.cos() / gain, shape * phase.sin() / gain]
        return torch.stack(filters)

    def noise(self, length: int, seed: int = 0) -> Tensor:
        """Noise in each band, `[bands, length]`, of root mean square 1, that can be repeated."""
        noise = torch.randn(self.count, length, generator=torch.Generator().manual_seed(seed))
        spectrum = torch.fft.rfft(noise)
        frequencies = torch.fft.rfftfreq(length, 1 / self.sample_rate)
        for band, (low, high) in enumerate(zip(self.edges_hz, self.edges_hz[1:], strict=False)):
            spectrum[band] *= (frequencies >= low) & (frequencies < high)
        noise = torch.fft.irfft(spectrum, n=length)
        return noise / noise.square().mean(dim=1, keepdim=True).sqrt()

    def carriers(self, hop: int, fade: int) -> Tensor:
        """Noise in each band, `[bands, 2 * hop]`, of root mean square 1, for the frame of `hop`
        samples that is being decoded and the start of the next: it fades in and out over `fade`
        samples, so that the carriers of neighbouring frames join."""
        noise = self.noise(2 * hop)
        angle = (torch.arange(fade) + 0.5) / fade * (math.pi / 2)
        window = torch.ones(2 * hop)
        window[:fade] = angle.sin()
        window[hop : hop + fade] = angle.cos()
        window[hop + fade :] = 0
        return noise * window


def lstm_saturation(x: Tensor) -> Tensor:
    """What an LSTM with open gates makes of its input at once."""
    return torch.tanh(torch.tanh(x))


def elu_saturation(x: Tensor) -> Tensor:
    """What an ELU makes of it, both with their signs turned."""
    return -torch.expm1(-x)


def noise_bands(
    count: int,
    lowest_hz: float,
    sample_rate: float,
    saturation: Callable[[Tensor], Tensor] = lstm_saturation,
) -> NoiseBands:
    """`count` bands from `lowest_hz` to almost half the sample rate.

    saturation: what the network's terms of the logarithm are, of a rate times a level.
    """
    edges = mel_frequencies(count + 1, lowest_hz, HIGHEST * sample_rate / 2)
    return NoiseBands(tuple(edges.tolist()), sample_rate, *_logarithm(saturation))


def _logarithm(
    saturation: Callable[[Tensor], Tensor],
) -> tuple[tuple[float, ...], float, float]:
    """Rates, slope and offset (see `NoiseBands`) for Gaussian noise at the detectors."""
    decibels = torch.arange(QUIETEST_DB, LOUDEST_DB, 2.5, dtype=torch.float64)
    levels = 10 ** (decibels / 20)
    loudest = float(_rectified(torch.tensor([10 ** (LOUDEST_DB / 20)], dtype=torch.float64)))
    rates = tuple(RATE_RATIO**term / loudest for term in range(RATES))
    terms = torch.stack([saturation(rate * _rectified(levels)) for rate in rates])
    unknowns = torch.stack([terms.sum(dim=0), torch.ones_like(levels)], dim=1)
    slope, offset = torch.linalg.lstsq(unknowns, levels.log()[:, None]).solution[:, 0].tolist()
    return rates, slope, offset


def _rectified(levels: Tensor) -> Tensor:
    """What rectifying both quadratures of noise of these root mean squares gives on average."""
    probabilities = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    normal = torch.special.ndtri(probabilities)
    u = (RECTIFIER_GAIN * levels[:, None] * normal).abs()
    return 2 * (u - 1 + torch.exp(-u)).mean(dim=1)
