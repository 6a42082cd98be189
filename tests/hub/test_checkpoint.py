"""From a name or path to a system, a config and tensors."""

import os
from pathlib import Path

import pytest
import torch

from sonorant.errors import CheckpointError
from sonorant.hub.checkpoint import SavedConfig, open_checkpoint, write_checkpoint

TENSORS = {"weight": torch.arange(3.0)}
SAVED = SavedConfig(format_version=1, system="toy", config={"size": 3}, name="some/toy")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "toy", SAVED, TENSORS)
    return tmp_path / "toy"


@pytest.mark.parametrize("inside", ["", "config.json", "model.safetensors"])
def test_folder_and_either_of_its_files_lead_to_the_model(folder: Path, inside: str) -> None:
    for path in (folder / inside, str(folder / inside)):
        found = open_checkpoint(path)
        assert (found.system, found.name, found.config) == ("toy", "some/toy", {"size": 3})
        assert torch.equal(found.tensors["weight"], TENSORS["weight"])


def test_both_files_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_checkpoint(tmp_path / "toy", SAVED, TENSORS)
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "toy").iterdir()]
    assert modes == [0o640, 0o640]


def test_weights_of_any_file_name_may_stand_beside_the_config(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "best.safetensors")
    assert set(open_checkpoint(folder / "best.safetensors").tensors) == {"weight"}


def test_known_name_goes_before_a_folder_of_that_name_unless_it_is_a_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("SONORANT_OFFLINE", "1")
    monkeypatch.setenv("SONORANT_CACHE", str(folder.parent / "cache"))
    folder.rename("encodec_24khz")
    with pytest.raises(CheckpointError, match="environment says offline"):
        open_checkpoint("encodec_24khz")
    assert open_checkpoint("./encodec_24khz").system == "toy"
    assert open_checkpoint(Path("encodec_24khz")).system == "toy"


def test_file_that_does_not_tell_what_it_is_asks_for_it(folder: Path) -> None:
    torch.save(TENSORS, folder / "mystery.th")
    with pytest.raises(CheckpointError, match="does not say which model it is of"):
        open_checkpoint(folder / "mystery.th")


def test_likeness_must_be_a_known_model_with_a_published_layout(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a known model"):
        open_checkpoint(folder / "model.safetensors", like="abacus")
    with pytest.raises(CheckpointError, match="has no published layout of its own"):
        open_checkpoint(folder / "model.safetensors", like="sonorant/codec-24khz-small")


@pytest.mark.parametrize("text", ["once upon a time", "[" * 100_000, '{"config": ' + "[" * 100_000])
def test_text_in_place_of_the_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json is not a Sonorant model's config"):
        open_checkpoint(folder)


def test_config_of_another_package_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "other", "sampling_rate": 24000}')
    with pytest.raises(CheckpointError, match=r"config\.json is not a Sonorant model's config"):
        open_checkpoint(folder)


def test_repository_in_the_form_of_the_hub_is_looked_for_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SONORANT_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"no model at 'someone/their-codec': .*offline"):
        open_checkpoint("someone/their-codec")


def test_misspelt_name_of_our_own_suggests_the_right_one() -> None:
    with pytest.raises(CheckpointError, match="did you mean sonorant/codec-24khz-small"):
        open_checkpoint("sonorant/codec-24khz-smal")
