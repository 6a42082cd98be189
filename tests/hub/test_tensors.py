"""Files of weights from strangers: nothing runs, and every fault is one clear line."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sonorant.errors import CheckpointError
from sonorant.hub.tensors import read_pickle, read_tensors

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.arange(4)}


class RunsCommand:
    """Pickles into a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


def error_of(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def check_read(path: Path) -> None:
    found = read_tensors(path)
    assert set(found) == set(TENSORS)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_reads_safetensors_and_both_kinds_of_torch_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "w.safetensors")
    torch.save(TENSORS, tmp_path / "w.th")
    torch.save(TENSORS, tmp_path / "old.th", _use_new_zipfile_serialization=False)
    for name in ("w.safetensors", "w.th", "old.th"):
        check_read(tmp_path / name)


@pytest.mark.parametrize("plain", [True, False])
def test_pickle_that_asks_to_run_code_runs_nothing(tmp_path: Path, plain: bool) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.th"
    content = {"c": RunsCommand(f"touch {trace}")}
    if plain:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    assert "asks to run posix.system" in error_of(path)
    assert not trace.exists()


def test_missing_empty_and_foreign_files_are_refused(tmp_path: Path) -> None:
    assert "there is no file" in error_of(tmp_path / "none.th")
    assert "there is no file" in error_of(tmp_path)
    for suffix in ("th", "safetensors"):
        empty = tmp_path / f"empty.{suffix}"
        empty.touch()
        assert "is empty" in error_of(empty)
        text = tmp_path / f"text.{suffix}"
        text.write_text("once upon a time\n" * 20)
        assert "not a" in error_of(text)


@pytest.mark.parametrize("suffix", ["th", "safetensors"])
def test_truncated_files_are_refused_at_any_length(tmp_path: Path, suffix: str) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    if suffix == "th":
        torch.save(TENSORS, whole)
    else:
        save_file(TENSORS, whole)
    content = whole.read_bytes()
    for length in range(1, len(content), 101):
        cut.write_bytes(content[:length])
        error_of(cut)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_changed_bytes_are_read_or_refused_but_never_crash(
    tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / data.draw(st.sampled_from(["new.th", "old.th", "w.safetensors"]))
    if path.suffix == ".safetensors":
        save_file(TENSORS, path)
    else:
        torch.save(TENSORS, path, _use_new_zipfile_serialization=path.stem == "new")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read_tensors(path)
    except CheckpointError:
        error_of(path)


def test_safetensors_header_of_absurd_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    assert "not a complete safetensors file" in error_of(path)


def test_archive_that_grows_when_unpacked_is_refused(tmp_path: Path) -> None:
    plain, bomb = tmp_path / "plain.th", tmp_path / "bomb.th"
    torch.save({"zeros": torch.zeros(200_000)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(bomb, "w") as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member), zipfile.ZIP_DEFLATED)
    assert "would unpack to 80" in error_of(bomb)


@pytest.mark.parametrize(
    "content",
    [
        {},
        [torch.zeros(1)],
        {"nested": {"a": torch.zeros(1)}},
        {"a": 3},
        {5: torch.zeros(1)},
        {"a": torch.zeros(2, 2).to_sparse()},
    ],
    ids=["empty", "list", "nested", "number", "number key", "sparse"],
)
def test_anything_but_dense_tensors_by_name_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.th")
    message = error_of(tmp_path / "w.th")
    assert "tensor" in message


class Foreign:
    """A class that the file names and this package does not have."""

    def __init__(self, value: int) -> None:
        self.value = value


class Inert:
    value: int


def test_objects_become_stand_ins_where_those_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.th"
    torch.save({"best_state": {"w": torch.ones(2)}, "config": Foreign(3)}, path)
    content = read_pickle(path, {f"{__name__}.Foreign": Inert})
    assert torch.equal(content["best_state"]["w"], torch.ones(2))
    assert type(content["config"]) is Inert
    assert content["config"].value == 3
    with pytest.raises(CheckpointError, match="Foreign"):
        read_pickle(path)
