"""The range coder of EnCodec: integers in, as few bits as their probabilities allow, and back.

Source: EnCodec (arXiv 2210.13438, section 3.3) and the coder of its published package, whose bits
these are. An interval [low, high] of integers is narrowed by every symbol to that symbol's share of
it; the leading bits on which low and high agree are final and leave the interval. Everything is
integer arithmetic, so a decoder that is given the same cumulative counts gets the same symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sonorant.errors import FormatError

RANGE_BITS = 24  # the published coder's; an interval is never narrower than 2^24
ONE = 1 << RANGE_BITS
# The published coder's limit on the bits that wait for low and high to agree. One symbol in 2^37
# comes near it by chance; a forged file could make the registers grow without end.
MOST_WAITING_BITS = 62
# As the first bit of a byte the published package takes its lowest; we count from the highest.
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

Counts = npt.NDArray[np.int64]


class CodingError(FormatError):
    """Coded bits that no symbol has, or that end too early: damaged, or of other probabilities."""


class RangeEncoder:
    """Turn symbols into bits. `flush` ends the stream; `take` hands out the bytes so far.

    low, high, waiting_bits: the interval, and how many bits long it is written.
    range_bits: the shares of the symbols are out of 2 to the power of this.
    """

    def __init__(self, range_bits: int = RANGE_BITS) -> None:
        self._range_bits = range_bits
        self.low = self.high = self.waiting_bits = 0
        self._bits = self._bit_count = 0
        self._bytes = bytearray()

    def push(self, symbols: Iterable[tuple[int, int]]) -> None:
        """Append symbols, each given as its share [start, end) of 2^range_bits.

        Raises: CodingError if the interval lies across a power of two for too long.
        """
        low, high, waiting = self.low, self.high, self.waiting_bits
        range_bits = self._range_bits
        for start, end in symbols:
            grow = range_bits + 1 - (high - low + 1).bit_length()
            if grow > 0:
                low <<= grow
                high = (high + 1 << grow) - 1
                waiting += grow
            width = high - low + 1
            high = low + ((end - 1) * width >> range_bits)
            low += -(-start * width >> range_bits)
            final = waiting - (low ^ high).bit_length()
            if final > 0:
                waiting -= final
                prefix = low >> waiting
                low -= prefix << waiting
                high -= prefix << waiting
                self._emit(prefix, final)
            if waiting > MOST_WAITING_BITS:
                raise CodingError("these symbols cannot be coded: no bit of them becomes final")
        self.low, self.high, self.waiting_bits = low, high, waiting

    def flush(self) -> None:
        """End the stream: write what tells the last symbols, and fill up the last byte."""
        self._emit(self.low, self.waiting_bits)
        self.low = self.high = self.waiting_bits = 0
        self._emit(0, -self._bit_count % 8)

    def take(self) -> bytes:
        """The whole bytes since the last call."""
        ready = bytes(self._bytes).translate(MIRRORED)
        self._bytes.clear()
        return ready

    def _emit(self, bits: int, count: int) -> None:
        pending, size = self._bits << count | bits, self._bit_count + count
        spare = size % 8
        self._bytes += (pending >> spare).to_bytes(size // 8, "big")
        self._bits, self._bit_count = pending & (1 << spare) - 1, spare


class RangeDecoder:
    """Turn bits into symbols again, asking for no byte more than the encoder wrote.

    next_byte: gives one byte, or nothing at the end of the data.
    """

    def __init__(self, next_byte: Callable[[], bytes], range_bits: int = RANGE_BITS) -> None:
        self._next_byte, self._range_bits = next_byte, range_bits
        self._low = self._high = self._current = self._waiting = 0
        self._bits = self._bit_count = 0

    def pull(self, cumulative: Counts) -> int:
        """The next symbol, given where the share of each symbol ends, int64 `[symbols]`.

        Raises: CodingError if the bits belong to no symbol, or there are no more.
        """
        low, high, range_bits = self._low, self._high, self._range_bits
        grow = range_bits + 1 - (high - low + 1).bit_length()
        if grow > 0:
            low <<= grow
            high = (high + 1 << grow) - 1
            self._current = self._current << grow | self._read(grow)
            self._waiting += grow
        width, offset = high - low + 1, self._current - low
        symbol = int(cumulative.searchsorted((offset << range_bits) // width, side="right"))
        if symbol == len(cumulative):
            raise CodingError("the coded bits belong to no token")
        start = int(cumulative[symbol - 1]) if symbol else 0
        high = low + ((int(cumulative[symbol]) - 1) * width >> range_bits)
        low += -(-start * width >> range_bits)
        if not low <= self._current <= high:
            raise CodingError("the coded bits belong to no token")
        self._narrow(low, high)
        return symbol

    def finish(self) -> None:
        """Check the end of the stream: the last bits are exactly what the encoder flushed.

        Raises: CodingError if not; other probabilities pass by a chance of about 2^-24.
        """
        if self._current != self._low or self._bits:
            raise CodingError("the coded bits do not end as they should")

    def _narrow(self, low: int, high: int) -> None:
        final = self._waiting - (low ^ high).bit_length()
        if final > 0:
            self._waiting -= final
            prefix = low >> self._waiting << self._waiting
            low, high, self._current = low - prefix, high - prefix, self._current - prefix
        if self._waiting > MOST_WAITING_BITS:
            raise CodingError("the coded bits never become final")
        self._low, self._high = low, high

    def _read(self, count: int) -> int:
        """The next bits of the stream, the first one highest."""
        while self._bit_count < count:
            byte = self._next_byte()
            if not byte:
                raise CodingError("the coded bits end too early")
            self._bits = self._bits << 8 | MIRRORED[byte[0]]
            self._bit_count += 8
        self._bit_count -= count
        value = self._bits >> self._bit_count
        self._bits &= (1 << self._bit_count) - 1
        return value


def published_counts(
    probabilities: Tensor,
    range_bits: int = RANGE_BITS,
    round_off: float = 1e-8,
    smallest: int = 2,
) -> Tensor:
    """Where the share of each symbol ends, as the encodec package cuts 2^24 into shares.

    Shape: probabilities float32 [..., symbols] -> int64 of the same shape.
    Rounded at 1e-8, as the package does, where the paper says 1e-6; every symbol gets at least
    `smallest`. The sum may miss 2^24 by rounding.
    """
    symbols = probabilities.shape[-1]
    rounded = (probabilities / round_off).floor() * round_off
    shared = (1 - smallest * symbols / 2**range_bits) * 2**range_bits
    widths = (rounded * shared).floor().long() + smallest
    return widths.cumsum(dim=-1)


def shares(cumulative: Counts, symbols: Counts) -> list[tuple[int, int]]:
    """The share [start, end) of each symbol.

    Shape: cumulative [tokens, codebook_size], symbols [tokens].

    >>> shares(np.array([[3, 5, 9], [3, 5, 9]]), np.array([0, 2]))
    [(0, 3), (5, 9)]
    """
    rows = np.arange(len(symbols))
    ends = cumulative[rows, symbols]
    starts = np.where(symbols > 0, cumulative[rows, symbols - 1], 0)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))
