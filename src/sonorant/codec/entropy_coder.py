"""Tokens of one stream in as few bytes as an entropy model finds them likely, and back.

Source: EnCodec (arXiv 2210.13438, section 3.3). The counts are those of `entropy_exact.py`, so the
writer takes many frames at once, the reader one after the other, and both get the same.
"""

from __future__ import annotations

import io

import numpy as np

from sonorant.codec.bits import Tokens
from sonorant.codec.entropy_coding import EntropyCore
from sonorant.codec.entropy_exact import ExactEntropyModel
from sonorant.codec.range_coder import CodingError, RangeDecoder, RangeEncoder, shares

FRAMES_AT_ONCE = 32  # more is hardly faster, and takes memory


class EntropyCoder:
    """Codes blocks of one stream, in order; what a block holds helps to predict the next.

    One coder serves one direction. Raises: ConfigError as `ExactEntropyModel`.
    """

    def __init__(self, model: EntropyCore) -> None:
        self._model = ExactEntropyModel(model)
        self.restart()

    def restart(self) -> None:
        """Begin a new stream, that owes nothing to what came before."""
        self._state = self._model.start()
        self._last: Tokens | None = None

    def encode(self, tokens: Tokens) -> bytes:
        """Bytes of a block, int64 [frames, codebooks]."""
        encoder = RangeEncoder()
        for first in range(0, len(tokens), FRAMES_AT_ONCE):
            part = tokens[first : first + FRAMES_AT_ONCE]
            before = np.concatenate([self._previous(part.shape[1]), part[:-1] + 1])
            hidden = self._model.hidden(before, self._state)
            counts = self._model.ends.counts(hidden, part)
            encoder.push(shares(counts.reshape(-1, counts.shape[-1]), part.reshape(-1)))
            self._last = part[-1:]
        encoder.flush()
        return encoder.take()

    def decode(self, data: bytes, frames: int, codebooks: int) -> Tokens:
        """The block [frames, codebooks] that `encode` made these bytes of.

        Raises: CodingError if it made other bytes.
        """
        stream = io.BytesIO(data)
        decoder = RangeDecoder(lambda: stream.read(1))
        tokens = np.empty((frames, codebooks), np.int64)
        for frame in range(frames):
            hidden = self._model.hidden(self._previous(codebooks), self._state)
            tokens[frame] = self._model.ends.pull(hidden, codebooks, decoder)
            self._last = tokens[frame : frame + 1]
        decoder.finish()
        if stream.read(1):
            raise CodingError("the coded bits go on after their end")
        return tokens

    def _previous(self, codebooks: int) -> Tokens:
        """The frame before the next one, as the model reads it: [1, codebooks]."""
        return np.zeros((1, codebooks), np.int64) if self._last is None else self._last + 1
