"""An open file, of which no more is asked than there is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from sonorant.errors import FormatError


class BoundedFile:
    """A file read part by part. left: bytes that have not been read."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self.left = os.fstat(file.fileno()).st_size

    def take(self, count: int) -> bytes:
        """The next bytes, if there are as many: a lying length must not allocate anything.

        Raises: FormatError if the file is shorter.
        """
        data = self._file.read(count) if count <= self.left else b""
        if len(data) != count:
            raise FormatError(
                f"{self._path} is cut short or damaged: {count} bytes should follow, "
                f"{self.left} are left"
            )
        self.left -= count
        return data

    def byte(self) -> bytes:
        """The next byte, or nothing at the end."""
        data = self._file.read(1)
        self.left -= len(data)
        return data

    def check_end(self) -> None:
        """Raises: FormatError if anything is left."""
        if self.left:
            raise FormatError(f"{self._path} goes on for {self.left} bytes after its end")
