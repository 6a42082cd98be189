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
        start_as_transform(encoder, decoder, config, 24000)
        passed = decoder(encoder(sound))
    error = (passed - sound).pow(2).mean() / sound.pow(2).mean()
    assert float(error) < 0.02
    assert float((random - sound).pow(2).mean() / sound.pow(2).mean()) > 0.5


def test_a_small_latent_keeps_the_low_frequencies() -> None:
    torch.manual_seed(0)
    config = SEANetConfig(dimension=2, base_filters=4, ratios=(4, 2))
    encoder, decoder = SEANetEncoder(config), SEANetDecoder(config)
    start_as_transform(encoder, decoder, config, 24000)
    low, high = low_tone(400), 0.1 * torch.tensor([1.0, -1.0]).repeat(200)[None, None]
    with torch.no_grad():
        assert float((decoder(encoder(low)) - low).pow(2).mean()) < 0.05 * float(low.pow(2).mean())
        assert float(decoder(encoder(high)).pow(2).mean()) < 0.1 * float(high.pow(2).mean())


def test_every_weight_can_be_trained() -> None:
    encoder, decoder = SEANetEncoder(CONFIG), SEANetDecoder(CONFIG)
    start_as_transform(encoder, decoder, CONFIG, 24000)
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
        start_as_transform(SEANetEncoder(config), SEANetDecoder(config), config, 24000)


def noise_band(low_hz: float, high_hz: float, samples: int) -> torch.Tensor:
    """Noise between two frequencies at 24 kHz, root mean square 1."""
    spectrum = torch.fft.rfft(torch.randn(samples, generator=torch.Generator().manual_seed(1)))
    frequencies = torch.fft.rfftfreq(samples, 1 / 24000)
    spectrum[(frequencies < low_hz) | (frequencies > high_hz)] = 0
    sound = torch.fft.irfft(spectrum, n=samples)
    return (sound / sound.square().mean().sqrt())[None, None]


@pytest.fixture(scope="module")
def with_noise_bands() -> tuple[SEANetEncoder, SEANetDecoder]:
    torch.manual_seed(0)
    config = SEANetConfig(dimension=40, base_filters=16, lstm_layers=1)
    encoder, decoder = SEANetEncoder(config), SEANetDecoder(config)
    start_as_transform(encoder, decoder, config, 24000, bands=8)
    return encoder, decoder


@pytest.mark.parametrize(("level_db", "tolerance"), [(-25, 4), (-40, 4), (-55, 10)])
@pytest.mark.parametrize("band_hz", [(2000, 3000), (7000, 9000)])
def test_noise_above_the_coefficients_comes_back_as_loud(
    with_noise_bands: tuple[SEANetEncoder, SEANetDecoder],
    band_hz: tuple[float, float],
    level_db: float,
    tolerance: float,
) -> None:
    encoder, decoder = with_noise_bands
    sound = noise_band(*band_hz, 24000) * 10 ** (level_db / 20)
    with torch.no_grad():
        decoded = decoder(encoder(sound))[..., 4000:-4000]
    spectrum = torch.fft.rfft(decoded * torch.hann_window(decoded.shape[-1])).abs().square()
    frequencies = torch.fft.rfftfreq(decoded.shape[-1], 1 / 24000)
    inside = (frequencies > 0.8 * band_hz[0]) & (frequencies < 1.25 * band_hz[1])
    measured_db = 10 * math.log10(float(decoded.square().mean()))
    assert measured_db == pytest.approx(level_db, abs=tolerance)
    assert float(spectrum[..., inside].sum() / spectrum.sum()) > 0.8


def test_silence_stays_silent(with_noise_bands: tuple[SEANetEncoder, SEANetDecoder]) -> None:
    encoder, decoder = with_noise_bands
    with torch.no_grad():
        decoded = decoder(encoder(torch.zeros(1, 1, 9600)))[..., 3200:]
    assert float((decoded - decoded.mean()).square().mean().sqrt()) < 2e-4  # -74 dB


def test_too_many_noise_bands_are_refused() -> None:
    config = SEANetConfig(dimension=40, base_filters=16)
    with pytest.raises(ConfigError, match="no room for 13 noise bands"):
        start_as_transform(SEANetEncoder(config), SEANetDecoder(config), config, 24000, bands=13)
