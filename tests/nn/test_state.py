"""The streaming contract: rows reset, masked, saved and resumed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sonorant.errors import CheckpointError, ShapeError
from sonorant.model import fold_weight_norm
from sonorant.nn.conv import ConvStyle, StreamingConv1d
from sonorant.nn.quantizer import QuantizerConfig, ResidualQuantizer
from sonorant.nn.state import State, init_state

ZERO = ConvStyle(causal=True, pad_mode="zero", norm="none")


@pytest.fixture
def conv() -> StreamingConv1d:
    torch.manual_seed(0)
    return StreamingConv1d(2, 3, kernel_size=4, style=ZERO).eval()


@torch.no_grad()
def test_a_reset_row_is_as_new_and_the_others_go_on(conv: StreamingConv1d) -> None:
    state = init_state(conv, batch_size=2)
    x = torch.randn(2, 2, 5)
    fresh = conv(x, state)
    state.reset(torch.tensor([True, False]))
    again = conv(x, state)
    torch.testing.assert_close(again[0], fresh[0])
    assert not torch.allclose(again[1], fresh[1])


@torch.no_grad()
def test_inactive_rows_do_not_advance(conv: StreamingConv1d) -> None:
    state = init_state(conv, batch_size=2)
    conv(torch.randn(2, 2, 5), state)
    before = state[conv].past.clone()
    state.set_active(torch.tensor([False, True]))
    conv(torch.randn(2, 2, 5), state)
    assert torch.equal(state[conv].past[0], before[0])
    assert not torch.equal(state[conv].past[1], before[1])


@torch.no_grad()
def test_a_saved_state_resumes_bit_for_bit(conv: StreamingConv1d, tmp_path: Path) -> None:
    state = init_state(conv)
    conv(torch.randn(1, 2, 5), state)
    state.save(tmp_path / "session.safetensors")
    resumed = init_state(conv)
    resumed.load(tmp_path / "session.safetensors")
    x = torch.randn(1, 2, 5)
    assert torch.equal(conv(x, state), conv(x, resumed))


def test_a_state_of_another_model_is_refused_and_changes_nothing(
    conv: StreamingConv1d, tmp_path: Path
) -> None:
    other = StreamingConv1d(3, 3, kernel_size=4, style=ZERO)
    init_state(other).save(tmp_path / "other.safetensors")
    state = init_state(conv)
    state[conv].past.fill_(1)
    with pytest.raises(CheckpointError, match="another model"):
        state.load(tmp_path / "other.safetensors")
    assert bool((state[conv].past == 1).all())


@torch.no_grad()
def test_a_state_of_another_module_is_refused(conv: StreamingConv1d) -> None:
    other = StreamingConv1d(2, 3, kernel_size=4, style=ZERO)
    with pytest.raises(ShapeError, match="made for another model"):
        conv(torch.zeros(1, 2, 5), init_state(other))


def test_a_safetensors_file_of_weights_is_no_state(conv: StreamingConv1d, tmp_path: Path) -> None:
    save_file(conv.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="is not a saved state: it does not say"):
        init_state(conv).load(tmp_path / "weights.safetensors")


def test_others_may_read_a_saved_state_where_they_may_read_files(
    conv: StreamingConv1d, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    init_state(conv).save(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode == (tmp_path / "file").stat().st_mode


@pytest.mark.parametrize("content", [b"", b"not a state", b"\xff" * 64])
def test_a_damaged_state_is_refused(conv: StreamingConv1d, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a saved state"):
        init_state(conv).load(path)


def test_wrong_sizes_are_refused(conv: StreamingConv1d) -> None:
    with pytest.raises(ShapeError, match="at least one row"):
        State(conv, 0)


@pytest.mark.parametrize("rows", [[True], [True] * 3, [[True, False]], [1, 0], [1.0, 0.0]])
def test_what_is_no_mask_of_the_rows_is_refused(
    conv: StreamingConv1d, rows: list[bool] | list[int]
) -> None:
    state = init_state(conv, 2)
    state[conv].past.fill_(1)
    for choose in (state.set_active, state.reset):
        with pytest.raises(ShapeError, match=r"a bool mask of shape \[2\]"):
            choose(torch.tensor(rows))
    assert state.active is None
    assert bool((state[conv].past == 1).all())


def test_a_state_knows_its_model_with_weight_norm_folded_or_not(tmp_path: Path) -> None:
    style = ConvStyle(causal=True, pad_mode="zero", norm="weight_norm")
    conv = StreamingConv1d(2, 3, kernel_size=4, style=style).eval()
    init_state(conv).save(tmp_path / "session.safetensors")
    fold_weight_norm(conv)
    init_state(conv).load(tmp_path / "session.safetensors")
    with torch.no_grad():
        conv.conv.weight.mul_(2)
    with pytest.raises(CheckpointError, match="another model"):
        init_state(conv).load(tmp_path / "session.safetensors")


def test_what_only_training_needs_makes_no_other_model_at_any_depth(tmp_path: Path) -> None:
    config = QuantizerConfig(dimension=2, codebooks=2, codebook_size=3)
    conv = StreamingConv1d(2, 3, kernel_size=4, style=ZERO)
    module = nn.ModuleDict({"inner": nn.ModuleDict({"q": ResidualQuantizer(config), "c": conv})})
    init_state(module).save(tmp_path / "session.safetensors")
    codebook = module["inner"]["q"].layers[1]  # type: ignore[index]
    codebook.usage.add_(1)
    init_state(module).load(tmp_path / "session.safetensors")
    codebook.embed.add_(1)
    with pytest.raises(CheckpointError, match="another model"):
        init_state(module).load(tmp_path / "session.safetensors")
