"""Noise bands: filters that separate, a logarithm that fits, carriers that join."""

import math

import pytest
import torch

from sonorant.nn.noise_bands import RECTIFIER_GAIN, NoiseBands, lstm_saturation, noise_bands


@pytest.fixture
def bands() -> NoiseBands:
    return noise_bands(6, 2000.0, 24000.0)


def test_edges_span_what_was_asked_for(bands: NoiseBands) -> None:
    assert bands.count == 6
    assert bands.edges_hz[0] == pytest.approx(2000, rel=1e-4)
    assert bands.edges_hz[-1] == pytest.approx(0.98 * 12000, rel=1e-4)
    widths = torch.tensor(bands.edges_hz).diff()
    assert bool((widths.diff() > 0).all())  # wider and wider, as mels are


def test_a_detector_hears_its_own_band_best(bands: NoiseBands) -> None:
    filters = bands.detectors(160)
    time = torch.arange(160)
    for band, (low, high) in enumerate(zip(bands.edges_hz, bands.edges_hz[1:], strict=False)):
        tone = torch.exp(1j * math.pi * (low + high) / 24000 * time)
        heard = (filters.to(tone.dtype) @ tone).abs().view(-1, 2).square().sum(dim=1).sqrt()
        assert int(heard.argmax()) == band
        assert float(heard[band]) == pytest.approx(math.sqrt(2), rel=0.05)


def test_the_logarithm_gives_levels_back(bands: NoiseBands) -> None:
    normal = torch.randn(20000, 2, generator=torch.Generator().manual_seed(0))
    for decibels in range(-65, -14, 10):
        level = 10 ** (decibels / 20)
        u = RECTIFIER_GAIN * level * normal
        rectified = (torch.nn.functional.elu(u) + torch.nn.functional.elu(-u)).sum(dim=1).mean()
        logarithm = sum(float(lstm_saturation(rate * rectified)) for rate in bands.rates)
        error = 20 / math.log(10) * (bands.slope * logarithm + bands.offset) - decibels
        assert abs(error) < 4  # dB


def test_carriers_of_neighbouring_frames_join_at_one_level(bands: NoiseBands) -> None:
    carriers = bands.carriers(320, 80)
    assert carriers.shape == (6, 640)
    power = carriers[:, :320].square() + carriers[:, 320:].square()
    mean = power.mean(dim=1)
    assert bool(((mean > 0.6) & (mean < 1.6)).all())
    assert float(carriers[:, 400:].abs().max()) == 0
