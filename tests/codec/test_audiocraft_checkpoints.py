"""EnCodec in AudioCraft's layout: complete both ways, its config read without running anything."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sonorant.codec.audiocraft_checkpoints import (
    bandwidths,
    config_from_audiocraft,
    config_to_audiocraft,
    load_audiocraft,
)
from sonorant.codec.checkpoints import build, from_original, to_original
from sonorant.codec.encodec import ENCODEC_48KHZ, EncodecConfig
from sonorant.errors import CheckpointError, ConfigError, SonorantError
from sonorant.hub.fetch import is_cached
from sonorant.hub.table import known
from sonorant.model import load
from sonorant.nn.quantizer import QuantizerConfig
from sonorant.nn.seanet import SEANetConfig, SEANetVariant

FIXTURES = Path(__file__).parent.parent / "fixtures"
CASES = ["audiocraft_encodec32_tiny", "audiocraft_encodec_causal_tiny"]
STATE = "compression_state_dict.bin"

PUBLISHED = {
    "audiocraft-encodec_32khz-musicgen": (32000, (8, 5, 4, 4)),
    "audiocraft-encodec_16khz-audiogen": (16000, (8, 5, 4, 2)),
}


def settings_of(case: str) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((FIXTURES / "codecs" / case / "config.json").read_text())
    return settings


def published_settings(name: str) -> dict[str, Any]:
    """The official models' config, as far as it is known; sizes are those of the key lists."""
    settings = settings_of("audiocraft_encodec32_tiny")
    rate, ratios = PUBLISHED[name]
    settings["encodec"]["sample_rate"] = rate
    settings["seanet"] |= {"dimension": 128, "n_filters": 64, "ratios": list(ratios)}
    settings["rvq"] |= {"bins": 2048}
    return settings


def changed(path: str, value: Any) -> dict[str, Any]:
    """The settings of a tiny model with one entry changed."""
    settings = settings_of("audiocraft_encodec32_tiny")
    section = settings
    *parents, last = path.split(".")
    for key in parents:
        section = section[key]
    section[last] = value
    return settings


def saved(folder: Path, settings: Any, weights: Any = None) -> Path:
    """A compression state with these settings."""
    if weights is None:
        weights = content_of("audiocraft_encodec32_tiny")["best_state"]
    text = settings if isinstance(settings, str) else yaml.safe_dump(settings)
    torch.save({"best_state": weights, "xp.cfg": text, "exported": True}, folder / STATE)
    return folder / STATE


def content_of(case: str) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(FIXTURES / "codecs" / case / STATE, weights_only=True)
    return content


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_official_tensor_has_its_place_both_ways(name: str) -> None:
    published = json.loads((FIXTURES / "codecs" / "keys" / f"{name}.json").read_text())
    config = config_from_audiocraft(published_settings(name))
    assert config.target_bandwidths_kbps == (0.55, 1.1, 1.65, 2.2)
    with torch.device("meta"):
        model = build(config)
        tensors = {key: torch.empty(shape) for key, (*shape, _) in published.items()}
    ours = from_original(model, tensors)
    assert {key: t.shape for key, t in model.state_dict().items()} == {
        key: t.shape for key, t in ours.items()
    }
    assert {key: list(t.shape) for key, t in to_original(model).items()} == {
        key: shape for key, (*shape, _) in published.items()
    }


@pytest.mark.parametrize("case", CASES)
def test_settings_and_tensors_come_back_unchanged(case: str, tmp_path: Path) -> None:
    _, config, tensors = load_audiocraft([FIXTURES / "codecs" / case / STATE])
    model = build(config)
    model.load_state_dict(tensors)
    model.export(tmp_path, layout="audiocraft")
    there, back = content_of(case), torch.load(tmp_path / STATE, weights_only=True)
    assert yaml.safe_load(back["xp.cfg"]) == yaml.safe_load(there["xp.cfg"])
    assert back["exported"] is True
    assert back["best_state"].keys() == there["best_state"].keys()
    for name, tensor in there["best_state"].items():
        assert torch.equal(back["best_state"][name], tensor)


