"""The transform start: sound passes an untrained pair, and training is free to change it."""

import math

import pytest
import torch

from sonorant.errors import ConfigError
from sonorant.nn.conv import Norm
from sonorant.nn.seanet import SEANetConfig, SEANetDecoder, SEANetEncoder
from sonorant.nn.seanet_start import start_as_transform

CONFIG = SEANetConfig(dimension=16, base_filters=4, ratios=(4, 2))


def low_tone(samples: int) -> torch.Tensor:
    """Slow enough for half the cosines of a hop of 8, and quiet enough for the ELU."""
    return 0.1 * torch.sin(2 * math.pi * torch.arange(samples) / 100)[None, None]


@pytest.mark.parametrize("norm", ["none", "weight_norm"])
def test_sound_passes_through_from_the_start(norm: Norm) -> None:
    torch.manual_seed(0)
    config = SEANetConfig(dimension=8, base_filters=4, ratios=(4, 2), norm=norm)
    encoder, decoder = SEANetEncoder(config), SEANetDecoder(config)
    sound = low_tone(400)
    with torch.no_grad():
        random = decoder(encoder(sound))
        start_as_transform(encoder, decoder, config)
        passed = decoder(encoder(sound))
    error = (passed - sound).pow(2).mean() / sound.pow(2).mean()
    assert float(error) < 0.02
    assert float((random - sound).pow(2).mean() / sound.pow(2).mean()) > 0.5


def test_a_small_latent_keeps_the_low_frequencies() -> None:
    torch.manual_seed(0)
    config = SEANetConfig(dimension=2, base_filters=4, ratios=(4, 2))
    encoder, decoder = SEANetEncoder(config), SEANetDecoder(config)
    start_as_transform(encoder, decoder, config)
    low, high = low_tone(400), 0.1 * torch.tensor([1.0, -1.0]).repeat(200)[None, None]
    with torch.no_grad():
        assert float((decoder(encoder(low)) - low).pow(2).mean()) < 0.05 * float(low.pow(2).mean())
        assert float(decoder(encoder(high)).pow(2).mean()) < 0.1 * float(high.pow(2).mean())


def test_every_weight_can_be_trained() -> None:
    encoder, decoder = SEANetEncoder(CONFIG), SEANetDecoder(CONFIG)
    start_as_transform(encoder, decoder, CONFIG)
    decoder(encoder(low_tone(80))).pow(2).sum().backward()
    for module in (encoder, decoder):
        for parameter in module.parameters():
            assert parameter.grad is not None
            assert bool(torch.isfinite(parameter.grad).all())


@pytest.mark.parametrize(
    "config",
    [
        SEANetConfig(skip="identity"),
        SEANetConfig(causal=False),
        SEANetConfig(channels=2),
        SEANetConfig(residual_layers=2),
        SEANetConfig(base_filters=2),
    ],
)
def test_models_it_cannot_serve_are_refused(config: SEANetConfig) -> None:
    with pytest.raises(ConfigError, match=r"random weights|base_filters"):
        start_as_transform(SEANetEncoder(config), SEANetDecoder(config), config)
