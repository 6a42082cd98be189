"""The entropy model: live equals offline, its start, its published layout."""

import json
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from sonorant.codec.entropy_checkpoints import (
    PUBLISHED,
    export_original,
    from_original,
    load_original,
    to_original,
)
from sonorant.codec.entropy_coding import (
    EntropyConfig,
    EntropyModel,
    ZeroStartAttention,
    previous_tokens,
)
from sonorant.errors import CheckpointError, ConfigError, ShapeError
from sonorant.hub.table import ModelEntry
from sonorant.nn.attention import OfflineSteps
from sonorant.nn.transformer import TransformerConfig
from tests.parity.adapters.entropy import config_of, model_of

FIXTURES = Path(__file__).parent.parent / "fixtures" / "codecs"
TINY = FIXTURES / "encodec_lm_tiny"
KEY_LISTS = {
    "encodec_lm_24khz": "encodec_lm_24khz-1608e3c0.json",
    "encodec_lm_48khz": "encodec_lm_48khz-7add9fc3.json",
}


def tiny() -> EntropyModel:
    published = json.loads((TINY / "config.json").read_text())
    return model_of(published, load_file(TINY / "weights.safetensors"))


def random_tokens(model: EntropyModel, batch: int, frames: int) -> Tensor:
    shape = (batch, model.config.codebooks, frames)
    return torch.randint(0, model.config.codebook_size, shape)


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4))
@torch.no_grad()
def test_live_equals_offline_for_any_chunking(sizes: list[int]) -> None:
    """Also once the context, 7 frames here, has forgotten the zero vector at the start."""
    model = tiny()
    previous = previous_tokens(random_tokens(model, 1, sum(sizes)))
    state = model.init_state()
    live = torch.cat([model(part, state) for part in previous.split(sizes, dim=-1)], dim=-1)
    torch.testing.assert_close(live, model(previous), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_restarted_row_begins_like_a_new_one() -> None:
    model = tiny()
    previous = previous_tokens(random_tokens(model, 2, 9))
    state = model.init_state(2)
    model(previous, state)
    state.reset(torch.tensor([True, False]))
    fresh = model(previous[:1], model.init_state())
    torch.testing.assert_close(model(previous, state)[:1], fresh, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_paused_row_keeps_its_state() -> None:
    model = tiny()
    previous = previous_tokens(random_tokens(model, 2, 3))
    state = model.init_state(2)
    for active in (torch.tensor([False, True]), torch.tensor([True, False])):
        state.set_active(active)
        before = {name: tensor[~active].clone() for name, tensor in state.tensors.items()}
        live = model(previous, state)
        assert all(torch.equal(state.tensors[name][~active], before[name]) for name in before)
        torch.testing.assert_close(live[active], model(previous[active]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_first_frame_attends_to_the_biases_and_itself() -> None:
    """One head, by hand: the key and value of a vector of zeros are the biases."""
    torch.manual_seed(0)
    attention = ZeroStartAttention(4, 1, 1, bias=True, capacity=3)
    x = torch.randn(1, 1, 4)
    q, k, v = attention.in_proj(x[0, 0]).split(4)
    _, key_bias, value_bias = attention.in_proj.bias.split(4)
    weights = (torch.stack([key_bias, k]) @ q / 4**0.5).softmax(dim=0)
    expected = attention.out_proj(weights @ torch.stack([value_bias, v]))
    torch.testing.assert_close(attention(x, OfflineSteps(causal=True))[0, 0], expected)


@torch.no_grad()
def test_probabilities_of_every_codebook_sum_to_one() -> None:
    model = tiny()
    p = model.probabilities(previous_tokens(random_tokens(model, 2, 4)))
    torch.testing.assert_close(p.sum(dim=1), torch.ones(2, model.config.codebooks, 4))


@torch.no_grad()
def test_a_frame_does_not_know_itself_or_the_future() -> None:
    model = tiny()
    tokens = random_tokens(model, 1, 6)
    changed = tokens.clone()
    changed[..., 3] = (changed[..., 3] + 1) % model.config.codebook_size
    differs = (
        (model(previous_tokens(tokens)) - model(previous_tokens(changed))).abs().amax((0, 1, 2))
    )
    assert (differs > 1e-6).tolist() == [False] * 4 + [True] * 2


def test_more_codebooks_than_it_knows_are_refused() -> None:
    with pytest.raises(ShapeError, match="1 to 8 codebooks, not 9"):
        tiny()(torch.zeros(1, 9, 1, dtype=torch.int64))


def test_a_config_without_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave nothing to code"):
        EntropyConfig(codebooks=0)


@pytest.mark.parametrize("name", KEY_LISTS)
def test_every_official_tensor_has_its_place_both_ways(name: str) -> None:
    published = json.loads((FIXTURES / "keys" / KEY_LISTS[name]).read_text())
    with torch.device("meta"):
        model = EntropyModel(PUBLISHED[name])
        tensors = {key: torch.empty(shape) for key, (*shape, _) in published.items()}
    ours = from_original(PUBLISHED[name], tensors)
    assert {key: tensor.shape for key, tensor in model.state_dict().items()} == {
        key: tensor.shape for key, tensor in ours.items()
    }
    assert {key: list(tensor.shape) for key, tensor in to_original(model).items()} == {
        key: shape for key, (*shape, _) in published.items()
    }


def test_an_official_file_comes_back_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_file(TINY / "weights.safetensors")
    config = config_of(json.loads((TINY / "config.json").read_text()))
    monkeypatch.setitem(PUBLISHED, "tiny", config)
    torch.save(weights, tmp_path / "in.th")
    entry = ModelEntry("encodec_entropy", "", "", name="tiny", repository="any/where")
    loaded_config, tensors = load_original([tmp_path / "in.th"], entry)
    model = EntropyModel(loaded_config)
    model.load_state_dict(tensors)
    export_original(model, tmp_path / "out")
    back = torch.load(tmp_path / "out" / "encodec_entropy.th", weights_only=True)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"codebooks": 7}, "unexpected: emb.7.weight"),
        ({"codebooks": 9}, "missing: emb.8.weight"),
        ({"codebook_size": 15}, "of another shape: emb.0.weight"),
    ],
)
def test_a_checkpoint_of_another_size_is_refused(change: dict, told: str) -> None:
    weights = load_file(TINY / "weights.safetensors")
    config = config_of(json.loads((TINY / "config.json").read_text()))
    with pytest.raises(CheckpointError, match=told):
        from_original(msgspec.structs.replace(config, **change), weights)


def test_the_published_models_look_back_three_and_a_half_seconds() -> None:
    """262 and 525 frames before the current one."""
    assert PUBLISHED["encodec_lm_24khz"].transformer.context == 263
    assert PUBLISHED["encodec_lm_48khz"].transformer.context == 526


def test_a_config_survives_json() -> None:
    config = EntropyConfig(transformer=TransformerConfig(width=8, layers=1, heads=2, hidden=8))
    assert msgspec.json.decode(msgspec.json.encode(config), type=EntropyConfig) == config
