"""Folders that one run at a time works in."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sonorant.errors import SonorantError

LOCK = "lock"
WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What file systems say that have no locks, such as some network folders."""


class FolderLock:
    """A lock of a folder, which ends with the process at the latest."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._lock = FileLock(self.path, fallback_to_soft=False)
        self.held = False

    def claim(self) -> bool:
        """Take the folder, which must be there, for this run; False if another run has it.

        Where the file system has no locks, nobody is kept out, and the folder is taken.
        Raises: OSError if the folder cannot be written.
        """
        if self.held:
            return True
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise
        self.held = True
        return True

    def release(self) -> None:
        self._lock.release(force=True)
        self.held = False

    def dissolve(self) -> None:
        """Release the folder, and remove it if nothing else is in it."""
        self.release()
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # it is not empty: interrupted, or another run has begun
            self.path.parent.rmdir()


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """A context in which no other run has this folder; it is made, and removed if it ends empty.

    Raises: SonorantError if another has it; OSError if it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(folder)
    if not lock.claim():
        raise SonorantError(
            f"another run is at work in {folder}; wait until it has ended, or choose another output"
        )
    try:
        yield
    finally:
        lock.dissolve()
