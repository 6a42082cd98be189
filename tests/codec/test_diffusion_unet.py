from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sonorant.codec.diffusion_checkpoints import published_tensors
from sonorant.codec.diffusion_unet import BOTTLENECKS, BottleneckName, DiffusionUNet, UNetConfig
from sonorant.codec.multiband_diffusion import BandConfig, DiffusionBand
from sonorant.errors import ConfigError, ShapeError

KEYS = Path(__file__).parents[1] / "fixtures" / "codecs" / "keys"
TINY = UNetConfig(hidden=8, depth=2, growth=2, condition_dimension=3, steps=10)


def tiny(bottleneck: BottleneckName = "lstm") -> DiffusionUNet:
    torch.manual_seed(0)
    return DiffusionUNet(UNetConfig(**{**vars_of(TINY), "bottleneck": bottleneck})).eval()


def vars_of(config: UNetConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__struct_fields__}


@torch.no_grad()
@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_the_result_depends_on_sound_step_and_latents(bottleneck: BottleneckName) -> None:
    unet = tiny(bottleneck)
    x, latents = torch.randn(2, 1, 77), torch.randn(2, 3, 5)
    y = unet(x, 4, latents)
    assert y.shape == x.shape
    for other in (unet(x + 1, 4, latents), unet(x, 5, latents), unet(x, 4, latents + 1)):
        assert not torch.allclose(other, y, atol=1e-3)


@torch.no_grad()
def test_each_sound_of_a_batch_has_its_own_step() -> None:
    unet = tiny()
    x, latents = torch.randn(2, 1, 64), torch.randn(2, 3, 5)
    together = unet(x, torch.tensor([1, 8]), latents)
    for row, step in enumerate((1, 8)):
        alone = unet(x[row : row + 1], step, latents[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_without_a_bottleneck_only_skip_connections_carry_anything() -> None:
    """The condition still arrives, since it is added to the deepest skip connection."""
    unet = tiny("none")
    unet.decoder[0].blocks = torch.nn.Identity()
    seen = []
    unet.decoder[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    unet(torch.randn(1, 1, 64), 3, torch.randn(1, 3, 4))
    deepest = []
    unet.bottleneck.register_forward_pre_hook(lambda _, inputs: deepest.append(inputs[0]))
    unet(torch.randn(1, 1, 64), 3, torch.randn(1, 3, 4))
    assert torch.equal(seen[1], deepest[0])


def test_missing_or_misfitting_latents_are_errors() -> None:
    unet = tiny()
    with pytest.raises(ShapeError, match="takes the latents"):
        unet(torch.zeros(1, 1, 64), 3)
    with pytest.raises(ShapeError, match="9 frames of latents"):
        unet(torch.zeros(1, 1, 64), 3, torch.zeros(1, 3, 9))


def test_impossible_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match="centre"):
        UNetConfig(kernel=7)
    with pytest.raises(ConfigError, match="norm_groups"):
        UNetConfig(norm_groups=5)
    with pytest.raises(ConfigError, match="cross_attention"):
        UNetConfig(bottleneck="cross_attention", condition_dimension=None)


def test_the_published_size_has_the_published_names_and_shapes() -> None:
    listed = json.loads((KEYS / "mbd-unet-basic-bilstm-NOT-VERIFIED.json").read_text())
    with torch.device("meta"):
        network, equalizer = published_tensors(DiffusionBand(BandConfig(), 24_000))
    assert {name: list(tensor.shape) for name, tensor in network.items()} == {
        name: shape for name, (*shape, _) in listed.items()
    }
    assert equalizer == {}
