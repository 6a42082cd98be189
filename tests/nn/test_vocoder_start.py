"""The vocoder start: levels of noise and pitch pass an untrained pair."""

import math

import msgspec
import pytest
import torch
from torch import Tensor

from sonorant.codec.mimi import MIMI_SEANET
from sonorant.errors import ConfigError
from sonorant.nn.seanet import SEANetConfig, SEANetDecoder, SEANetEncoder
from sonorant.nn.vocoder_start import Vocoder, start_as_vocoder

RATE = 24000
CONFIG = msgspec.structs.replace(MIMI_SEANET, dimension=64, base_filters=24)


def vocoder(config: SEANetConfig = CONFIG, tones: int = 22) -> Vocoder:
    return Vocoder(config, RATE, bands=20, slots=2, tones=tones)


@pytest.fixture(scope="module")
def pair() -> tuple[SEANetEncoder, SEANetDecoder]:
    torch.manual_seed(0)
    encoder, decoder = SEANetEncoder(CONFIG), SEANetDecoder(CONFIG)
    start_as_vocoder(encoder, decoder, vocoder())
    return encoder, decoder


@torch.no_grad()
def coded(pair: tuple[SEANetEncoder, SEANetDecoder], sound: Tensor) -> Tensor:
    """The second second of what comes out, `[samples]`."""
    encoder, decoder = pair
    return decoder(encoder(sound[None, None]))[0, 0, RATE:]


def spectrum(sound: Tensor) -> Tensor:
    """Power in steps of 25 Hz."""
    windows = sound[: RATE - RATE % 960].view(-1, 960) * torch.hann_window(960)
    return torch.fft.rfft(windows).abs().square().mean(dim=0)


@pytest.mark.parametrize("level_db", [-40, -30, -20])
def test_noise_comes_back_at_its_level_in_every_band(
    pair: tuple[SEANetEncoder, SEANetDecoder], level_db: float
) -> None:
    noise = torch.randn(2 * RATE, generator=torch.Generator().manual_seed(0))
    noise *= 10 ** (level_db / 20)
    before, after = spectrum(noise[RATE:]), spectrum(coded(pair, noise))
    for low, high in ((700, 2000), (2000, 5000), (5000, 7000), (7500, 11500)):
        bins = slice(low // 25, high // 25)
        change_db = 10 * math.log10(float(after[bins].mean() / before[bins].mean()))
        assert abs(change_db) < 4, (low, change_db)


@pytest.mark.parametrize("frequency", [125.0, 200.0, 310.0])
def test_a_low_tone_keeps_its_pitch(
    pair: tuple[SEANetEncoder, SEANetDecoder], frequency: float
) -> None:
    tone = 0.1 * torch.sin(2 * math.pi * frequency / RATE * torch.arange(2 * RATE))
    after = spectrum(coded(pair, tone))
    assert abs(25 * int(after.argmax()) - frequency) <= 25
    assert float(after.sum() / spectrum(tone[RATE:]).sum()) > 0.25


def test_silence_stays_silence(pair: tuple[SEANetEncoder, SEANetDecoder]) -> None:
    assert float(coded(pair, torch.zeros(2 * RATE)).abs().max()) < 1e-3


def test_the_decoder_can_be_trained(pair: tuple[SEANetEncoder, SEANetDecoder]) -> None:
    encoder, decoder = pair
    decoder(encoder(0.1 * torch.randn(1, 1, 9600))).square().sum().backward()
    for parameter in decoder.parameters():
        assert parameter.grad is not None
        assert bool(torch.isfinite(parameter.grad).all())


def test_latents_hold_what_the_vocoder_says(pair: tuple[SEANetEncoder, SEANetDecoder]) -> None:
    with torch.no_grad():
        latent = pair[0](0.1 * torch.randn(1, 1, 9600))
    used = vocoder().dimensions
    assert used == 20 * 2 + 22
    assert bool((latent[:, :used].std(dim=-1) > 0).all())


@pytest.mark.parametrize(
    "change",
    [
        {"skip": "convolution"},
        {"lstm_layers": 1},
        {"norm": "weight_norm"},
        {"channels": 2},
        {"ratios": (8, 6)},
    ],
)
def test_another_kind_of_seanet_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="vocoder start is for"):
        vocoder(msgspec.structs.replace(CONFIG, **change))


def test_too_few_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match="raise base_filters"):
        vocoder(msgspec.structs.replace(CONFIG, base_filters=12))
    with pytest.raises(ConfigError, match="fewer bands or tones"):
        vocoder(tones=80)
