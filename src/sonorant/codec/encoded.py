"""What a codec makes of sound: tokens, and the little else that decoding needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """Tokens of one batch of sounds, or of one live step.

    tokens: int64 `[batch, codebooks, frames]`; codebook 0 is the coarsest. Codecs that work in
        segments put the frames of one segment after those of the one before.
    samples: length in samples, at the codec's rate, of the sound these tokens stand for; decoding
        gives exactly as many. Of a live step: how many samples more the tokens now stand for.
    scales: float32 `[batch, segments]`, the volume each segment was divided by, or None for codecs
        that do not normalise.
    segment_frames: how many frames each segment has; empty for codecs without segments.
    """

    tokens: Tensor
    samples: int
    scales: Tensor | None = None
    segment_frames: tuple[int, ...] = ()

    @property
    def frames(self) -> int:
        return self.tokens.shape[-1]

    @property
    def codebooks(self) -> int:
        return self.tokens.shape[1]


def join(first: Encoded, second: Encoded) -> Encoded:
    """One after the other, of the same stream."""
    scales = None
    if first.scales is not None and second.scales is not None:
        scales = torch.cat([first.scales, second.scales], dim=1)
    return Encoded(
        tokens=torch.cat([first.tokens, second.tokens], dim=-1),
        samples=first.samples + second.samples,
        scales=scales,
        segment_frames=first.segment_frames + second.segment_frames,
    )
