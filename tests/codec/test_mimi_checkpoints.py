"""Mimi's published layouts: complete key lists both ways, exact round trips, errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sonorant.codec import mimi_configs
from sonorant.codec.mimi import MIMI, Mimi, MimiConfig
from sonorant.codec.mimi_checkpoints import (
    from_moshi,
    from_transformers,
    read_moshi,
    to_moshi,
    to_transformers,
)
from sonorant.errors import CheckpointError, ConfigError
from sonorant.model import load
from tests.codec.test_mimi import sound, tiny_mimi

FIXTURES = Path(__file__).parent.parent / "fixtures" / "codecs"
Reader = Callable[[MimiConfig, dict[str, Tensor]], dict[str, Tensor]]
LAYOUTS: dict[str, tuple[str, Reader, Callable[[Mimi], dict[str, Tensor]]]] = {
    "moshi": ("mimi-tokenizer-e351c8d8-checkpoint125.json", from_moshi, to_moshi),
    "huggingface": ("hf-kyutai-mimi.json", from_transformers, to_transformers),
}
CASES = {
    "mimi_tiny": (mimi_configs.from_moshi, from_moshi, to_moshi),
    "mimi_tiny_hf": (mimi_configs.from_transformers, from_transformers, to_transformers),
}


def case_config(name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((FIXTURES / name / "config.json").read_text())
    return result


def case_weights(name: str) -> dict[str, Tensor]:
    return load_file(FIXTURES / name / "weights.safetensors")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_official_tensor_has_its_place_both_ways(layout: str) -> None:
    keys, read, write = LAYOUTS[layout]
    published = json.loads((FIXTURES / "keys" / keys).read_text())
    with torch.device("meta"):
        model = Mimi(MIMI)
        tensors = {key: torch.empty(shape) for key, (*shape, _) in published.items()}
    ours = read(MIMI, tensors)
    assert {key: t.shape for key, t in model.state_dict().items()} == {
        key: t.shape for key, t in ours.items()
    }
    assert {key: list(t.shape) for key, t in write(model).items()} == {
        key: shape for key, (*shape, _) in published.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_published_tensors_come_back_unchanged(case: str) -> None:
    config_of, read, write = CASES[case]
    config, weights = config_of(case_config(case)), case_weights(case)
    model = Mimi(config)
    model.load_state_dict(read(config, weights))
    back = write(model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_the_two_layouts_are_the_same_model() -> None:
    moshi = from_moshi(mimi_configs.from_moshi(case_config("mimi_tiny")), case_weights("mimi_tiny"))
    config = mimi_configs.from_transformers(case_config("mimi_tiny_hf"))
    other = from_transformers(config, case_weights("mimi_tiny_hf"))
    assert moshi.keys() == other.keys()
    assert all(torch.equal(moshi[name], other[name]) for name in moshi)


def test_published_configs_come_back_unchanged() -> None:
    moshi = case_config("mimi_tiny")
    assert mimi_configs.to_moshi(mimi_configs.from_moshi(moshi)) == moshi
    theirs = case_config("mimi_tiny_hf")
    back = mimi_configs.to_transformers(mimi_configs.from_transformers(theirs))
    unused = {"max_position_embeddings", "use_cache", "attention_dropout"}
    assert back == {name: value for name, value in theirs.items() if name not in unused}
    assert mimi_configs.from_transformers({"model_type": "mimi"}) == MIMI


def test_codewords_that_were_never_used_are_bounded() -> None:
    weights = case_weights("mimi_tiny")
    config = mimi_configs.from_moshi(case_config("mimi_tiny"))
    level = "quantizer.rvq_first.vq.layers.0._codebook."
    assert float(weights[level + "cluster_usage"][0]) == 0.0
    embed = from_moshi(config, weights)["quantizer.semantic.levels.layers.0.embed"]
    torch.testing.assert_close(embed[0], weights[level + "embedding_sum"][0] / 1e-5)


def test_a_training_checkpoint_loads_with_old_names_weight_norm_and_a_teacher() -> None:
    weights = case_weights("mimi_tiny")
    config = mimi_configs.from_moshi(case_config("mimi_tiny"))
    old = {}
    for name, tensor in weights.items():
        name = name.replace("_initialized", "inited").replace("cluster_usage", "cluster_size")
        name = name.replace("embedding_sum", "embed_avg")
        if name == "encoder.model.0.conv.conv.weight":
            old[name + "_v"] = 3 * tensor
            old[name + "_g"] = tensor.flatten(1).norm(dim=1).view(-1, 1, 1)
        else:
            old[name] = tensor
    old["wavlm_proj.weight"] = torch.zeros(2)
    ours, expected = from_moshi(config, old), from_moshi(config, weights)
    assert ours.keys() == expected.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], expected[name])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_saved_model_exports_and_loads_again(layout: str, tmp_path: Path) -> None:
    model = tiny_mimi()
    model.save_pretrained(tmp_path / "ours")
    again = load(tmp_path / "ours")
    assert isinstance(again, Mimi)
    again.export(tmp_path / layout, layout=layout)
    back = load(tmp_path / layout)
    assert isinstance(back, Mimi)
    x = sound(1, 3 * model.hop_samples)
    tokens = model.encode_batch(x).tokens
    assert torch.equal(back.encode_batch(x).tokens, tokens)
    torch.testing.assert_close(back.decode_tokens(tokens), model.decode_tokens(tokens))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_exports_are_whole_readable_by_all_and_refused_in_one_way(
    layout: str, tmp_path: Path
) -> None:
    model = tiny_mimi()
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CheckpointError, match="cannot save a model to"):
        model.export(tmp_path / "file", layout=layout)
    model.export(tmp_path / "out", layout=layout)
    model.export(tmp_path / "out", layout=layout)  # over an older one
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1


@pytest.mark.parametrize("wrap", [lambda t: {"model": t}, lambda t: {"best_state": {"model": t}}])
def test_a_pickle_of_a_training_run_loads(
    wrap: Callable[[dict[str, Tensor]], dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "mimi_config.json").write_text(json.dumps(case_config("mimi_tiny")))
    torch.save(wrap(case_weights("mimi_tiny")), tmp_path / "run.pt")
    model = load(tmp_path / "run.pt", like="mimi")
    assert isinstance(model, Mimi)
    assert all(torch.equal(t, case_weights("mimi_tiny")[n]) for n, t in to_moshi(model).items())
    torch.save({"model": [1, 2]}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        load(tmp_path / "other.pt", like="mimi")


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    config = mimi_configs.from_moshi(case_config("mimi_tiny"))
    weights = case_weights("mimi_tiny")
    with pytest.raises(CheckpointError, match="no place in this layout for something"):
        from_moshi(config, weights | {"something": torch.zeros(1)})
    usage = "quantizer.rvq_first.vq.layers.0._codebook.cluster_usage"
    with pytest.raises(CheckpointError, match="usage is missing"):
        from_moshi(config, {name: t for name, t in weights.items() if name != usage})
    # Tiny weights without their config would have to be the published model.
    save_file(weights, tmp_path / "tiny.safetensors")
    with pytest.raises(CheckpointError, match="does not fit its config"):
        load(tmp_path / "tiny.safetensors", like="mimi")


def test_projections_that_do_not_fit_are_refused() -> None:
    config = mimi_configs.from_transformers(case_config("mimi_tiny_hf"))
    weights = case_weights("mimi_tiny_hf")
    del weights["decoder_transformer.layers.1.self_attn.v_proj.weight"]
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.q_proj, k_proj or v_proj"):
        from_transformers(config, weights)


@pytest.mark.parametrize(
    ("section", "name", "value", "words"),
    [
        ("seanet", "norm", "weight_norm", r"seanet\.norm = 'weight_norm'"),
        ("transformer", "gating", "silu", r"transformer\.gating"),
        ("transformer", "d_model", 32, r"transformer\.d_model"),
        ("quantizer", "input_dimension", 5, r"quantizer\.input_dimension"),
        ("seanet", "ratios", "many", "no usable config"),
        ("seanet", "final_activation", "Tanh", r"seanet\.final_activation = 'Tanh', which no Mimi"),
        ("seanet", "activation_params", {"alpha": 2}, r"seanet\.activation_params"),
        ("seanet", "channels", 2, r"channels = 1; the only Mimi there is here has 2"),
        ("transformer", "kv_repeat", 2, r"transformer\.kv_repeat = 2"),
        ("transformer", "rope_concat", False, r"transformer\.rope_concat = False"),
        ("quantizer", "n_q_semantic", 2, r"quantizer\.n_q_semantic = 2"),
    ],
)
def test_published_configs_that_no_mimi_has_are_refused(
    section: str, name: str, value: object, words: str
) -> None:
    published = case_config("mimi_tiny")
    published[section][name] = value
    with pytest.raises(ConfigError, match=words):
        mimi_configs.from_moshi(published)


@pytest.mark.parametrize(
    "change",
    [
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000, "factor": 8}},
        {"rope_scaling": {"type": "dynamic", "factor": 2}},
    ],
)
def test_positions_that_turn_otherwise_are_refused(change: dict[str, Any]) -> None:
    published = case_config("mimi_tiny_hf")
    usual = mimi_configs.from_transformers(published)
    said = published | {"rope_scaling": {"rope_type": "default"}}
    assert mimi_configs.from_transformers(said) == usual
    with pytest.raises(ConfigError, match=r"type = '(linear|dynamic)'"):
        mimi_configs.from_transformers(published | change)


def test_what_only_training_needs_or_is_as_without_may_be_in_a_published_config() -> None:
    published = case_config("mimi_tiny")
    published["seanet"]["activation_params"] = {"alpha": 1.0}
    published["transformer"] |= {"kv_repeat": 1, "betas": None}
    published["quantizer"] |= {"q_dropout": True, "n_q_semantic": 1}
    assert mimi_configs.from_moshi(published) == mimi_configs.from_moshi(case_config("mimi_tiny"))


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff", b'{"x":' + b"[" * 30_000])
def test_a_config_that_is_no_json_object_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mimi_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="not a readable JSON object"):
        read_moshi([tmp_path / "mimi.safetensors"])


def test_configs_that_say_too_little_or_belong_elsewhere_are_refused() -> None:
    published = case_config("mimi_tiny")
    del published["quantizer"]["bins"]
    with pytest.raises(ConfigError, match=r"quantizer\.bins is missing"):
        mimi_configs.from_moshi(published)
    with pytest.raises(ConfigError, match="no section 'seanet'"):
        mimi_configs.from_moshi({})
    with pytest.raises(ConfigError, match="not of a 'mimi'"):
        mimi_configs.from_transformers({"model_type": "encodec"})
    with pytest.raises(ConfigError, match="whole number of latents"):
        mimi_configs.from_moshi(case_config("mimi_tiny") | {"frame_rate": 10.0})


def test_models_of_our_own_kind_are_not_exported() -> None:
    seanet = msgspec.structs.replace(MIMI.seanet, lstm_layers=1)
    with pytest.raises(ConfigError, match="no Mimi with this config"):
        mimi_configs.to_moshi(msgspec.structs.replace(MIMI, seanet=seanet))
    two = msgspec.structs.replace(MIMI, semantic_codebooks=2)
    with pytest.raises(ConfigError, match="one semantic codebook"):
        mimi_configs.to_moshi(two)
    assert mimi_configs.to_transformers(two)["num_semantic_quantizers"] == 2


def test_a_model_that_has_run_live_is_saved_and_exported_as_before(tmp_path: Path) -> None:
    model = tiny_mimi()
    before = to_moshi(model)
    model.encode_step(sound(1, model.hop_samples), model.init_state())
    for layout in LAYOUTS:
        model.export(tmp_path / layout, layout=layout)
    model.save_pretrained(tmp_path / "ours")
    for name in ("ours", *LAYOUTS):
        after = load(tmp_path / name)
        assert isinstance(after, Mimi)
        embeds = {key: t for key, t in to_moshi(after).items() if "_codebook" not in key}
        assert all(torch.equal(tensor, before[key]) for key, tensor in embeds.items())
