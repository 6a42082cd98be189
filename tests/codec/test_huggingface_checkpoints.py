"""EnCodec in transformers' layout: complete both ways, faults named, and read by transformers."""

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from sonorant.codec.checkpoints import build, from_published, to_published
from sonorant.codec.encodec import ENCODEC_24KHZ
from sonorant.codec.huggingface_checkpoints import (
    config_from_huggingface,
    config_to_huggingface,
    export_huggingface,
    huggingface_name,
    load_huggingface,
)
from sonorant.errors import CheckpointError, ConfigError
from sonorant.model import fold_weight_norm, load
from sonorant.nn.seanet import SEANetConfig, SEANetVariant

FIXTURES = Path(__file__).parent.parent / "fixtures" / "codecs"
CASES = ["encodec24_tiny_hf", "encodec48_tiny_hf"]

# What the hub's repositories say, where it differs from transformers' defaults.
PUBLISHED: dict[str, dict[str, Any]] = {
    "hf-facebook-encodec_24khz": {},
    "hf-facebook-encodec_48khz": {
        "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
        "sampling_rate": 48000,
        "audio_channels": 2,
        "normalize": True,
        "chunk_length_s": 1.0,
        "overlap": 0.01,
        "norm_type": "time_group_norm",
        "use_causal_conv": False,
    },
    "hf-facebook-encodec_32khz": {
        "target_bandwidths": [2.2],
        "sampling_rate": 32000,
        "num_filters": 64,
        "upsampling_ratios": [8, 5, 4, 4],
        "codebook_size": 2048,
        "use_causal_conv": False,
        "use_conv_shortcut": False,
    },
}


