"""Tokens packed into bits and unpacked again, all at once in numpy."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int64]
First = Literal["big", "little"]
"""Whether the most or the least significant bit comes first, in values and in bytes."""


def pack_bits(values: Tokens, bits: int, first: First = "big") -> bytes:
    """Values `[n]` one after the other; zeros fill the last byte.

    >>> pack_bits(np.array([1, 2, 3]), bits=3).hex()
    '2980'
    >>> pack_bits(np.array([1, 2, 3]), bits=3, first="little").hex()
    'd100'
    """
    shifts = _shifts(bits, first)
    unpacked = (values[:, None] >> shifts & 1).astype(np.uint8)
    return np.packbits(unpacked, bitorder=first).tobytes()


def unpack_bits(data: bytes, count: int, bits: int, first: First = "big") -> Tokens:
    """The inverse of `pack_bits`: `count` values.

    >>> unpack_bits(bytes.fromhex("2980"), count=3, bits=3)
    array([1, 2, 3])
    """
    packed = np.frombuffer(data, np.uint8)
    unpacked = np.unpackbits(packed, count=count * bits, bitorder=first)
    values = np.zeros(count, np.int64)
    for plane, shift in zip(unpacked.reshape(count, bits).T, _shifts(bits, first), strict=True):
        values |= plane.astype(np.int64) << shift
    return values


def _shifts(bits: int, first: First) -> Tokens:
    shifts = np.arange(bits)
    return shifts if first == "little" else shifts[::-1]
