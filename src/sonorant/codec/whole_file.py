"""A file that gets its name only when it is complete; nothing is left of one that is not."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from pathlib import Path
from types import TracebackType
from typing import Self

from sonorant.errors import FormatError


def write_all(file: RawIOBase, data: bytes) -> None:
    """Write to an unbuffered file, which may take less at once."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) or 0 :]


class WholeFile:
    """Write `path` piece by piece, in a `with` statement that ends with `complete`.

    Raises: FormatError if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir() or not path.parent.is_dir():
            raise FormatError(f"cannot write {path}: it is a folder, or its folder does not exist")
        self._part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
        with self._explained():
            # Unbuffered, so that an error shows where it happens and not when it is cleaned up.
            self._file = self._part.open("wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    def write(self, data: bytes) -> None:
        with self._explained():
            write_all(self._file, data)

    def complete(self) -> None:
        """Give the file its name."""
        self._file.close()
        with self._explained():
            os.replace(self._part, self.path)

    def discard(self) -> None:
        """Remove what was written, unless the file is complete."""
        self._file.close()
        self._part.unlink(missing_ok=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FormatError(f"cannot write {self.path}: {error.strerror}") from error
