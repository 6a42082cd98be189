"""Fetching published files: once, checked, into a folder of our own.

Environment: SONORANT_CACHE moves the folder from `~/.cache/sonorant`; SONORANT_OFFLINE=1 (or
HF_HUB_OFFLINE=1) allows only what is already there. Hugging Face repositories keep to that
library's own cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sonorant.errors import CheckpointError
from sonorant.hub.table import ModelEntry, RemoteFile, known

TRUE_WORDS = {"1", "true", "yes", "on"}


def cache_folder() -> Path:
    """Where fetched files are kept."""
    return Path(os.environ.get("SONORANT_CACHE") or Path.home() / ".cache" / "sonorant")


def is_offline() -> bool:
    """Whether the environment forbids the network."""
    names = ("SONORANT_OFFLINE", "HF_HUB_OFFLINE")
    return any(os.environ.get(name, "").lower() in TRUE_WORDS for name in names)


def cached_path(file: RemoteFile) -> Path:
    """Where a file is, or would be once fetched; its digest keeps different files apart."""
    return cache_folder() / file.sha256[:8] / file.name


def is_cached(entry: ModelEntry) -> bool:
    """Whether a model that is downloaded is already here."""
    if entry.repository is None:
        return bool(entry.files) and all(cached_path(file).is_file() for file in entry.files)
    from huggingface_hub import try_to_load_from_cache

    layout = known().layouts.get(entry.layout or "")
    names = entry.paths or ((layout and layout.file) or "config.json",)
    return all(isinstance(try_to_load_from_cache(entry.repository, name), str) for name in names)


def fetch_files(entry: ModelEntry) -> list[Path]:
    """The model's files, downloaded where they are not in the cache yet.

    Raises: CheckpointError if a download fails, is forbidden, or has another digest than stated.
    """
    return [_fetch(file) for file in entry.files]


def _fetch(file: RemoteFile) -> Path:
    target = cached_path(file)
    if target.is_file():
        _check_cached(target, file)
        return target
    if is_offline():
        raise CheckpointError(
            f"{file.name} is not in {target.parent} and the environment says offline; "
            f"unset SONORANT_OFFLINE and HF_HUB_OFFLINE, or put {file.url} there"
        )
    from torch.hub import download_url_to_file  # here, so that listing models needs no torch

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Writes to a temporary name and renames only when the digest is right.
        download_url_to_file(file.url, str(target), hash_prefix=file.sha256)
    except RuntimeError as error:
        raise CheckpointError(f"{file.url} is not the published file: {error}") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot fetch {file.url}: {error}; with a copy of the file, put it at {target}"
        ) from error
    return target


def _check_cached(path: Path, file: RemoteFile) -> None:
    """Somebody may have put the file there.

    Raises: CheckpointError if it is another.
    """
    digest = sha256_of(path)
    if not digest.startswith(file.sha256):
        raise CheckpointError(
            f"{path} is not the published file: its digest is {digest[:8]}; delete it, to fetch it "
            f"again, or put {file.url} there"
        )


def sha256_of(path: Path) -> str:
    """The digest of a file's content, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_repository(repository: str, names: Iterable[str]) -> list[Path]:
    """Files of a Hugging Face hub repository. Raises: CheckpointError if any cannot be had."""
    return [fetch_first(repository, [name]) for name in names]


def fetch_first(repository: str, names: Sequence[str]) -> Path:
    """The first of these files that the repository has. Raises: CheckpointError if it has none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError

    first, *others = names
    offline = is_offline()
    try:
        with _without_reports_of_retries():
            return Path(hf_hub_download(repository, first, local_files_only=offline))
    except (EntryNotFoundError, HFValidationError, OSError) as error:
        if others and isinstance(error, EntryNotFoundError):
            return fetch_first(repository, others)
        reason = str(error).strip().partition("\n")[0]
        if offline:
            reason = "the environment says offline, and the hub's cache does not hold it"
        raise CheckpointError(
            f"no model at {repository!r}: there is no such file or folder here, and as a "
            f"repository of the hub it cannot be fetched ({reason})"
        ) from error


@contextmanager
def _without_reports_of_retries() -> Iterator[None]:
    """The hub library logs every attempt that fails; what counts is the error after the last."""
    log = logging.getLogger("huggingface_hub.utils._http")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)
