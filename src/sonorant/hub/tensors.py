"""Reading tensors from files that nobody vouches for: safetensors, and pickles without code."""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import safe_globals

from sonorant.errors import CheckpointError


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, from a `.safetensors` file or a torch pickle.

    A pickle is read by torch's restricted reader, which runs nothing that the file asks for.
    Raises: CheckpointError for a missing, damaged or truncated file, one that holds anything but
    dense tensors by name, or one that asks to run code.
    """
    path = _existing(path)
    return _read_safetensors(path) if path.suffix == ".safetensors" else _pickled_tensors(path)


def read_metadata(path: str | Path) -> dict[str, str]:
    """What a `.safetensors` file says beside its tensors; nothing for other files.

    Raises: CheckpointError for a missing, damaged or truncated file.
    """
    path = _existing(path)
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error


def read_pickle(path: str | Path, stand_ins: Mapping[str, type] | None = None) -> Any:
    """The content of a torch pickle: tensors, numbers, text, and containers of these.

    stand_ins: classes of ours by the full name of the ones that the file asks for; what it stores
        about their objects becomes the attributes of ours. Their methods must trust nothing.
    Raises: CheckpointError for a missing, damaged or truncated file, or one that asks for anything
    else.
    """
    path = _existing(path)
    if zipfile.is_zipfile(path):
        _refuse_compressed(path)
    allowed: list[Any] = [(kind, name) for name, kind in (stand_ins or {}).items()]
    try:
        with warnings.catch_warnings(action="ignore"), safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes of chance can fail anywhere in the reader
        raise CheckpointError(_reason(path, str(error))) from error


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no file {path}")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty; fetch it again")
    return path


def _pickled_tensors(path: Path) -> dict[str, Tensor]:
    content = read_pickle(path)
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path} does not hold tensors by name")
    for name, value in content.items():
        dense = isinstance(value, Tensor) and value.layout == torch.strided
        if not isinstance(name, str) or not dense:
            raise CheckpointError(f"{path} holds something that is no dense tensor: {name!r:.80}")
    return dict(content)


def _refuse_compressed(path: Path) -> None:
    """torch stores its archives uncompressed; one that would grow when read is an attack."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is a damaged archive: {error}") from error
    if unpacked > path.stat().st_size:
        raise CheckpointError(
            f"{path} would unpack to {unpacked} bytes, more than it has; torch files never do, "
            "so it was not opened"
        )


def _reason(path: Path, message: str) -> str:
    wanted = re.search(r"GLOBAL (\S+)", message)
    if wanted:
        return (
            f"{path} asks to run {wanted[1]}, which weights have no need of, so it was not opened; "
            "where you trust it, convert it to safetensors"
        )
    return f"{path} is not a readable torch file: damaged, truncated or of another kind"
