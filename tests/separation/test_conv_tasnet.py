"""Conv-TasNet: lengths, causality, masks, normalisations, size of the published model."""

import pytest
import torch

from sonorant.separation.conv_tasnet import (
    ChannelNorm,
    ConvTasNet,
    ConvTasNetConfig,
    GlobalNorm,
)

TINY = {"filters": 8, "bottleneck": 6, "hidden": 10, "blocks": 3, "repeats": 2}


@torch.no_grad()
def separated(model, mix):
    return model.eval()(mix)


@pytest.mark.parametrize("samples", [3, 20, 119])
@pytest.mark.parametrize("causal", [False, True])
def test_the_result_is_as_long_as_the_mixture(samples, causal):
    model = ConvTasNet(ConvTasNetConfig(**TINY, causal=causal))
    assert separated(model, torch.randn(2, 2, samples)).shape == (2, 4, 2, samples)
    assert model.valid_length(samples) == samples


def test_samples_after_the_last_whole_frame_come_out_as_zeros():
    model = ConvTasNet(ConvTasNetConfig(**TINY))
    sources = separated(model, torch.randn(1, 2, 119))
    assert bool((sources[..., 110:] == 0).all())
    assert bool((sources[..., 100:110] != 0).any())


def test_a_causal_model_does_not_look_ahead():
    model = ConvTasNet(ConvTasNetConfig(**TINY, causal=True, norm="channel"))
    mix = torch.randn(1, 2, 400)
    changed = mix.clone()
    changed[..., 200:] = 0
    torch.testing.assert_close(
        separated(model, mix)[..., :180], separated(model, changed)[..., :180]
    )


@pytest.mark.parametrize("mask", ["relu", "softmax"])
def test_masks_are_of_their_kind(mask):
    model = ConvTasNet(ConvTasNetConfig(**TINY, mask=mask))
    with torch.no_grad():
        masks = model.separator(model.encoder(torch.randn(1, 2, 400)))
    assert masks.shape == (1, 4, 8, 39)
    assert bool((masks >= 0).all())
    if mask == "softmax":
        torch.testing.assert_close(masks.sum(dim=1), torch.ones(1, 8, 39))


def test_with_all_masks_one_every_source_is_the_same():
    model = ConvTasNet(ConvTasNetConfig(**TINY))
    with torch.no_grad():
        latent = model.encoder(torch.randn(1, 2, 50))
        sources = model.decoder(latent, torch.ones(1, 4, 8, latent.shape[-1]))
    for source in sources[0, 1:]:
        torch.testing.assert_close(source, sources[0, 0])


def test_norms_leave_mean_zero_and_variance_one():
    x = torch.randn(2, 5, 30) * 4 + 2
    y = GlobalNorm(5)(x)
    torch.testing.assert_close(y.mean(dim=(1, 2)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(dim=(1, 2), correction=0), torch.ones(2))
    y = ChannelNorm(5)(x)
    torch.testing.assert_close(y.mean(dim=1), torch.zeros(2, 30), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(dim=1, correction=0), torch.ones(2, 30))


def test_silence_gives_finite_sources():
    sources = separated(ConvTasNet(ConvTasNetConfig(**TINY)), torch.zeros(1, 2, 100))
    assert bool(torch.isfinite(sources).all())


def test_the_published_model_has_its_size():
    with torch.device("meta"):
        model = ConvTasNet(ConvTasNetConfig(blocks=10))
    assert sum(parameter.numel() for parameter in model.parameters()) == 10_977_872
