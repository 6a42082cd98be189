"""A trained model in few bits loads like any other, in the size that was asked for."""

from pathlib import Path

import pytest
import torch
from torch import nn

import sonorant
from sonorant.codec.encodec import Encodec
from sonorant.errors import CheckpointError, ConfigError
from sonorant.model import fold_weight_norm
from sonorant.quantization.levels import from_levels, to_levels
from sonorant.quantization.post_training import allocate, quantize
from sonorant.quantization.quantizer import Choice
from tests.codec.test_encodec import tiny

SMALL = Choice(min_size_mb=0.0001)


@pytest.fixture
def codec() -> Encodec:
    return tiny()


@pytest.mark.parametrize("name", ["small.safetensors", "folder", "new/folder"])
def test_a_file_and_a_folder_load_as_the_model_with_rounded_weights(
    codec: Encodec, name: str, tmp_path: Path
) -> None:
    done = quantize(codec, tmp_path / name, bits=6, choice=SMALL)
    loaded = sonorant.load(tmp_path / name)
    expected = codec.saved_tensors()
    for tensor, bits in done.bits.items():
        assert bits == 6
        levels, limits = to_levels(expected[tensor], 6, tensor)
        expected[tensor] = from_levels(levels, 6, limits)
    assert loaded.config == codec.config
    found = loaded.saved_tensors()
    for tensor, values in expected.items():
        assert torch.equal(found[tensor], values), tensor
    assert any("embed" in tensor for tensor in done.bits)  # codebooks are buffers


def test_a_folder_loads_by_its_weights_file_too(codec: Encodec, tmp_path: Path) -> None:
    quantize(codec, tmp_path / "a", bits=8, choice=SMALL)
    loaded = sonorant.load(tmp_path / "a" / "model.safetensors")
    assert loaded.config == codec.config


def test_a_quantised_model_saves_and_quantises_again(codec: Encodec, tmp_path: Path) -> None:
    quantize(codec, tmp_path / "a.safetensors", bits=5, choice=SMALL)
    once = sonorant.load(tmp_path / "a.safetensors")
    once.save_pretrained(tmp_path / "plain")
    quantize(once, tmp_path / "b.safetensors", bits=5, choice=SMALL)
    for name in ("plain", "b.safetensors"):
        again = sonorant.load(tmp_path / name).saved_tensors()
        for tensor, values in once.saved_tensors().items():
            torch.testing.assert_close(again[tensor], values)


def test_a_quantised_model_has_no_known_name(codec: Encodec, tmp_path: Path) -> None:
    codec.name = "encodec_24khz"
    quantize(codec, tmp_path / "a.safetensors", bits=8, choice=SMALL)
    quantize(codec, tmp_path / "a", bits=8, choice=SMALL)
    assert sonorant.load(tmp_path / "a.safetensors").name is None
    assert sonorant.load(tmp_path / "a").name is None


@pytest.mark.parametrize("name", ["small.safetensors", "folder"])
def test_a_size_is_kept_to_and_used(codec: Encodec, name: str, tmp_path: Path) -> None:
    few = quantize(codec, tmp_path / "few.safetensors", bits=4, choice=SMALL).bytes
    most = few * 1.2
    done = quantize(codec, tmp_path / name, size_mb=most / 1e6, choice=SMALL)
    assert 0.9 * most < done.bytes <= most
    assert len(set(done.bits.values())) > 1
    assert sonorant.load(tmp_path / name).config == codec.config


def test_bits_go_where_they_take_away_most_error() -> None:
    spread = torch.linspace(-1, 1, 100)
    peaked = torch.cat([torch.zeros(98), torch.tensor([-1.0, 1.0])])  # coarse for its size
    widths = allocate({"spread": spread, "peaked": peaked}, 1000)
    assert sum(widths.values()) == 10
    assert widths["peaked"] > widths["spread"]
    assert set(allocate({"a": spread}, 10_000).values()) == {15}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "2 to 15 bits"),
        ({"bits": 16}, "2 to 15 bits"),
        ({}, "either"),
        ({"bits": 8, "size_mb": 1.0}, "either"),
        ({"size_mb": 0.0001}, "cannot hold this model"),
        ({"size_mb": -1.0}, "more than 0 MB"),
        ({"size_mb": float("nan")}, "more than 0 MB"),
        ({"bits": 8, "choice": Choice(min_size_mb=100)}, "nothing to quantise"),
    ],
)
def test_impossible_wishes_are_refused(
    codec: Encodec, options: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        quantize(codec, tmp_path / "a", **{"choice": SMALL, **options})
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_named(codec: Encodec, tmp_path: Path) -> None:
    fold_weight_norm(codec)
    weight = next(part for part in codec.modules() if isinstance(part, nn.Conv1d)).weight
    weight.data.view(-1)[0] = float("inf")
    with pytest.raises(CheckpointError, match=r"weight has values that are not finite"):
        quantize(codec, tmp_path / "a", bits=8, choice=Choice(min_size_mb=0))


def test_a_target_that_cannot_be_written_is_named(codec: Encodec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"file/small\.safetensors"):
        quantize(codec, tmp_path / "file" / "small.safetensors", bits=8, choice=SMALL)
