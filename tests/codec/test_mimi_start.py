"""A Mimi that starts as a vocoder: levels pass its quantizer, its first codebook has a teacher."""

import msgspec
import pytest
import torch
from torch import Tensor

from sonorant.codec.mimi import MIMI_SEANET, Mimi, MimiConfig
from sonorant.codec.mimi_start import VocoderSettings, fit_projections, start_mimi
from sonorant.errors import ConfigError
from sonorant.nn.quantizer import QuantizerConfig
from sonorant.nn.transformer import TransformerConfig

CONFIG = MimiConfig(
    seanet=msgspec.structs.replace(MIMI_SEANET, dimension=64, base_filters=24),
    transformer=TransformerConfig(
        width=64, layers=1, heads=2, hidden=64, layer_scale=0.01, context=250, live_chunk=32
    ),
    quantizer=QuantizerConfig(dimension=32, codebooks=4, codebook_size=64, smoothing="clamp"),
)
SETTINGS = VocoderSettings(bands=10, slots=1, tones=16, semantic_dimensions=4)
LATENTS = 26  # of every latent step


def started() -> Mimi:
    torch.manual_seed(0)
    codec = Mimi(CONFIG).eval()
    start_mimi(codec, SETTINGS)
    return codec


def sounds(count: int) -> Tensor:
    """Noise that grows and fades at several speeds, `[count, 1, time]`."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, 24 * 1920, generator=generator)
    time = torch.arange(24 * 1920) / 24000
    speeds = 0.5 + 4 * torch.rand(count, 1, 1, generator=generator)
    return noise * 10 ** (-1.5 + torch.sin(6.28 * speeds * time))


def test_what_is_not_quantised_comes_back_as_loud() -> None:
    codec, sound = started(), sounds(2)
    with torch.no_grad():
        made = codec.from_latent(codec.to_latent(sound))
    before, after = (each.unfold(-1, 1920, 1920).square().mean(-1).log() for each in (sound, made))
    assert float(torch.corrcoef(torch.stack([before.flatten(), after.flatten()]))[0, 1]) > 0.9
    assert abs(float((before - after).mean())) < 0.7  # 3 dB


@torch.no_grad()
def fitted() -> tuple[Mimi, Tensor, Tensor]:
    """A codec, latents, and features of which four dimensions say all."""
    codec = started()
    latents = codec.to_latent(sounds(24))
    generator = torch.Generator().manual_seed(1)
    there = torch.randn(64, 4, generator=generator)
    features = latents.transpose(1, 2) @ there @ torch.randn(4, 9, generator=generator)
    fit_projections(codec, latents, features, SETTINGS)
    return codec, latents, features


@torch.no_grad()
def test_the_semantic_part_sees_what_the_teacher_says() -> None:
    codec, latents, features = fitted()
    seen = codec.quantizer.semantic.input_proj(latents.transpose(1, 2)).flatten(0, 1)
    assert not bool(seen[:, 4:].any())
    wanted = (features - features.mean(dim=(0, 1))).flatten(0, 1)
    seen = torch.cat([seen[:, :4], torch.ones(len(seen), 1)], dim=1)
    told = seen @ torch.linalg.lstsq(seen, wanted).solution
    assert float((told - wanted).square().mean() / wanted.square().mean()) < 0.02


@torch.no_grad()
def test_both_parts_together_lose_little_before_they_quantise() -> None:
    codec, latents, _ = fitted()
    x = latents.transpose(1, 2)
    parts = codec.quantizer.semantic, codec.quantizer.acoustic
    passed = sum((part.output_proj(part.input_proj(x)) for part in parts), torch.zeros(()))
    assert float((passed - x).square().mean() / x.square().mean()) < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (VocoderSettings(bands=10, slots=2, tones=16), "cannot hold 2 steps of 36"),
        (VocoderSettings(bands=10, slots=3, tones=4), "slots that divide"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(settings: VocoderSettings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        start_mimi(Mimi(CONFIG), settings)


def test_another_codec_is_refused() -> None:
    seanet = msgspec.structs.replace(CONFIG.seanet, skip="convolution")
    codec = Mimi(msgspec.structs.replace(CONFIG, seanet=seanet))
    with pytest.raises(ConfigError, match="vocoder start is for"):
        start_mimi(codec, SETTINGS)
