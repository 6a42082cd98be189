"""Checkpoints of a training run: folders that appear whole or not at all.

    checkpoints/step-00001000/state.pt        weights, averages, optimisers, position
    checkpoints/step-00001000/process-0.pt    random state and the like, one file per process

A checkpoint is written into `step-….part` and renamed when complete, so a crash leaves at most a
`.part` folder, which nothing reads and the next save removes.
"""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sonorant.errors import CheckpointError

_NAME = re.compile(r"step-(\d{8})")
_PART = ".part"


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in `folder`, ascending."""
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_dir())
    return sorted(int(match[1]) for match in found if match)


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def open_part(folder: Path, step: int) -> Path:
    """An empty folder to write the checkpoint of `step` into; leftovers of crashes are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"*{_PART}"):
        shutil.rmtree(leftover)
    final = checkpoint_path(folder, step)
    part = final.with_name(final.name + _PART)
    part.mkdir()
    return part


def complete_part(part: Path, keep: int) -> Path:
    """Give a written checkpoint its name and delete all but the newest `keep`."""
    final = part.with_name(part.name.removesuffix(_PART))
    if final.exists():
        shutil.rmtree(final)
    part.rename(final)
    _sync(final.parent)
    for step in checkpoint_steps(final.parent)[:-keep]:
        shutil.rmtree(checkpoint_path(final.parent, step))
    return final


def write_file(state: Any, path: Path) -> None:
    """Write one file of a checkpoint through to the disk."""
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def read_file(path: Path) -> Any:
    """Read one file of a checkpoint. Runs no code from it. Raises: CheckpointError."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is damaged or missing ({error}); delete its folder to resume from the "
            "checkpoint before it"
        ) from error


def random_state() -> dict[str, Any]:
    """Random state of this process: Python, NumPy, torch, and this process's GPU."""
    numpy_state: Any = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {
            **numpy_state,
            "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()},
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Continue the random sequences where `random_state` found them."""
    random.setstate(state["python"])
    inner = state["numpy"]["state"]
    key = np.asarray(inner["key"], dtype=np.uint32)
    np.random.set_state({**state["numpy"], "state": {**inner, "key": key}})
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
