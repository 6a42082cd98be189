"""Ideal masks bound what masking can reach; the mixture is the bar below."""

import pytest
import torch
from torch import Tensor

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


@pytest.mark.parametrize("name", BASELINES)
def test_silence_stays_silence(name: str) -> None:
    silence = torch.zeros(2, 1, 3000)
    assert torch.equal(BASELINES[name](silence[0], silence), silence)
