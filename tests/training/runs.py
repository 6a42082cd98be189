"""Looking into the folder of a training run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sonorant.training.checkpoints import checkpoint_path, checkpoint_steps


def final_state(folder: Path) -> Any:
    """Everything in the newest checkpoint of a run."""
    steps = checkpoint_steps(folder / "checkpoints")
    files = sorted(checkpoint_path(folder / "checkpoints", steps[-1]).iterdir())
    return {file.stem: torch.load(file) for file in files}


def assert_equal_states(one: Any, other: Any, path: str = "state") -> None:
    assert type(one) is type(other), path
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_equal_states(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal_states(a, b, f"{path}[{index}]")
    else:
        assert one == other, path


def log_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
