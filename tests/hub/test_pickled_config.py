"""Configs of a foreign library inside pickles: read as plain data, without running anything."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from sonorant.errors import CheckpointError
from sonorant.hub import pickled_config
from sonorant.hub.pickled_config import Node, read_pickle_with_configs

# Written by OmegaConf 2.4 and torch.save; see the README beside it.
WRITTEN_BY_OMEGACONF = Path(__file__).parents[1] / "fixtures" / "pickles" / "omegaconf.pt"


def node(**fields: Any) -> Node:
    made = Node()
    made.fields = fields
    return made


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Saves an object whose nodes are read as a config's."""
    monkeypatch.setattr(Node, "__getstate__", lambda self: self.fields, raising=False)
    name = f"{Node.__module__}.{Node.__qualname__}"
    monkeypatch.setitem(pickled_config._STAND_INS, name, Node)

    def save(content: Any) -> Path:
        torch.save(content, tmp_path / "config.pt")
        return tmp_path / "config.pt"

    return save


def test_a_config_written_by_omegaconf_comes_out_as_plain_data() -> None:
    content = read_pickle_with_configs(WRITTEN_BY_OMEGACONF)
    assert content[0]["cfg"] == {
        "channels": 1,
        "diffusion_unet": {"hidden": 4, "growth": 2.0, "bilstm": True, "codec_dim": None},
        "name": "processor",
        "list": [1, 2.5, "a"],
        "reference": "${channels}",
    }
    assert torch.equal(content[0]["model_state"]["w"], torch.arange(3.0))


def test_values_that_refer_to_themselves_are_refused(saved: Any) -> None:
    loop = node()
    loop.fields["_content"] = {"again": loop}
    with pytest.raises(CheckpointError, match="refers to itself"):
        read_pickle_with_configs(saved({"cfg": loop}))


def test_values_that_multiply_at_every_level_are_refused(saved: Any) -> None:
    value: Any = node(_val=1)
    for _ in range(40):
        value = node(_content={"left": value, "right": value})
    with pytest.raises(CheckpointError, match="too large"):
        read_pickle_with_configs(saved({"cfg": value}))


@pytest.mark.parametrize("fields", [{}, {"_metadata": 1}])
def test_entries_without_a_value_are_refused(saved: Any, fields: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="without a value"):
        read_pickle_with_configs(saved({"cfg": node(**fields)}))


class RunsCommand:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch ran",)


def test_nothing_in_a_config_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({0: {"cfg": RunsCommand()}}, "config.pt")
    with pytest.raises(CheckpointError, match="asks to run"):
        read_pickle_with_configs("config.pt")
    assert not Path("ran").exists()
