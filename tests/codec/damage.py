"""Damage to files that a reader must refuse, wherever it is."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sonorant.errors import FormatError


def check_cut_files_are_refused(path: Path, read: Callable[[Path], object]) -> None:
    """Cut the file short at every length."""
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            read(path)


def check_flipped_bits_are_refused(path: Path, read: Callable[[Path], object]) -> None:
    """Flip every bit of the file, one at a time."""
    whole = path.read_bytes()
    for position in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(FormatError):
            read(path)
