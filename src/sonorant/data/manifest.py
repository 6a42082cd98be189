"""Manifests: JSON Lines files that say which audio there is, whose it is, and how it may be used.

One line is one `Item`. Splits go by group (a song, a speaker or language, a class of sounds), never
by clip: a group that is trained on is not tested on. Reading a manifest checks that.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

import msgspec

from sonorant.errors import AudioError, ConfigError

Domain = Literal["speech", "music", "sound"]
Split = Literal["train", "valid", "test"]
DOMAINS: tuple[Domain, ...] = get_args(Domain)
SPLITS: tuple[Split, ...] = get_args(Split)


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One audio file.

    path: the file; in a manifest it may be relative to the manifest's folder.
    sample_rate: Hz.
    source: the package or collection it comes from, and `original` the file's name there.
    group: speaker, language, song or class: what must not be shared between splits.
    attribution: who made it, for licences that ask for credit.
    """

    path: str
    duration_seconds: float
    sample_rate: int
    channels: int
    domain: Domain
    split: Split
    source: str
    licence: str
    group: str
    attribution: str = ""
    original: str = ""


def read_manifest(path: str | Path, split: Split | None = None) -> list[Item]:
    """Items of a JSON Lines manifest, with absolute paths; only those of `split` when it is given.

    Raises: ConfigError if the manifest is missing, a line is not a valid item, a group is in two
    splits, or no item remains; AudioError if an audio file is missing.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the manifest {path}: {error.strerror}") from error
    folder = path.absolute().parent
    decoder = msgspec.json.Decoder(Item)
    items: list[Item] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}, line {number} is not a manifest item: {error}") from error
        _check_numbers(item, path, number)
        items.append(msgspec.structs.replace(item, path=str(folder / item.path)))
    check_groups(items)
    if split is not None:
        if split not in SPLITS:
            raise ConfigError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        items = [item for item in items if item.split == split]
    if not items:
        raise ConfigError(f"{path} has no items" + (f" of the split {split!r}" if split else ""))
    for item in items:
        if not os.path.isfile(item.path):
            raise AudioError(f"{item.path} is named in {path} but does not exist: prepare it again")
    return items


def write_manifest(path: str | Path, items: Iterable[Item]) -> None:
    """Write items as JSON Lines, whole or not at all; paths become relative to the manifest.

    Raises: ConfigError if a group is in two splits.
    """
    path = Path(path)
    items = list(items)
    check_groups(items)
    folder = path.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    encoder = msgspec.json.Encoder()
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        for item in items:
            relative = os.path.relpath(folder / item.path, folder)
            file.write(encoder.encode(msgspec.structs.replace(item, path=relative)) + b"\n")
    unfinished.replace(path)


def check_groups(items: Sequence[Item]) -> None:
    """Refuse a group that is in two splits (ConfigError): its test would not be a test."""
    split_of: dict[str, Split] = {}
    for item in items:
        split = split_of.setdefault(item.group, item.split)
        if split != item.split:
            raise ConfigError(
                f"the group {item.group!r} is in the splits {split!r} and {item.split!r} "
                f"({item.path}): put all of it into one"
            )


def _check_numbers(item: Item, path: Path, number: int) -> None:
    for name in ("duration_seconds", "sample_rate", "channels"):
        value = getattr(item, name)
        if not 0 < value < float("inf"):
            raise ConfigError(f"{path}, line {number}: {name} is {value}, it must be above zero")
