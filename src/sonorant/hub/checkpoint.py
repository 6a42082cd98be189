"""What a name or path leads to: a system, its config and its tensors.

Our own layout is a folder with `config.json`, {"format_version": 1, "system": "encodec",
"name": ..., "config": {...}}, and `model.safetensors`; or one such file with that config inside.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sonorant.errors import CheckpointError
from sonorant.hub.fetch import fetch_files, fetch_first, fetch_repository, sha256_of
from sonorant.hub.table import LayoutEntry, ModelEntry, known, resolve
from sonorant.hub.tensors import read_metadata, read_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_FILES = (WEIGHTS_FILE, "pytorch_model.bin")
"""What transformers calls the weights, the better format first."""
WEIGHTS_SUFFIXES = (".safetensors", ".bin")
FORMAT_VERSION = 1
CONFIG_KEY = "sonorant_config"
"""In a safetensors file's metadata: what `config.json` holds, for files without one beside them."""
PACKING_KEY = "sonorant_packing"
"""In a safetensors file's metadata: how its weights are packed."""
HUB_NAME = r"(?!sonorant/)[\w-][\w.-]*/[\w.-]+"
"""owner/name; our own models are all in the table."""


class SavedConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `config.json`; `config` stays plain until the system's struct is known."""

    format_version: int
    system: str
    config: dict[str, Any]
    name: str | None = None


class Checkpoint(msgspec.Struct, frozen=True):
    """A model as stored. `config` is plain data or already the system's struct."""

    system: str
    name: str | None
    config: Any
    tensors: dict[str, Tensor]
    source: str


def open_checkpoint(name_or_path: str | Path, like: str | None = None) -> Checkpoint:
    """Find and read a model: a known name, a folder, a file, or a hub repository `owner/name`.

    Published layouts are recognised by what the files say of themselves, by a file's name, or by
    its digest; `like`, a known model's name, says it for any other file.
    Raises: CheckpointError saying what is wrong and what to do.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if like is not None:
        return _read_like(known().model(like), path)
    if name in known().models and not isinstance(name_or_path, Path):
        return _open_entry(known().models[name])
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        return _open_file(path)
    if re.fullmatch(HUB_NAME, name):
        return _open_repository(name, name)
    return _open_entry(known().model(name))


def _open_entry(entry: ModelEntry) -> Checkpoint:
    repository = str(entry.repository)
    if entry.files:
        return _read_entry(entry, fetch_files(entry))
    folder = entry.package_folder
    if folder is not None:
        return _read_described(folder / CONFIG_FILE, folder / WEIGHTS_FILE, entry.name)
    if entry.translator is not None:
        paths = entry.paths or (WEIGHTS_FILE, CONFIG_FILE)
        return _read_entry(entry, fetch_repository(repository, paths))
    layout = known().layouts.get(entry.layout or "")
    if layout is not None and layout.file is not None:
        return _read_layout(layout, fetch_repository(repository, [layout.file]), entry.name)
    return _open_repository(repository, entry.name)


def _open_repository(repository: str, name: str) -> Checkpoint:
    config = fetch_first(repository, [CONFIG_FILE])
    return _read_described(config, fetch_first(repository, WEIGHTS_FILES), name)


def _read_folder(folder: Path) -> Checkpoint:
    if not (folder / CONFIG_FILE).is_file():
        for layout in known().layouts.values():
            if layout.file is not None and (folder / layout.file).is_file():
                return _read_layout(layout, [folder / layout.file])
    there = [folder / name for name in WEIGHTS_FILES if (folder / name).is_file()]
    return _read_described(folder / CONFIG_FILE, there[0] if there else folder / WEIGHTS_FILE)


def _open_file(path: Path) -> Checkpoint:
    if path.name == CONFIG_FILE:
        return _read_folder(path.parent)
    for layout in known().layouts.values():
        if path.name == layout.file:
            return _read_layout(layout, [path])
    entries = known().models.values()
    for entry in entries:
        if [path.name] == [*entry.paths, *(remote.name for remote in entry.files)]:
            _check_digest(path, entry)
            return _read_entry(entry, [path])
    if path.suffix in WEIGHTS_SUFFIXES:
        said_itself = _read_ending(path)
        if said_itself is not None:
            return said_itself
        if path.with_name(CONFIG_FILE).is_file():
            return _read_described(path.with_name(CONFIG_FILE), path)
    if path.suffix in WEIGHTS_SUFFIXES and CONFIG_KEY in (said := read_metadata(path)):
        return _read_weights(_saved_config(said[CONFIG_KEY].encode(), path), path, path)
    digest = sha256_of(path)
    for entry in entries:
        if len(entry.files) == 1 and digest.startswith(entry.files[0].sha256):
            return _read_entry(entry, [path])
    said_itself = None if path.suffix in WEIGHTS_SUFFIXES else _read_ending(path)
    if said_itself is not None:
        return said_itself
    raise CheckpointError(
        f"{path} does not say which model it is of; put a {CONFIG_FILE} beside it, or name the "
        "published model whose layout and size it has, once and for all in Python: "
        "sonorant.load(path, like='encodec_24khz').save_pretrained(folder)"
    )


def _check_digest(path: Path, entry: ModelEntry) -> None:
    """Raises: CheckpointError for a file that has a published one's name and other content."""
    if entry.files and not (digest := sha256_of(path)).startswith(entry.files[0].sha256):
        raise CheckpointError(
            f"{path} has the name of the published {entry.name} but the digest {digest[:8]}, not "
            f"{entry.files[0].sha256[:8]}: fetch it again, or, if it is another model in that "
            f"layout, say so in Python: sonorant.load(path, like={entry.name!r})"
        )


