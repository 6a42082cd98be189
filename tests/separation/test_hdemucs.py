from typing import Any

import pytest
import torch

from sonorant.separation.hdemucs import HDemucs, HDemucsConfig, as_channels, normalized
from sonorant.separation.hybrid_layers import (
    BandedDecoder,
    BandedEncoder,
    DecoderLayer,
    EncoderLayer,
    LayerPlan,
)


def small(**options: Any) -> HDemucs:
    fields = {
        "sources": ("a", "b"),
        "channels": 4,
        "depth": 4,
        "n_fft": 256,
        "norm_from_layer": 2,
        "attention_from_layer": 2,
        "lstm_from_layer": 2,
        "sample_rate": 8000,
        "segment_seconds": 0.5,
    }
    torch.manual_seed(0)
    return HDemucs(HDemucsConfig(**fields | options)).eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hybrid": False},
        {"shifted_spectrogram": True},
        {"complex_as_channels": False},
        {"complex_as_channels": False, "wiener_iterations": -1},
        {"complex_as_channels": False, "wiener_iterations": 1, "wiener_residual": True},
        {"band_edges": (0.3, 0.6), "norm_from_layer": 9},
        {"time_channels": 8},
        {"rewrite": False},
        {"encoder_context": 1, "context": 0},
        {"embedding_weight": 0},
        {"audio_channels": 1},
    ],
)
def test_every_form_gives_a_sound_per_source(options: dict[str, Any]) -> None:
    model = small(**options)
    channels = model.audio_channels
    with torch.no_grad():
        stems = model(torch.randn(2, channels, 1001))
    assert stems.shape == (2, 2, channels, 1001)
    assert torch.isfinite(stems).all()


def test_bins_shrink_until_the_branches_meet() -> None:
    model = small()
    assert model.bins == [128, 32, 8, 1, 1]
    assert len(model.tencoder) == 3
    assert model.tencoder[2].plan.only_strided
    assert model.encoder[3].conv.weight.shape == (32, 16, 4)


def test_silence_and_very_short_sounds_give_finite_sounds() -> None:
    model = small()
    with torch.no_grad():
        assert torch.isfinite(model(torch.zeros(1, 2, 800))).all()
        assert model(torch.randn(1, 2, 3)).shape == (1, 2, 2, 3)


def test_items_of_a_batch_do_not_see_each_other() -> None:
    model = small(channels=8)
    mix = torch.randn(2, 2, 900) * torch.tensor([1.0, 30.0])[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(model(mix)[1:], model(mix[1:]), atol=1e-4, rtol=1e-4)


def test_training_has_its_own_number_of_iterations() -> None:
    model = small(complex_as_channels=False, training_wiener_iterations=-1)
    mix = torch.randn(1, 2, 600)
    with torch.no_grad():
        by_phase = model(mix)
        masked = model.train()(mix)
    assert not torch.equal(by_phase, masked)
    torch.testing.assert_close(by_phase, masked, atol=1e-4, rtol=1e-4)


def test_every_parameter_learns_in_training() -> None:
    model = small().train()
    model(torch.randn(1, 2, 800)).square().mean().backward()
    without = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert not without


def test_normalized_can_be_undone() -> None:
    x = 3 + 2 * torch.randn(2, 4, 5, 6)
    y, level = normalized(x)
    assert float(y[0].mean()) == pytest.approx(0, abs=1e-5)
    assert float(y[0].std()) == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(y * level.std + level.mean, x, atol=1e-3, rtol=1e-3)


def test_real_and_imaginary_parts_stand_beside_each_other() -> None:
    z = torch.complex(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 4.0]]))[..., None]
    assert as_channels(z)[0, :, 0].tolist() == [1, 2, 3, 4]


def test_equal_bands_are_one_layer() -> None:
    """Where the copies of a layer have the same weights, nothing shows where the bands meet."""
    plan = LayerPlan(kernel_size=8, stride=4, over_bins=True)
    copies = LayerPlan(kernel_size=8, stride=4, over_bins=True, pads=False)
    whole = EncoderLayer(3, 5, plan, None)
    parts = [EncoderLayer(3, 5, copies, None) for _ in range(3)]
    x = torch.randn(1, 3, 64, 7)
    for part in parts:
        part.load_state_dict(whole.state_dict())
    encoded = BandedEncoder(parts, (0.3, 0.6))(x)
    torch.testing.assert_close(encoded, whole(x))
    single = DecoderLayer(5, 3, plan, None, sees_bins=False)
    bands = [DecoderLayer(5, 3, copies, None, sees_bins=False) for _ in range(3)]
    for band in bands:
        band.load_state_dict(single.state_dict())
    expected, _ = single(encoded, encoded, None)
    decoded, _ = BandedDecoder(bands, (0.3, 0.6))(encoded, encoded, None)
    torch.testing.assert_close(decoded, expected)
