from __future__ import annotations

import warnings
from pathlib import Path

import msgspec
import pytest
import torch

import sonorant
from sonorant.codec.diffusion_bands import EqualizerConfig
from sonorant.codec.diffusion_schedule import ScheduleConfig
from sonorant.codec.diffusion_unet import UNetConfig
from sonorant.codec.encodec import Encodec, EncodecConfig
from sonorant.codec.encodec_segments import SegmentedEncodec
from sonorant.codec.multiband_diffusion import (
    BandConfig,
    MultiBandDiffusion,
    MultiBandDiffusionConfig,
    join_bands,
)
from sonorant.errors import ConfigError
from sonorant.nn.quantizer import QuantizerConfig
from sonorant.nn.seanet import SEANetConfig

RATE = 8000
CODEC = EncodecConfig(
    sample_rate=RATE,
    target_bandwidths_kbps=(0.8, 1.6, 3.2),
    seanet=SEANetConfig(base_filters=4, dimension=8, ratios=(8, 5), lstm_layers=1),
    quantizer=QuantizerConfig(dimension=8, codebooks=4, codebook_size=16),
)
UNET = UNetConfig(hidden=4, depth=2, growth=2, condition_dimension=8, steps=40)
PLAIN = BandConfig(unet=UNET, schedule=ScheduleConfig(steps=40))
EQUALISED = BandConfig(
    unet=UNET, schedule=ScheduleConfig(steps=40), equalizer=EqualizerConfig(bands=2, sounds=4)
)
CONFIG = MultiBandDiffusionConfig(
    codec="tiny", codebooks=2, sample_rate=RATE, bands=(PLAIN, EQUALISED)
)


def codec() -> Encodec:
    torch.manual_seed(0)
    made = Encodec(CODEC).eval()
    with torch.no_grad():
        made.quantizer.initialize(made.encoder(0.1 * torch.randn(8, 1, 1600)), 100)
    return made


def diffusion(config: MultiBandDiffusionConfig = CONFIG, seed: int = 1) -> MultiBandDiffusion:
    torch.manual_seed(seed)
    model = MultiBandDiffusion(config).eval()
    for band in model.bands:
        if band.equalizer is not None:
            band.equalizer.observe(0.1 * torch.randn(4, 1, 500))
    return model


def sound(samples: int = 1234, rate: int = RATE, channels: int = 1) -> sonorant.Audio:
    torch.manual_seed(2)
    return sonorant.Audio(0.1 * torch.randn(channels, samples), rate)


def test_decoded_sound_has_the_length_that_went_in_and_the_levels_of_the_codec() -> None:
    model, coder = diffusion(), codec()
    encoded = coder.encode(sound(), bandwidth_kbps=1.6)
    made = model.decode(encoded, coder, calls=3)
    assert made.sample_rate == RATE
    assert made.samples.shape == (1, 1234)
    plain = coder.decode(encoded)
    assert float(made.samples.std()) == pytest.approx(float(plain.samples.std()), rel=0.25)


def test_a_seed_gives_the_same_sound_and_another_seed_another() -> None:
    model, coder = diffusion(), codec()
    encoded = coder.encode(sound(), bandwidth_kbps=1.6)
    first, again, other = (model.decode(encoded, coder, seed, 2).samples for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)


def test_every_network_is_called_as_often_as_asked() -> None:
    model, coder = diffusion(), codec()
    encoded = coder.encode(sound(), bandwidth_kbps=1.6)
    calls = []
    model.decode_batch(encoded, coder, calls=3, called=lambda: calls.append(1))
    assert len(calls) == 2 * 3


def test_codebooks_beyond_those_trained_on_do_not_matter() -> None:
    model, coder = diffusion(), codec()
    two, four = (coder.encode(sound(), bandwidth_kbps=kbps) for kbps in (1.6, 3.2))
    assert four.codebooks == 4
    assert torch.equal(
        model.decode(two, coder, calls=2).samples, model.decode(four, coder, calls=2).samples
    )


def test_fewer_codebooks_than_trained_on_are_refused() -> None:
    coder = codec()
    with pytest.raises(ConfigError, match=r"2 codebooks \(1.6 kb/s\), and there are 1"):
        diffusion().decode(coder.encode(sound(), bandwidth_kbps=0.8), coder)


@pytest.mark.parametrize(
    "other",
    [
        Encodec(msgspec.structs.replace(CODEC, sample_rate=16000)),
        Encodec(
            msgspec.structs.replace(
                CODEC,
                seanet=msgspec.structs.replace(CODEC.seanet, dimension=16),
                quantizer=msgspec.structs.replace(CODEC.quantizer, dimension=16),
            )
        ),
        SegmentedEncodec(msgspec.structs.replace(CODEC, segment_seconds=1.0)),
    ],
    ids=["rate", "latents", "segments"],
)
def test_another_codec_is_refused(other: Encodec) -> None:
    with pytest.raises(ConfigError, match="goes with tiny: 8000 Hz"):
        diffusion().check_codec(other)


def test_a_codec_of_another_name_is_warned_of() -> None:
    other, model = codec(), diffusion()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.check_codec(other)
        other.name = "somebody/tiny"
        model.check_codec(other)
    other.name = "small"
    with pytest.warns(UserWarning, match="was trained on tiny; of small"):
        model.check_codec(other)


def test_regenerated_sound_keeps_rate_length_and_channels() -> None:
    stereo = sound(3001, rate=12_000, channels=2)
    made = diffusion().regenerate(stereo, codec(), calls=2)
    assert (made.sample_rate, made.samples.shape) == (12_000, (2, 3001))
    assert not torch.equal(made.samples[0], made.samples[1])


def test_saved_and_loaded_it_makes_the_same_sound(tmp_path: Path) -> None:
    model, coder = diffusion(), codec()
    model.save_pretrained(tmp_path / "model")
    loaded = sonorant.load(tmp_path / "model")
    assert isinstance(loaded, MultiBandDiffusion)
    assert loaded.config == CONFIG
    encoded = coder.encode(sound(), bandwidth_kbps=1.6)
    assert torch.equal(
        loaded.decode(encoded, coder, calls=2).samples,
        model.decode(encoded, coder, calls=2).samples,
    )


def test_bands_trained_apart_are_joined_in_order() -> None:
    configs = [msgspec.structs.replace(CONFIG, bands=(band,)) for band in CONFIG.bands]
    parts = [diffusion(config, seed) for seed, config in enumerate(configs)]
    joined = join_bands(parts)
    assert joined.config == CONFIG
    latents = torch.randn(1, 8, 10)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        steps = [39, 19, 0]
        bands = [part.bands[0].generate(latents, 400, generator, steps) for part in parts]
        whole = joined.generate(latents, 400, seed=3, calls=2)
    torch.testing.assert_close(whole, bands[0] + bands[1])
    with pytest.raises(ConfigError, match="different codecs"):
        join_bands([parts[0], diffusion(msgspec.structs.replace(CONFIG, codebooks=1))])


def test_bands_that_cannot_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="40 steps, the schedule has 1000"):
        BandConfig(unet=UNET)
    other = BandConfig(
        unet=msgspec.structs.replace(UNET, channels=2), schedule=ScheduleConfig(steps=40)
    )
    with pytest.raises(ConfigError, match="same channels"):
        msgspec.structs.replace(CONFIG, bands=(PLAIN, other))
    with pytest.raises(ConfigError, match="one band at least"):
        msgspec.structs.replace(CONFIG, bands=())
