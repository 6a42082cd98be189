from typing import Any

import pytest
import torch

from sonorant.errors import ConfigError, ShapeError
from sonorant.model import SkipInitialization, load
from sonorant.separation import branch_products, cross_transformer, minimal_images
from sonorant.separation.cross_transformer import CrossTransformerConfig
from sonorant.separation.htdemucs import HTDEMUCS, HTDEMUCS_6_SOURCES, HTDemucs, HTDemucsConfig


def small(layers: int = 2, **options: Any) -> HTDemucs:
    fields = {
        "sources": ("a", "b"),
        "channels": 8,
        "depth": 2,
        "n_fft": 256,
        "sample_rate": 8000,
        "segment_seconds": 0.25,
        "dconv_in_decoder": True,
        "transformer": CrossTransformerConfig(layers=layers, heads=2),
    }
    torch.manual_seed(0)
    return HTDemucs(HTDemucsConfig(**fields | options)).eval()


@pytest.mark.parametrize(
    ("config", "parameters", "tensors"),
    [(HTDEMUCS, 41_984_456, 533), (HTDEMUCS_6_SOURCES, 27_414_996, 525)],
)
def test_the_presets_have_the_published_sizes(
    config: HTDemucsConfig, parameters: int, tensors: int
) -> None:
    with torch.device("meta"), SkipInitialization():
        model = HTDemucs(config)
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors
    assert model.segment_samples == 343_980


@pytest.mark.parametrize("options", [{}, {"bottom_channels": 12}, {"layers": 0}])
def test_it_gives_a_sound_per_source(options: dict[str, Any]) -> None:
    model = small(**options)
    with torch.no_grad():
        assert model(torch.randn(2, 2, 2000)).shape == (2, 2, 2, 2000)


@pytest.mark.parametrize("in_decoder", [False, True])
def test_the_forms_for_large_sounds_change_nothing(
    monkeypatch: pytest.MonkeyPatch, in_decoder: bool
) -> None:
    model = small(dconv_in_decoder=in_decoder, bottom_channels=12)
    mix = torch.randn(2, 2, 2000)
    given = mix.clone()
    expected = model(mix).detach()  # with gradients, every layer as it is
    monkeypatch.setattr(branch_products, "LARGE", 0)
    monkeypatch.setattr(cross_transformer, "MANY_STEPS", 1)
    monkeypatch.setattr(minimal_images, "FEWEST_CHANNELS", 1)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(model(mix), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(mix, given)


def test_a_short_sound_is_filled_up_with_silence() -> None:
    model = small()
    assert model.valid_length(1500) == model.segment_samples == model.longest_samples == 2000
    mix = torch.randn(1, 2, 1500)
    filled = torch.nn.functional.pad(mix, (0, 500))
    with torch.no_grad():
        torch.testing.assert_close(model(mix), model(filled)[..., :1500])


def test_a_sound_longer_than_the_segment_is_refused() -> None:
    with pytest.raises(ShapeError, match="at most 2000 samples"):
        small()(torch.randn(1, 2, 2001))


def test_without_a_fixed_segment_any_length_will_do() -> None:
    model = small(fixed_segment=False)
    assert model.longest_samples is None
    assert model.valid_length(2500) == 2500
    with torch.no_grad():
        assert model(torch.randn(1, 2, 2500)).shape == (1, 2, 2, 2500)


def test_training_takes_any_length() -> None:
    assert small().train()(torch.randn(1, 2, 2300)).shape == (1, 2, 2, 2300)


def test_more_layers_than_the_bins_allow_are_refused() -> None:
    with pytest.raises(ConfigError, match="leave one of 128 bins"):
        small(depth=3)


def test_branches_of_different_width_need_a_common_one() -> None:
    with pytest.raises(ConfigError, match="do not meet"):
        small(time_channels=16)
    model = small(time_channels=16, bottom_channels=12)
    with torch.no_grad():
        assert torch.isfinite(model(torch.randn(1, 2, 2000))).all()


def test_it_is_the_same_after_saving(tmp_path: Any) -> None:
    model = small(bottom_channels=12)
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    mix = torch.randn(1, 2, 2000)
    with torch.no_grad():
        assert torch.equal(again(mix), model(mix))


def test_branches_without_a_channel_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"smaller dconv\.compress"):
        small(channels=4)
