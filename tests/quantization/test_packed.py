"""Packed tensors come back from a file, whatever their groups, and damaged files are named."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sonorant.errors import CheckpointError
from sonorant.hub.checkpoint import PACKING_KEY
from sonorant.hub.tensors import read_metadata
from sonorant.quantization import LSQ, Choice, DiffQ, DiffQConfig, Quantizer, UniformQuantizer
from sonorant.quantization.packed import packed, read_packed, stored

ALL = Choice(min_size_mb=0)


def write(path: Path, tensors: dict[str, Tensor], quantizer: Quantizer) -> None:
    by_name = {slot.path.removeprefix("."): quantizer.packed(slot) for slot in quantizer.quantized}
    made = stored(tensors, by_name)
    save_file(made.tensors, path, made.metadata)


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, object]], None]) -> None:
    tensors = load_file(path)
    packing = msgspec.json.decode(read_metadata(path)[PACKING_KEY])
    change(tensors, packing)
    save_file(tensors, path, {PACKING_KEY: msgspec.json.encode(packing).decode()})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = nn.Linear(6, 7)
    quantizer = DiffQ(model, DiffQConfig(group_size=4), Choice(0, ("bias",)))
    quantizer.quantized[0].learned.data.normal_(std=4)
    write(tmp_path / "small.safetensors", dict(model.state_dict()), quantizer)
    return tmp_path / "small.safetensors"


@settings(deadline=None, max_examples=40)
@given(values=st.integers(1, 100), group_size=st.integers(0, 30), seed=st.integers(0, 2**32 - 1))
def test_any_group_size_and_all_bits_up_to_15_come_back(
    values: int, group_size: int, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torch.manual_seed(seed)
    path = tmp_path_factory.mktemp("packed") / "a.safetensors"
    model = nn.Linear(values, 1, bias=False)
    quantizer = DiffQ(model, DiffQConfig(group_size=group_size), ALL)
    quantizer.quantized[0].learned.data.normal_(std=5)  # 2 to 15 bits
    write(path, {"weight": model.weight.detach()}, quantizer)
    expected = quantizer.stored_weight(quantizer.quantized[0])
    assert torch.equal(read_packed(path)["weight"], expected)


@pytest.mark.parametrize(
    "make",
    [lambda model: LSQ(model, 3, ALL), lambda model: UniformQuantizer(model, 11, choice=ALL)],
)
def test_baselines_come_back(make: Callable[[nn.Module], Quantizer], tmp_path: Path) -> None:
    model = nn.Linear(9, 5)
    quantizer = make(model)
    write(tmp_path / "a.safetensors", dict(model.state_dict()), quantizer)
    found = read_packed(tmp_path / "a.safetensors")
    for slot in quantizer.quantized:
        assert torch.equal(found[slot.path.removeprefix(".")], quantizer.stored_weight(slot))


def test_buffers_and_shared_weights_are_kept_and_shared_ones_stored_once(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model.append(nn.BatchNorm1d(8))
    model[1].weight = model[0].weight
    quantizer = UniformQuantizer(model, 4, choice=Choice(0, ("2.*",)))
    path = tmp_path / "a.safetensors"
    write(path, dict(model.state_dict()), quantizer)
    found = read_packed(path)
    assert found.keys() == model.state_dict().keys()
    assert torch.equal(found["0.weight"], found["1.weight"])
    assert torch.equal(found["2.running_var"], torch.ones(8))
    assert sum(name.endswith(".levels") for name in load_file(path)) == 1


def test_a_file_takes_the_bits_of_its_levels(tmp_path: Path) -> None:
    levels = torch.randint(0, 8, (64, 64))
    part = packed(levels.shape, levels.short(), 3, limits=(0.0, 7.0))
    made = stored({"a": levels.float()}, {"a": part})
    save_file(made.tensors, tmp_path / "a.safetensors", made.metadata)
    assert load_file(tmp_path / "a.safetensors")["a.levels"].nbytes * 8 == 3 * 64 * 64
    found = read_packed(tmp_path / "a.safetensors")["a"]
    torch.testing.assert_close(found, levels.float())


def shorten(tensors: dict[str, Tensor], packing: dict[str, object]) -> None:
    tensors["weight.levels"] = tensors["weight.levels"][:-1]


def lengthen(tensors: dict[str, Tensor], packing: dict[str, object]) -> None:
    tensors["weight.levels"] = nn.functional.pad(tensors["weight.levels"], (0, 1))


def drop_levels(tensors: dict[str, Tensor], packing: dict[str, object]) -> None:
    del tensors["weight.levels"]


def drop_bits(tensors: dict[str, Tensor], packing: dict[str, object]) -> None:
    del tensors["weight.bits"]


def grow(tensors: dict[str, Tensor], packing: dict[str, object]) -> None:
    packing["tensors"]["weight"]["shape"] = [2**20, 2**20]


def be_newer(tensors: dict[str, Tensor], packing: dict[str, object]) -> None:
    packing["version"] = 2


def say_both(tensors: dict[str, Tensor], packing: dict[str, object]) -> None:
    packing["tensors"]["weight"]["step"] = 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorten, "weight is damaged: its planes are cut short"),
        (lengthen, "weight is damaged: it has more planes"),
        (drop_levels, "lacks the tensor 'weight.levels'"),
        (drop_bits, "weight is damaged: the bits of its groups are missing"),
        (grow, "weight is damaged"),
        (be_newer, "packed in version 2"),
        (say_both, "one of limits and step"),
    ],
)
def test_damaged_files_are_named(
    file: Path, change: Callable[[dict[str, Tensor], dict[str, object]], None], message: str
) -> None:
    rewrite(file, change)
    with pytest.raises(CheckpointError, match=rf"small\.safetensors.*{message}"):
        read_packed(file)


def test_a_truncated_file_is_named(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_packed(file)
