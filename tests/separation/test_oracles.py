"""Ideal masks bound what masking can reach; the mixture is the bar below."""

import pytest
import torch
from torch import Tensor

from sonorant.dsp.stft import istft
from sonorant.separation import oracles
from sonorant.separation.metrics import global_sdr
from sonorant.separation.oracles import BASELINES, ORACLES

RATE = 8000


@pytest.fixture
def song() -> tuple[Tensor, Tensor]:
    """Mixture and sources: a chord in the middle, a lower one right, and noise left."""
    torch.manual_seed(0)
    time = torch.arange(2 * RATE) / RATE
    high = torch.sin(2 * torch.pi * time * torch.tensor([[1000.0], [1250.0]])).sum(0)
    low = torch.sin(2 * torch.pi * time * torch.tensor([[200.0], [300.0]])).sum(0)
    noise = torch.randn(2 * RATE)
    sources = torch.stack(
        [
            torch.stack([high, high]),
            torch.stack([0.2 * low, low]),
            torch.stack([noise, 0.1 * noise]),
        ]
    )
    return sources.sum(0), sources


@pytest.mark.parametrize("name", ORACLES)
def test_oracles_beat_the_mixture_by_far(name: str, song: tuple[Tensor, Tensor]) -> None:
    mixture, sources = song
    estimates = ORACLES[name](mixture, sources)
    assert estimates.shape == sources.shape
    gain = global_sdr(sources, estimates) - global_sdr(
        sources, BASELINES["mixture"](mixture, sources)
    )
    assert (gain > 6).all()


def test_sources_apart_in_frequency_come_back_whole() -> None:
    time = torch.arange(2 * RATE) / RATE
    tones = [torch.sin(2 * torch.pi * time * f).expand(1, -1) for f in (500.0, 2000.0)]
    sources = torch.stack(tones)
    for oracle in ORACLES.values():
        assert (global_sdr(sources, oracle(sources.sum(0), sources)) > 40).all()


@pytest.mark.parametrize("name", ["irm1", "irm2", "mwf"])
def test_shares_of_the_mixture_add_up_to_it(name: str, song: tuple[Tensor, Tensor]) -> None:
    mixture, sources = song
    assert torch.allclose(ORACLES[name](mixture, sources).sum(0), mixture, atol=1e-3)


def test_the_wiener_filter_uses_where_sources_are(song: tuple[Tensor, Tensor]) -> None:
    mixture, sources = song
    wiener = global_sdr(sources, ORACLES["mwf"](mixture, sources)).mean()
    assert wiener > global_sdr(sources, ORACLES["irm2"](mixture, sources)).mean() + 1


def sisec_filter(mix: Tensor, sources: Tensor) -> Tensor:
    """SiSEC's steps, bin by bin and frame by frame: mix `[channels, bins, frames]`, sources
    `[sources, channels, bins, frames]`, complex."""
    _, channels, bins, frames = sources.shape
    little = 1e-10  # keeps the silence behind the sound finite
    estimates = torch.zeros_like(sources)
    for b in range(bins):
        outer = torch.einsum("jct,jdt->jtcd", sources[:, :, b], sources[:, :, b].conj())
        power = sources[:, :, b].abs().square().mean(dim=1)  # [sources, frames]
        covariance = (outer / (little + power)[..., None, None]).mean(dim=1)
        trace = covariance.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None]
        covariance = covariance * channels / trace
        inverse = torch.linalg.inv(covariance)
        power = torch.einsum("jcd,jtdc->jt", inverse, outer).real / channels
        for t in range(frames):
            each = power[:, t, None, None] * covariance
            mixed = each.sum(dim=0) + little * torch.eye(channels)
            estimates[:, :, b, t] = each @ torch.linalg.inv(mixed) @ mix[:, b, t]
    return estimates


def test_the_wiener_filter_is_that_of_sisec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracles, "WINDOW", 64)
    monkeypatch.setattr(oracles, "HOP", 32)
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(3, 2, 3000, generator=generator, dtype=torch.float64)
    sources += 0.7 * sources.roll(1, -1)
    mixture = sources.sum(0)
    estimates = sisec_filter(oracles._spectrum(mixture), oracles._spectrum(sources))
    expected = istft(estimates, 64, 32, length=3000)
    torch.testing.assert_close(ORACLES["mwf"](mixture, sources), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ORACLES)
def test_blocks_change_nothing(
    name: str, song: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture, sources = (each.double() for each in song)
    whole = ORACLES[name](mixture, sources)
    monkeypatch.setattr(oracles, "BLOCK", 5 * oracles.HOP)
    torch.testing.assert_close(ORACLES[name](mixture, sources), whole)


@pytest.mark.parametrize("name", BASELINES)
def test_silence_stays_silence(name: str) -> None:
    silence = torch.zeros(2, 1, 3000)
    assert torch.equal(BASELINES[name](silence[0], silence), silence)
