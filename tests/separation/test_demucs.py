"""Demucs v1 and v2: lengths, levels, options, sizes of the published models."""

import pytest
import torch

from sonorant.separation.blocks import center_trim
from sonorant.separation.demucs import (
    DemucsV1,
    DemucsV1Config,
    DemucsV2,
    DemucsV2Config,
    interpolate,
)

TINY = {"channels": 4, "depth": 2, "sample_rate": 8000, "segment_samples": 1000}


def separated(model, mix):
    with torch.no_grad():
        return model.eval()(mix)


@pytest.mark.parametrize("upsample", [False, True])
@pytest.mark.parametrize("samples", [1, 100, 333])
def test_v1_covers_a_length_with_its_valid_length(upsample, samples):
    model = DemucsV1(DemucsV1Config(**TINY, upsample=upsample))
    length = model.valid_length(samples)
    assert length >= samples
    sources = separated(model, torch.randn(1, 2, length))
    assert sources.shape[:3] == (1, 4, 2)
    assert sources.shape[-1] <= length


@pytest.mark.parametrize(
    "options",
    [
        {"glu": False},
        {"rewrite": False},
        {"lstm_layers": 0},
        {"context": 1},
        {"growth": 1.5},
        {"sources": ("one", "other", "third"), "audio_channels": 1},
    ],
)
def test_v2_options_keep_the_shape_of_the_result(options):
    model = DemucsV2(DemucsV2Config(**TINY, **options))
    mix = torch.randn(2, model.audio_channels, model.valid_length(200))
    sources = separated(model, mix)
    assert sources.shape[:3] == (2, len(model.sources), model.audio_channels)


def test_v2_normalize_makes_the_result_follow_level_and_offset():
    model = DemucsV2(DemucsV2Config(**TINY, normalize=True))
    mix = torch.randn(1, 2, model.valid_length(200))
    torch.testing.assert_close(
        separated(model, mix * 3 + 0.5), separated(model, mix) * 3 + 0.5, rtol=1e-3, atol=1e-3
    )


def test_v2_divides_by_a_little_more_than_one_without_normalize():
    plain = DemucsV2(DemucsV2Config(**TINY, resample=False))
    first = DemucsV1(DemucsV1Config(**TINY))
    first.load_state_dict(plain.state_dict())
    mix = torch.randn(1, 2, plain.valid_length(200))
    torch.testing.assert_close(separated(plain, mix), separated(first, mix / 1.00001))


def test_silence_gives_finite_sources():
    model = DemucsV2(DemucsV2Config(**TINY, normalize=True))
    sources = separated(model, torch.zeros(1, 2, model.valid_length(100)))
    assert bool(torch.isfinite(sources).all())


def test_rows_of_a_batch_do_not_meet():
    model = DemucsV2(DemucsV2Config(**TINY, normalize=True))
    mix = torch.randn(2, 2, model.valid_length(200))
    torch.testing.assert_close(separated(model, mix)[1:], separated(model, mix[1:]))


def test_rescaling_moves_initial_weights_towards_its_scale():
    torch.manual_seed(0)
    wild = DemucsV1(DemucsV1Config(**TINY, rescale=0))
    tame = DemucsV1(DemucsV1Config(**TINY, rescale=0.1))
    weights = [
        abs(model.encoder[0][0].weight.std().log() - torch.tensor(0.1).log())
        for model in (wild, tame)
    ]
    assert weights[1] < weights[0]


def test_interpolation_keeps_the_steps_it_is_given():
    x = torch.randn(1, 2, 6)
    y = interpolate(x, 4)
    torch.testing.assert_close(y[..., ::4], x[..., :-1])
    torch.testing.assert_close(y[..., 2::4], (x[..., :-1] + x[..., 1:]) / 2)


def test_gradients_reach_every_parameter():
    model = DemucsV1(DemucsV1Config(**TINY, upsample=True))
    mix = torch.randn(1, 2, model.valid_length(100))
    sources = model(mix)
    (sources - center_trim(mix, sources.shape[-1])[:, None]).abs().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (lambda: DemucsV1(DemucsV1Config(channels=100)), 648_548_208),  # `demucs` of 2019
        (lambda: DemucsV2(DemucsV2Config()), 265_679_496),
        (lambda: DemucsV2(DemucsV2Config(channels=48)), 149_462_504),  # `demucs48_hq`
    ],
)
def test_published_models_have_their_size(build, parameters):
    with torch.device("meta"):
        model = build()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
