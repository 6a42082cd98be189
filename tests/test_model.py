"""Saving, loading and asking a model about itself, with a toy system of the tests' own."""

import json
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import sonorant
from sonorant.errors import CheckpointError, ConfigError
from sonorant.model import Model, fold_weight_norm, folded_state, load_weights
from sonorant.nn.state import State, StreamingModule


class ToyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    channels: int = 3
    ratios: tuple[int, ...] = (2, 4)


class Toy(Model, StreamingModule):
    """A weight-normed convolution, and buffers of each kind."""

    system = "toy"
    config_type = ToyConfig
    config: ToyConfig
    streams = True
    counts: Tensor
    table: Tensor

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.conv = weight_norm(nn.Conv1d(config.channels, 4, 3))
        self.register_buffer("counts", torch.arange(5))
        self.register_buffer("table", torch.linspace(0, 1, 7), persistent=False)

    def fresh_state(self, batch_size: int) -> dict[str, Tensor]:
        return {"past": torch.zeros(batch_size, self.config.channels, 2)}

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        return self.conv(x) + self.table.sum()


class OtherToy(Toy):
    system = "other_toy"


@pytest.fixture
def toy() -> Toy:
    torch.manual_seed(0)
    model = Toy(ToyConfig())
    with torch.no_grad():
        model.conv.parametrizations.weight.original0.mul_(3.0)
    model.counts += 1
    return model.eval()


@pytest.fixture
def sound() -> Tensor:
    return torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(1))


def test_saved_model_loads_with_the_same_output(toy: Toy, sound: Tensor, tmp_path: Path) -> None:
    toy.save_pretrained(tmp_path / "saved")
    loaded = Toy.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(loaded(sound), toy(sound), rtol=0, atol=1e-6)
    assert torch.equal(loaded.counts, toy.counts)
    assert loaded.config == toy.config
    assert not loaded.training


def test_loaded_model_has_no_weight_norm_and_the_saved_one_keeps_it(
    toy: Toy, tmp_path: Path
) -> None:
    toy.save_pretrained(tmp_path / "saved")
    assert parametrize.is_parametrized(toy.conv)
    assert not parametrize.is_parametrized(Toy.from_pretrained(tmp_path / "saved").conv)
    assert set(load_file(tmp_path / "saved" / "model.safetensors")) == {
        "conv.weight",
        "conv.bias",
        "counts",
    }


def test_buffers_that_are_not_saved_are_computed_when_loading(toy: Toy, tmp_path: Path) -> None:
    toy.save_pretrained(tmp_path / "saved")
    assert torch.equal(Toy.from_pretrained(tmp_path / "saved").table, torch.linspace(0, 1, 7))


def test_half_precision_file_is_half_the_size_and_loads_in_full_precision(
    toy: Toy, sound: Tensor, tmp_path: Path
) -> None:
    toy.save_pretrained(tmp_path / "half", dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert stored["conv.weight"].dtype == torch.float16
    assert stored["counts"].dtype == torch.int64
    loaded = Toy.from_pretrained(tmp_path / "half")
    assert loaded.conv.weight.dtype == torch.float32
    torch.testing.assert_close(loaded(sound), toy(sound), rtol=1e-2, atol=1e-2)


def test_number_that_does_not_fit_the_stored_precision_is_refused(toy: Toy, tmp_path: Path) -> None:
    with torch.no_grad():
        toy.conv.bias[0] = 1e6
    with pytest.raises(CheckpointError, match=r"conv\.bias.*float16"):
        toy.save_pretrained(tmp_path / "half", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_saving_again_replaces_the_files_and_leaves_nothing_else(toy: Toy, tmp_path: Path) -> None:
    toy.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        toy.conv.bias.fill_(7.0)
    toy.save_pretrained(tmp_path / "saved")
    assert Toy.from_pretrained(tmp_path / "saved").conv.bias.tolist() == [7.0] * 4
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "config.json",
        "model.safetensors",
        "saved",
    ]


def test_config_file_is_readable_json_with_system_and_version(toy: Toy, tmp_path: Path) -> None:
    toy.name = "tests/toy"
    toy.save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / "config.json").read_text()
    assert json.loads(text) == {
        "format_version": 1,
        "system": "toy",
        "name": "tests/toy",
        "config": {"channels": 3, "ratios": [2, 4]},
    }
    assert text.count("\n") > 5
    assert Toy.from_pretrained(tmp_path / "saved").name == "tests/toy"


def rewrite_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"config": {"channels": 3, "colour": "red"}}, ConfigError, "unknown field `colour`"),
        ({"config": {"channels": "three"}}, ConfigError, "Expected `int`"),
        ({"extra": 1}, CheckpointError, "unknown field `extra`"),
        ({"format_version": 2}, CheckpointError, "format version 2"),
        ({"system": "abacus"}, CheckpointError, "no system is named 'abacus'"),
    ],
)
def test_wrong_config_is_refused_by_name(
    toy: Toy,
    tmp_path: Path,
    changes: dict[str, object],
    error: type[Exception],
    words: str,
) -> None:
    toy.save_pretrained(tmp_path)
    rewrite_config(tmp_path, **changes)
    with pytest.raises(error, match=words):
        Toy.from_pretrained(tmp_path)


def test_model_of_another_system_is_refused(toy: Toy, tmp_path: Path) -> None:
    toy.save_pretrained(tmp_path)
    rewrite_config(tmp_path, system="encodec")
    with pytest.raises(CheckpointError, match="system 'encodec', not of 'toy'"):
        Toy.from_pretrained(tmp_path)