def _read_ending(path: Path) -> Checkpoint | None:
    """Read a file of a layout that its name's ending tells, if it says itself what it is."""
    for layout in known().layouts.values():
        if layout.suffix is not None and path.name.lower().endswith(layout.suffix):
            found = resolve(str(layout.reader))([path])
            if found is not None:
                return Checkpoint(found[0], None, found[1], found[2], str(path))
    return None


def _read_like(entry: ModelEntry, path: Path) -> Checkpoint:
    """Read a file, or a folder of a layout with a config, as what a known model's files are."""
    if entry.layout is None:
        return _read_entry(entry, [path])
    layout = known().layouts[entry.layout]
    if layout.file is not None:
        return _read_layout(layout, [path / layout.file if path.is_dir() else path])
    if path.is_dir():
        return _read_folder(path)
    return _read_layout(layout, [path, path.with_name(CONFIG_FILE)])


def _read_entry(entry: ModelEntry, files: list[Path]) -> Checkpoint:
    """Read files in the published layout of a known model."""
    if entry.translator is None:
        raise CheckpointError(f"{entry.name} has no published layout of its own; load its folder")
    config, tensors = resolve(entry.translator)(files, entry)
    return Checkpoint(entry.system, entry.name, config, tensors, str(files[0]))


def _read_layout(layout: LayoutEntry, files: list[Path], name: str | None = None) -> Checkpoint:
    """Read files that say themselves what they hold."""
    if layout.reader is None:
        found = _read_entry(known().model(str(layout.like)), files)
        return msgspec.structs.replace(found, name=name)
    system, config, tensors = resolve(layout.reader)(files)
    return Checkpoint(system, name, config, tensors, str(files[0]))


def _read_described(config_path: Path, weights_path: Path, name: str | None = None) -> Checkpoint:
    """Read weights that a `config.json` describes, ours or that of a published layout."""
    model_type = _model_type(config_path)
    if model_type is None:
        return _read_saved(config_path, weights_path, name)
    for layout in known().layouts.values():
        if layout.model_type == model_type:
            return _read_layout(layout, [weights_path, config_path], name)
    types = ", ".join(sorted(filter(None, (each.model_type for each in known().layouts.values()))))
    raise CheckpointError(
        f"{config_path} is not a Sonorant model's config, and of transformers' model types this "
        f"version reads {types}, not {model_type!r:.80}"
    )


def _model_type(config_path: Path) -> str | None:
    """What transformers says of a model; None for our own configs and for what is none."""
    try:
        config = msgspec.json.decode(config_path.read_bytes())
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None  # reading it as ours says what is wrong
    found = config.get("model_type") if isinstance(config, dict) else None
    return found if isinstance(found, str) else None


def _read_saved(config_path: Path, weights_path: Path, name: str | None = None) -> Checkpoint:
    try:
        text = config_path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{config_path.parent} is not a saved model: cannot read {CONFIG_FILE} "
            f"({error.strerror})"
        ) from error
    return _read_weights(_saved_config(text, config_path), weights_path, config_path, name)


def _saved_config(text: bytes, source: Path) -> SavedConfig:
    try:
        saved = msgspec.json.decode(text, type=SavedConfig)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{source} is not a Sonorant model's config: {error}") from error
    if saved.format_version != FORMAT_VERSION:
        raise CheckpointError(
            f"{source} has format version {saved.format_version}; this Sonorant reads "
            f"{FORMAT_VERSION}, install the version that wrote it or a newer one"
        )
    return saved


def _read_weights(
    saved: SavedConfig, weights_path: Path, source: Path, name: str | None = None
) -> Checkpoint:
    """Read weights in our own layout, packed or plain."""
    is_packed = PACKING_KEY in read_metadata(weights_path)
    read = resolve(str(known().unpack)) if is_packed else read_tensors
    tensors = read(weights_path)
    return Checkpoint(saved.system, name or saved.name, saved.config, tensors, str(source))


def write_checkpoint(
    folder: str | Path,
    saved: SavedConfig,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model in our own layout. What is there is replaced only once all is written.

    metadata: what `model.safetensors` says beside its tensors.
    Raises: CheckpointError if the folder cannot be written.
    """
    write_folder(folder, tensors, {CONFIG_FILE: saved}, metadata)


def write_folder(
    folder: str | Path,
    tensors: Mapping[str, Tensor],
    documents: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    weights: str = WEIGHTS_FILE,
) -> None:
    """Write a safetensors file and, by their names, JSON files beside it.

    What is there is replaced only once all is written.
    metadata: what the safetensors file says beside its tensors. weights: its name.
    Raises: CheckpointError if the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Where the folder is there, inside it: it may be on another disk than what it lies in.
        near = folder if folder.exists() else folder.parent
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=near) as temporary:
            part = Path(temporary) / "model"
            part.mkdir()
            for name, content in documents.items():
                text = msgspec.json.format(msgspec.json.encode(content), indent=2)
                (part / name).write_bytes(text + b"\n")
            said = {"format": "pt", **(metadata or {})}
            save_file(dict(tensors), part / weights, metadata=said)
            # safetensors lets nobody else read what it writes; the user's umask shall decide.
            shutil.copymode(part / next(iter(documents)), part / weights)
            if folder.exists():
                for name in (weights, *documents):
                    (part / name).replace(folder / name)
            else:
                part.rename(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot save a model to {folder}: {error}") from error
