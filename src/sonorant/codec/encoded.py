"""What a codec makes of sound: tokens, and the little else that decoding needs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """Tokens of one batch of sounds.

    tokens: int64 `[batch, codebooks, frames]`; codebook 0 is the coarsest. Codecs that work in
        segments put the frames of one segment after those of the one before.
    scales: float32 `[batch, segments]`, the volume each segment was divided by, or None for codecs
        that do not normalise.
    samples: length in samples, at the codec's rate, of the sound these tokens stand for; decoding
        gives exactly as many.
    """

    tokens: Tensor
    scales: Tensor | None
    samples: int

    @property
    def frames(self) -> int:
        return self.tokens.shape[-1]

    @property
    def codebooks(self) -> int:
        return self.tokens.shape[1]