def fields_of(case: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((FIXTURES / case / "config.json").read_text())
    return fields


@pytest.fixture
def repository(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A folder as transformers writes it."""
    case = FIXTURES / getattr(request, "param", "encodec24_tiny_hf")
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copy(case / "config.json", folder)
    shutil.copy(case / "weights.safetensors", folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_official_tensor_has_its_place_both_ways(name: str) -> None:
    published = json.loads((FIXTURES / "keys" / f"{name}.json").read_text())
    codebooks = sum(key.endswith("codebook.embed") for key in published)
    config = config_from_huggingface(PUBLISHED[name] | {"model_type": "encodec"}, codebooks)
    with torch.device("meta"):
        model = build(config)
        tensors = {key: torch.empty(shape) for key, (*shape, _) in published.items()}
    ours = from_published(model, tensors, huggingface_name)
    assert {key: t.shape for key, t in model.state_dict().items()} == {
        key: t.shape for key, t in ours.items()
    }
    back = to_published(model, huggingface_name)
    assert {key: list(t.shape) for key, t in back.items()} == {
        key: shape for key, (*shape, _) in published.items()
    }
    written = config_to_huggingface(config)
    assert {key: written[key] for key in PUBLISHED[name]} == {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in PUBLISHED[name].items()
    }


@pytest.mark.parametrize("case", CASES)
def test_config_and_tensors_come_back_unchanged(case: str, tmp_path: Path) -> None:
    weights = load_file(FIXTURES / case / "weights.safetensors")
    codebooks = sum(name.endswith("codebook.embed") for name in weights)
    model = build(config_from_huggingface(fields_of(case), codebooks))
    model.load_state_dict(from_published(model, weights, huggingface_name))
    export_huggingface(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == fields_of(case)
    back = load_file(tmp_path / "out" / "model.safetensors")
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


@pytest.mark.parametrize("repository", CASES, indirect=True)
def test_a_folder_loads_and_its_export_gives_the_same_sound(repository: Path) -> None:
    model = load(repository)
    x = 0.3 * torch.randn(1, model.channels, 2000, generator=torch.Generator().manual_seed(0))
    model.export(repository.parent / "out", layout="huggingface")
    again = load(repository.parent / "out" / "model.safetensors")
    assert again.config == model.config
    first, second = model.encode_batch(x), again.encode_batch(x)
    assert torch.equal(first.tokens, second.tokens)
    torch.testing.assert_close(model.decode_batch(first), again.decode_batch(second))


def renamed_as_torch_does_now(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {"weight_g": "parametrizations.weight.original0"}
    names["weight_v"] = "parametrizations.weight.original1"
    return {
        name.replace(old, new) if old in name else name: tensor
        for name, tensor in weights.items()
        for old, new in [next((pair for pair in names.items() if pair[0] in name), ("\0", ""))]
    }


def test_weight_norm_may_be_named_either_way_or_be_folded(repository: Path) -> None:
    file = repository / "model.safetensors"
    x = torch.linspace(-1, 1, 1000)[None, None]
    expected = load(repository).encode_batch(x)
    weights = load_file(file)
    save_file(renamed_as_torch_does_now(weights), file)
    assert not any(name.endswith("weight_g") for name in load_file(file))
    assert torch.equal(load(repository).encode_batch(x).tokens, expected.tokens)

    model = build(load(repository).config)
    model.load_state_dict(from_published(model, weights, huggingface_name))
    fold_weight_norm(model)
    folded = {huggingface_name(name, set()): t for name, t in model.state_dict().items()}
    save_file(folded, file)
    assert torch.equal(load(repository).encode_batch(x).tokens, expected.tokens)


def test_a_torch_pickle_of_the_weights_will_do(repository: Path) -> None:
    torch.save(load_file(repository / "model.safetensors"), repository / "pytorch_model.bin")
    expected = load(repository).state_dict()
    (repository / "model.safetensors").unlink()
    found = load(repository).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_file_elsewhere_loads_by_the_likeness_of_a_known_model(repository: Path) -> None:
    (repository / "model.safetensors").rename(repository / "mine.bin.safetensors")
    model = load(repository / "mine.bin.safetensors", like="facebook/encodec_24khz")
    assert model.system == "encodec"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_snake": True}, "unknown field `use_snake`"),
        ({"norm_type": "layer_norm"}, "norm_type"),
        ({"pad_mode": "wrap"}, "pad_mode"),
        ({"kernel_size": "seven"}, "kernel_size"),
        ({"codebook_dim": 5}, "make them equal"),
        ({"num_filters": 0}, "num_filters"),
        ({"num_lstm_layers": 10**9}, "num_lstm_layers"),
        ({"compress": 100}, "no model can be made of its config"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(
    repository: Path, change: dict[str, Any], words: str
) -> None:
    config = repository / "config.json"
    config.write_text(json.dumps(fields_of("encodec24_tiny_hf") | change))
    with pytest.raises(ConfigError, match=words) as caught:
        load(repository)
    assert str(repository) in str(caught.value)


def test_wrong_and_damaged_files_are_refused_in_one_line(repository: Path) -> None:
    weights, config = repository / "model.safetensors", repository / "config.json"
    content = weights.read_bytes()
    for length in range(0, len(content), 4001):
        weights.write_bytes(content[:length])
        with pytest.raises(CheckpointError) as caught:
            load(repository)
        assert "\n" not in str(caught.value)
    weights.write_bytes((FIXTURES / "encodec48_tiny_hf" / "weights.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="not an EnCodec checkpoint of this layout and size"):
        load(repository)
    weights.unlink()
    with pytest.raises(CheckpointError, match="there is no file"):
        load(repository)
    weights.write_bytes(content)
    config.write_text(json.dumps(fields_of("encodec24_tiny_hf") | {"num_filters": 4}))
    with pytest.raises(CheckpointError, match="instead of"):
        load(repository)
    config.write_text('{"x":' + "[" * 30_000)
    with pytest.raises(CheckpointError, match="is not a config"):
        load_huggingface([weights, config])
    config.write_text('{"model_type": "wavenet"}')
    with pytest.raises(CheckpointError, match="not 'wavenet'"):
        load(repository)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target_bandwidths_kbps": (1.5,)}, "which gives 2 here, but this model has 32"),
        ({"seanet": SEANetConfig(variant=SEANetVariant(elu_alpha=0.5))}, "no such norm"),
        ({"seanet": SEANetConfig(norm="none")}, "no such norm"),
    ],
)
def test_what_transformers_cannot_have_is_not_exported(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        config_to_huggingface(msgspec.structs.replace(ENCODEC_24KHZ, **change))


@pytest.mark.peer
@pytest.mark.parametrize("repository", CASES, indirect=True)
def test_transformers_reads_the_export_and_gives_the_same_numbers(repository: Path) -> None:
    transformers = import_module("transformers")
    ours = load(repository)
    ours.export(repository.parent / "out", layout="huggingface")
    theirs = transformers.EncodecModel.from_pretrained(repository.parent / "out").eval()
    extractor = transformers.EncodecFeatureExtractor.from_pretrained(repository.parent / "out")
    assert extractor.sampling_rate == ours.sample_rate
    generator = torch.Generator().manual_seed(0)
    x = 0.2 * torch.randn(2, ours.channels, 7000, generator=generator)
    kbps = ours.config.target_bandwidths_kbps[-1]
    with torch.no_grad():
        encoded = theirs.encode(x, bandwidth=kbps)
        decoded = theirs(x, bandwidth=kbps).audio_values
    tokens = ours.encode_batch(x, kbps)
    segments = tokens.tokens.split(list(tokens.segment_frames or [tokens.frames]), dim=-1)
    for segment, codes in zip(segments, encoded.audio_codes, strict=True):
        assert torch.equal(segment, codes[..., : segment.shape[-1]])
    torch.testing.assert_close(ours.decode_batch(tokens), decoded, rtol=1e-4, atol=1e-5)
