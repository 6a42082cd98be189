"""Demucs v3 on the waveform: lengths, levels, options, size of the published models."""

import pytest
import torch

from sonorant.separation.blocks import DConvConfig
from sonorant.separation.demucs_v3 import DemucsV3, DemucsV3Config

TINY = {
    "channels": 4,
    "depth": 3,
    "sample_rate": 8000,
    "norm_from_layer": 2,
    "norm_groups": 2,
    "attention_from_layer": 2,
    "lstm_from_layer": 2,
    "dconv": DConvConfig(compress=2),
}


def tiny(**options):
    return DemucsV3(DemucsV3Config(**(TINY | options))).eval()


@torch.no_grad()
def separated(model, mix):
    return model(mix)


@pytest.mark.parametrize("samples", [1, 50, 801])
@pytest.mark.parametrize("resample", [False, True])
def test_the_result_is_as_long_as_the_mixture(samples, resample):
    sources = separated(tiny(resample=resample), torch.randn(1, 2, samples))
    assert sources.shape == (1, 4, 2, samples)
    assert bool(torch.isfinite(sources).all())


@pytest.mark.parametrize(
    "options",
    [
        {"rewrite": False},
        {"glu": False, "gelu": False},
        {"dconv_in_decoder": True},
        {"dconv_in_encoder": False, "dconv_in_decoder": True, "rewrite": False},
        {"lstm_layers": 1},
        {"context": 0},
        {"sources": ("speech", "noise"), "audio_channels": 1},
        {"dconv": DConvConfig(compress=2, depth=-3, initial_scale=0.1)},
    ],
)
def test_options_keep_the_shape_of_the_result(options):
    model = tiny(**options)
    sources = separated(model, torch.randn(2, model.audio_channels, 300))
    assert sources.shape == (2, len(model.sources), model.audio_channels, 300)


def test_the_valid_length_needs_no_padding():
    model = tiny()
    length = model.valid_length(300)
    assert model.valid_length(length) == length


def test_normalize_makes_the_result_follow_level_and_offset():
    model, mix = tiny(normalize=True), torch.randn(1, 2, 300)
    mix = torch.nn.functional.pad(mix, (0, model.valid_length(300) - 300), "replicate")
    torch.testing.assert_close(
        separated(model, mix * 3 + 0.5), separated(model, mix) * 3 + 0.5, rtol=1e-3, atol=1e-3
    )


def test_silence_gives_finite_sources():
    assert bool(torch.isfinite(separated(tiny(), torch.zeros(1, 2, 200))).all())


def test_rows_of_a_batch_do_not_meet():
    model, mix = tiny(), torch.randn(2, 2, 300)
    torch.testing.assert_close(separated(model, mix)[1:], separated(model, mix[1:]))


@pytest.mark.parametrize(
    ("options", "parameters"), [({}, 133_753_064), ({"rewrite": False}, 88_984_040)]
)
def test_published_models_have_their_size(options, parameters):
    with torch.device("meta"):
        model = DemucsV3(DemucsV3Config(**options))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
