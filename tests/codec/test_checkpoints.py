"""Published layouts: complete key lists both ways, exact round trips, wrong files refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sonorant.codec.checkpoints import PUBLISHED, build, from_original, to_original
from sonorant.errors import CheckpointError
from sonorant.model import fold_weight_norm, load
from tests.parity.adapters.encodec import config_of

FIXTURES = Path(__file__).parent.parent / "fixtures" / "codecs"
KEY_LISTS = {
    "encodec_24khz": "encodec_24khz-d7cc33bc.json",
    "encodec_48khz": "encodec_48khz-7e698e3e.json",
}


@pytest.mark.parametrize("name", KEY_LISTS)
def test_every_official_tensor_has_its_place_both_ways(name: str) -> None:
    published = json.loads((FIXTURES / "keys" / KEY_LISTS[name]).read_text())
    with torch.device("meta"):
        model = build(PUBLISHED[name])
        tensors = {key: torch.empty(shape) for key, (*shape, _) in published.items()}
    ours = from_original(model, tensors)
    assert {key: t.shape for key, t in model.state_dict().items()} == {
        key: t.shape for key, t in ours.items()
    }
    assert {key: list(t.shape) for key, t in to_original(model).items()} == {
        key: shape for key, (*shape, _) in published.items()
    }


@pytest.mark.parametrize("case", ["encodec24_tiny", "encodec48_tiny"])
def test_original_tensors_come_back_unchanged(case: str) -> None:
    weights = load_file(FIXTURES / case / "weights.safetensors")
    model = build(config_of(json.loads((FIXTURES / case / "config.json").read_text())))
    model.load_state_dict(from_original(model, weights))
    back = to_original(model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_a_folded_model_still_exports_equal_weights() -> None:
    case = FIXTURES / "encodec24_tiny"
    weights = load_file(case / "weights.safetensors")
    model = build(config_of(json.loads((case / "config.json").read_text())))
    model.load_state_dict(from_original(model, weights))
    fold_weight_norm(model)
    back = to_original(model)
    assert back.keys() == weights.keys()
    for name in weights:
        if not name.endswith("weight_v"):
            torch.testing.assert_close(back[name], weights[name], rtol=1e-5, atol=1e-6)


def test_a_checkpoint_of_another_model_is_refused() -> None:
    weights = load_file(FIXTURES / "encodec24_tiny" / "weights.safetensors")
    model = build(PUBLISHED["encodec_48khz"])
    with pytest.raises(CheckpointError, match="not an EnCodec checkpoint of this layout"):
        from_original(model, weights)


@pytest.mark.parametrize("name", KEY_LISTS)
def test_an_official_file_loads_and_exports_again(name: str, tmp_path: Path) -> None:
    """A file of the official size and layout, with random numbers."""
    torch.manual_seed(0)
    source = to_original(build(PUBLISHED[name]))
    torch.save(source, tmp_path / "any-name.th")
    model = load(tmp_path / "any-name.th", like=name)
    sound = torch.randn(1, model.config.seanet.channels, 3000) * 0.1
    assert model.decode_batch(model.encode_batch(sound, 6.0)).shape == sound.shape
    model.export(tmp_path / "out", layout="original")
    back = torch.load(tmp_path / "out" / f"{name}.th", weights_only=True)
    assert back.keys() == source.keys()
    assert all(back[key].shape == source[key].shape for key in source)