@pytest.mark.parametrize("inside", ["", STATE])
def test_the_file_and_its_folder_are_recognised(inside: str, tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "codecs" / "audiocraft_encodec_causal_tiny" / STATE, tmp_path)
    model = load(tmp_path / inside)
    assert (model.system, model.streams) == ("encodec", True)


def test_a_state_that_training_saved_is_read_with_its_references() -> None:
    path = FIXTURES / "pickles" / "audiocraft_training_state.th"
    model = load(path, like="encodec_32khz")
    assert (model.config.sample_rate, model.config.seanet.causal) == (800, False)
    x = torch.linspace(-1, 1, 50)[None, None]
    assert model.decode_batch(model.encode_batch(x)).shape == x.shape


@pytest.mark.parametrize(
    "variant",
    [
        SEANetVariant(elu_alpha=0.5),
        SEANetVariant(plain_outer_blocks=2),
        SEANetVariant(final_activation="tanh"),
    ],
)
def test_rare_options_survive_the_round_trip(variant: SEANetVariant, tmp_path: Path) -> None:
    config = EncodecConfig(
        sample_rate=1600,
        target_bandwidths_kbps=bandwidths(2, 8, 400),
        seanet=SEANetConfig(
            dimension=4, base_filters=2, ratios=(2, 2), lstm_layers=1, variant=variant
        ),
        quantizer=QuantizerConfig(dimension=4, codebooks=2, codebook_size=8),
        normalize=False,
    )
    model = build(config).eval()
    model.export(tmp_path, layout="audiocraft")
    names = torch.load(tmp_path / STATE, weights_only=True)["best_state"]
    plain = {name for name in names if name.endswith("conv.weight")}
    assert ("encoder.model.0.conv.conv.weight" in plain) == (variant.plain_outer_blocks > 0)
    assert "encoder.model.6.conv.conv.weight" not in plain  # the inner block keeps its norm
    again = load(tmp_path / STATE)
    assert again.config.seanet == config.seanet
    x = torch.linspace(-3, 3, 100)[None, None]
    torch.testing.assert_close(again.decoder(again.encoder(x)), model.decoder(model.encoder(x)))


@pytest.mark.parametrize(
    ("books", "size", "rate"), [(4, 2048, 50), (32, 1024, 75), (40, 1000, 43), (9, 7, 13)]
)
def test_every_number_of_codebooks_has_its_bandwidth(books: int, size: int, rate: int) -> None:
    config = EncodecConfig(
        sample_rate=2 * rate,
        target_bandwidths_kbps=bandwidths(books, size, rate),
        seanet=SEANetConfig(dimension=1, base_filters=2, ratios=(2,), lstm_layers=0),
        quantizer=QuantizerConfig(dimension=1, codebooks=books, codebook_size=size),
    )
    with torch.device("meta"):
        model = build(config)
    found = [model.codebooks_for(kbps) for kbps in config.target_bandwidths_kbps]
    assert found == list(range(1, books + 1))


def test_every_codebook_can_be_asked_for_at_a_rate_that_frames_do_not_divide() -> None:
    settings = published_settings("audiocraft-encodec_32khz-musicgen")
    settings["encodec"] |= {"sample_rate": 44_100}
    settings["seanet"] |= {"ratios": [8, 5, 4, 4]}
    config = config_from_audiocraft(settings)
    with torch.device("meta"):
        model = build(config)
    found = [model.codebooks_for(kbps) for kbps in config.target_bandwidths_kbps]
    assert found == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("seanet.snake", True, "unknown field `snake`"),
        ("rvq.codebook_offset", 2, "unknown field `codebook_offset`"),
        ("seanet.encoder", {"n_filters": 4}, "unknown field `n_filters`"),
        ("seanet.pad_mode", "circular", "not known here"),
        ("seanet.norm", "spectral_norm", "not known here"),
        ("seanet.activation", "Snake", "activation"),
        ("seanet.activation_params", {"slope": 1.0}, "nothing but alpha"),
        ("seanet.decoder.final_activation", "Softsign", "known are Tanh"),
        ("encodec.quantizer", "no_quant", "quantizer"),
        ("encodec.sample_rate", "${rate}", "leads to no single value"),
        ("encodec.sample_rate", "${encodec}", "leads to no single value"),
        ("encodec.sample_rate", "${encodec.sample_rate}", "refers to itself"),
        ("encodec.channels", 2, "differ in channels"),
        ("seanet.ratios", [8, 0], "ratios"),
        ("seanet.compress", 100, "no model can be made of its config"),
        ("rvq.n_q", 10**9, "n_q"),
        ("rvq", None, "no section rvq"),
    ],
)
def test_settings_that_are_not_understood_are_refused(
    path: str, value: Any, words: str, tmp_path: Path
) -> None:
    file = saved(tmp_path, changed(path, value))
    with pytest.raises(ConfigError, match=words) as caught:
        load(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not YAML"),
        ("- just\n- a list", "no sections"),
        ("a: &x [1, 1]\nseanet: [*x, *x]", "aliases"),
        ("a: !!python/object/apply:os.system ['true']", "not YAML"),
        ("[" * 100_000, "levels deep"),
    ],
)
def test_hostile_yaml_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        load(saved(tmp_path, text))


