"""What long work has found so far, one JSON line an item, so that it can go on where it stopped."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import msgspec

from sonorant.errors import ConfigError


class Keyed(Protocol):
    """An item that says what it was found from."""

    @property
    def key(self) -> str: ...


Found = TypeVar("Found", bound=Keyed)


class Journal(Generic[Found]):
    """A file of items, each there as soon as it is added; a line that was cut short is forgotten.

    path: its folder is made. kind: the type of the items, a msgspec Struct.
    Raises: ConfigError if a line is no such item; OSError if the file cannot be written.
    """

    def __init__(self, path: Path, kind: type[Found]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()  # finds now, not after the first item, that it cannot be written
        data = path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(path, whole)
        self._found: dict[str, Found] = {}
        decoder = msgspec.json.Decoder(kind)
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                item = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise ConfigError(
                    f"{path}, line {number} is none of this work's: {error}; delete the file to "
                    "begin again, or choose another output"
                ) from error
            self._found[item.key] = item

    def get(self, key: str) -> Found | None:
        """What was found from this, if it was."""
        return self._found.get(key)

    def add(self, item: Found) -> None:
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(item) + b"\n")
        self._found[item.key] = item

    def keep(self, items: Iterable[Found]) -> None:
        """Leave these items alone in the file, in their order, whole or not at all."""
        part = self.path.with_name(self.path.name + ".part")
        try:
            part.write_bytes(b"".join(msgspec.json.encode(item) + b"\n" for item in items))
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)
