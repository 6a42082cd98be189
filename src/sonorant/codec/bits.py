"""Tokens packed into bits and unpacked again, all at once in numpy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]


def pack_bits(values: Tokens, bits: int) -> bytes:
    """Values `[n]` one after the other, most significant bit first; zeros fill the last byte.

    >>> pack_bits(np.array([1, 2, 3]), bits=3).hex()
    '2980'
    """
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((values[:, None] >> shifts & 1).astype(np.uint8)).tobytes()


def unpack_bits(data: bytes, count: int, bits: int) -> Tokens:
    """The inverse of `pack_bits`: `count` values.

    >>> unpack_bits(bytes.fromhex("2980"), count=3, bits=3)
    array([1, 2, 3])
    """
    unpacked = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits)
    values = np.zeros(count, np.int64)
    for plane in unpacked.reshape(count, bits).T:
        values = values << 1 | plane
    return values
