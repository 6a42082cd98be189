"""A start as masks gives every source its share of the mixture, and can learn."""

from __future__ import annotations

import pytest
import torch

from sonorant.errors import ConfigError
from sonorant.separation.blocks import DConvConfig
from sonorant.separation.cross_transformer import CrossTransformerConfig
from sonorant.separation.hdemucs import HDemucs, HDemucsConfig, HybridModel
from sonorant.separation.htdemucs import HTDemucs, HTDemucsConfig
from sonorant.separation.mask_start import start_as_masks
from sonorant.separation.training import Network, first_model

LENGTH = 4096


def transformer_model(**changes: object) -> HTDemucs:
    config = {
        "n_fft": 512,
        "depth": 2,
        "channels": 32,
        "growth": 1.5,
        "segment_seconds": LENGTH / 44_100,
        "complex_as_channels": False,
        "wiener_iterations": -1,
        "training_wiener_iterations": -1,
        "transformer": CrossTransformerConfig(layers=1, heads=2, dropout=0.0),
        "dconv": DConvConfig(compress=8, initial_scale=1e-3),
    }
    return HTDemucs(HTDemucsConfig(**(config | changes))).eval()  # type: ignore[arg-type]


def complex_model() -> HDemucs:
    config = HDemucsConfig(n_fft=512, depth=2, channels=64, growth=1.0, norm_from_layer=2)
    return HDemucs(config).eval()


def mixture() -> torch.Tensor:
    """Tones that fade in over faint noise: like music, most of the spectrum is nearly silent."""
    torch.manual_seed(1)
    frequencies = torch.tensor([0.02, 0.05, 0.11, 0.31])[:, None]
    tones = torch.sin(torch.arange(LENGTH) * frequencies).sum(dim=0)
    noise = torch.randn(2, 2, LENGTH)
    return (tones + 0.1 * noise) * torch.linspace(0, 1, LENGTH)


@pytest.mark.parametrize("make", [transformer_model, complex_model])
def test_every_source_begins_as_a_quarter_of_the_mixture(make: type) -> None:
    torch.manual_seed(0)
    model: HybridModel = make()
    mix = mixture()
    with torch.no_grad():
        before = model(mix)
        start_as_masks(model)
        stems = model(mix)
    quarter = mix[:, None].expand_as(stems) / 4

    def distance_db(estimate: torch.Tensor) -> float:
        error = (estimate - quarter).square().mean() / quarter.square().mean()
        return float(10 * error.log10())

    assert distance_db(stems) < -6
    assert distance_db(before) > -2


def test_gates_learn_which_source_is_which() -> None:
    """A low tone and noise, which a few steps from the start tell apart."""
    torch.manual_seed(0)
    model = transformer_model(sources=("tone", "noise"), segment_seconds=LENGTH / 44_100)
    start_as_masks(model)
    tone = torch.sin(torch.arange(LENGTH) * 0.02).expand(1, 2, -1)
    noise = torch.randn(1, 2, LENGTH, generator=torch.Generator().manual_seed(3))
    stems = torch.stack([tone, noise], dim=1)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    losses = []
    for _ in range(15):
        loss = (model(stems.sum(dim=1)) - stems).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_networks_without_room_for_masks_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs 64 channels"):
        start_as_masks(transformer_model(complex_as_channels=True))
    with pytest.raises(ConfigError, match="without norms"):
        start_as_masks(transformer_model(norm_from_layer=0))
    with pytest.raises(ConfigError, match="without bands"):
        start_as_masks(transformer_model(band_edges=(0.5,)))
    with pytest.raises(ConfigError, match="there is one"):
        start_as_masks(transformer_model(sources=("all",)))
    with pytest.raises(ConfigError, match="more bins than n_fft 16"):
        start_as_masks(HDemucs(HDemucsConfig(n_fft=16, depth=2, channels=64, norm_from_layer=2)))


def test_recipes_ask_for_masks_by_name() -> None:
    config = {"channels": 32, "complex_as_channels": False, "growth": 1.0, "bottom_channels": 16}
    config |= {"transformer": {"layers": 1, "heads": 2, "dropout": 0.0}}
    model = first_model(Network(system="htdemucs", config=config, masks=True))
    bias = model.decoder[-1].rewrite.bias  # type: ignore[union-attr,index]
    assert torch.allclose(bias[32:].sigmoid(), torch.tensor(0.25))
    with pytest.raises(ConfigError, match="no masks to start with"):
        first_model(Network(system="demucs_v2", masks=True))
    with pytest.raises(ConfigError, match="has weights already"):
        Network(model="sonorant/htdemucs-small", masks=True)