class RunsCommand:
    """Pickles into a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


def test_a_pickle_that_asks_to_run_code_runs_nothing(tmp_path: Path) -> None:
    torch.save({"xp.cfg": RunsCommand(f"touch {tmp_path / 'trace'}")}, tmp_path / STATE)
    with pytest.raises(CheckpointError, match=r"asks to run posix\.system"):
        load(tmp_path / STATE)
    assert not (tmp_path / "trace").exists()


def test_truncated_states_are_refused_at_any_length(tmp_path: Path) -> None:
    content = (FIXTURES / "codecs" / CASES[0] / STATE).read_bytes()
    for length in range(0, len(content), 20_011):
        (tmp_path / STATE).write_bytes(content[:length])
        with pytest.raises(CheckpointError) as caught:
            load(tmp_path / STATE)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(1)], "is not a compression state"),
        ({"model": torch.zeros(1)}, "no best_state and xp.cfg"),
        ({"best_state": [1], "xp.cfg": "OK"}, "something else than tensors"),
        ({"best_state": {"a": torch.zeros(1)}, "xp.cfg": "OK"}, "not an EnCodec checkpoint"),
        ({"pretrained": "someone/unknown"}, "not in the table"),
        ({"pretrained": ["a"]}, "not in the table"),
    ],
)
def test_states_of_something_else_are_refused(content: Any, words: str, tmp_path: Path) -> None:
    if isinstance(content, dict) and content.get("xp.cfg") == "OK":
        content["xp.cfg"] = yaml.safe_dump(settings_of("audiocraft_encodec32_tiny"))
    torch.save(content, tmp_path / STATE)
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path / STATE)


def cached_repository(name: str, files: dict[str, Path], cache: Path) -> None:
    """What the hub's own cache holds of a repository after a download."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "snapshots" / "1").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1")
    for file, source in files.items():
        shutil.copy(source, folder / "snapshots" / "1" / file)


def test_a_state_may_stand_for_a_model_of_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("SONORANT_OFFLINE", "1")
    torch.save({"pretrained": "facebook/encodec_32khz", "exported": True}, tmp_path / STATE)
    with pytest.raises(CheckpointError, match="environment says offline"):
        load(tmp_path / STATE)
    case = FIXTURES / "codecs" / "encodec24_tiny_hf"
    files = {"config.json": case / "config.json"}
    files["model.safetensors"] = case / "weights.safetensors"
    cached_repository("facebook/encodec_32khz", files, tmp_path / "hub")
    assert load(tmp_path / STATE).config.seanet.base_filters == 2
    assert load("facebook/encodec_32khz").name == "facebook/encodec_32khz"


def test_a_repository_of_the_table_is_fetched_with_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("SONORANT_OFFLINE", "1")
    state = FIXTURES / "codecs" / "audiocraft_encodec32_tiny" / STATE
    cached_repository("facebook/musicgen-small", {STATE: state}, tmp_path)
    model = load("encodec_32khz")
    assert (model.name, model.config.sample_rate) == ("encodec_32khz", 32000)
    assert is_cached(known().models["encodec_32khz"])
    assert not is_cached(known().models["encodec_16khz"])


def test_models_in_segments_are_not_exported() -> None:
    with pytest.raises(SonorantError, match="knows no segments"):
        config_to_audiocraft(ENCODEC_48KHZ)