def test_missing_unexpected_and_misshaped_tensors_are_named(toy: Toy, tmp_path: Path) -> None:
    toy.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    save_file({"conv.weight": tensors["conv.weight"], "counts": tensors["counts"]}, weights)
    with pytest.raises(CheckpointError, match=r"missing: conv\.bias"):
        Toy.from_pretrained(tmp_path)
    save_file(tensors | {"stray": torch.zeros(1)}, weights)
    with pytest.raises(CheckpointError, match="unexpected: stray"):
        Toy.from_pretrained(tmp_path)
    save_file(tensors | {"conv.bias": torch.zeros(9)}, weights)
    with pytest.raises(CheckpointError, match=r"conv\.bias \[9\] float32 instead of \[4\]"):
        Toy.from_pretrained(tmp_path)
    save_file(tensors | {"counts": torch.zeros(5)}, weights)
    with pytest.raises(CheckpointError, match=r"counts \[5\] float32 instead of \[5\] int64"):
        Toy.from_pretrained(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(number: float, toy: Toy, tmp_path: Path) -> None:
    weight = next(toy.parameters())
    weight.data.view(-1)[-1] = number
    toy.save_pretrained(tmp_path / "toy")
    with pytest.raises(CheckpointError, match="not finite"):
        Toy.from_pretrained(tmp_path / "toy")


def test_folding_keeps_the_output(toy: Toy, sound: Tensor) -> None:
    before = toy(sound)
    folded = folded_state(toy)
    fold_weight_norm(toy)
    torch.testing.assert_close(toy(sound), before, rtol=0, atol=1e-6)
    assert set(folded) == set(toy.state_dict())
    assert torch.equal(folded["conv.weight"], toy.conv.weight)


def test_weights_with_weight_norm_load_into_a_model_with_it(toy: Toy, sound: Tensor) -> None:
    fresh = Toy(ToyConfig())
    load_weights(fresh, toy.state_dict(), "the test")
    assert parametrize.is_parametrized(fresh.conv)
    assert torch.equal(fresh(sound), toy(sound))


def test_info_counts_numbers_bytes_and_the_memory_of_a_session(toy: Toy) -> None:
    fold_weight_norm(toy)
    info = toy.info()
    assert info.parameters == 4 * 3 * 3 + 4 + 5
    assert info.bytes == 4 * (4 * 3 * 3 + 4) + 8 * 5
    assert info.state_bytes == 4 * 3 * 2
    assert (info.system, info.name) == ("toy", None)


def test_optimizing_packs_linear_layers_and_reports_the_error(sound: Tensor) -> None:
    class Wide(Toy):
        def __init__(self, config: ToyConfig) -> None:
            super().__init__(config)
            self.head = nn.Linear(18, 8)

        def forward(self, x: Tensor, state: State | None = None) -> Tensor:
            return self.head(super().forward(x))

    model = Wide(ToyConfig()).eval()
    before = model(sound)
    report = model.optimize("fp16")
    facts = model.info()
    others = 4 * 3 * 3 + 4 + 4 + 5  # the convolution, the size of its weight norm, the counts
    assert facts.parameters == others + 18 * 8 + 8
    assert facts.bytes == 4 * others + 4 * 5 + 2 * 18 * 8 + 4 * 8
    assert set(report.layers) == {"head"}
    assert 0 < report.total < 1e-3
    assert not torch.equal(model(sound), before)
    torch.testing.assert_close(model(sound), before, rtol=0, atol=0.01)


def test_optimizing_a_model_without_linear_layers_is_refused(toy: Toy) -> None:
    with pytest.raises(ConfigError, match="Toy has no linear layers to pack"):
        toy.optimize("fp16")


def test_export_without_a_layout_says_so(tmp_path: Path) -> None:
    class Bare(Toy):
        system = "encodec"

    with pytest.raises(ConfigError, match="encodec has no layout 'papyrus'"):
        Bare(ToyConfig()).export(tmp_path, "papyrus")


@pytest.mark.parametrize("channels", [0, -1, 10**12])
def test_a_config_that_no_model_can_have_is_refused(
    toy: Toy, channels: int, tmp_path: Path
) -> None:
    toy.save_pretrained(tmp_path / "saved")
    config = tmp_path / "saved" / "config.json"
    content = json.loads(config.read_text())
    content["config"]["channels"] = channels
    config.write_text(json.dumps(content))
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        Toy.from_pretrained(tmp_path / "saved")
    assert str(config) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_load_of_an_unknown_name_suggests_near_ones() -> None:
    with pytest.raises(CheckpointError, match="did you mean encodec_24khz"):
        sonorant.load("encodec_24kz")


def test_load_of_a_missing_folder_says_that_it_is_missing() -> None:
    with pytest.raises(CheckpointError, match="neither a known model nor a file or folder"):
        sonorant.load("/nowhere/at/all")


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a saved model: cannot read config\.json"):
        sonorant.load(tmp_path)


def test_folder_whose_weights_are_missing_is_refused(toy: Toy, tmp_path: Path) -> None:
    toy.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"there is no file .*model\.safetensors"):
        Toy.from_pretrained(tmp_path)


def test_model_cannot_be_saved_where_a_file_is(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(CheckpointError, match="cannot save a model to"):
        toy.save_pretrained(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_other_systems_toy_loads_only_as_itself(toy: Toy, tmp_path: Path) -> None:
    OtherToy(ToyConfig()).save_pretrained(tmp_path)
    assert isinstance(OtherToy.from_pretrained(tmp_path), OtherToy)
    with pytest.raises(CheckpointError, match="no system is named 'other_toy'"):
        Toy.from_pretrained(tmp_path)
