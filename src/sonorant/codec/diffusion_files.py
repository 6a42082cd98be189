"""Decompressing by diffusion in place of the codec's decoder, with bounded memory.

Diffusion looks at a sound as a whole. A long one is made window by window; neighbouring windows
share a second, over which one fades into the other. Each is drawn from noise of its own, so that
what they share is alike only as far as the tokens say; the fade keeps the level for all that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from sonorant.audio.sound import Samples, to_numpy
from sonorant.codec.codec import Codec
from sonorant.codec.container import Block
from sonorant.codec.encoded import Encoded
from sonorant.codec.multiband_diffusion import MultiBandDiffusion

WINDOW_SECONDS = 10.0
SHARED_SECONDS = 1.0


class DiffusionDecoder:
    """Turns a file's tokens into sound by diffusion: a `decoder` for `decompress_file`.

    seed: of the noise of the first window; each further one takes the next. calls: of each band's
    network, 20 when None.
    Raises: ConfigError, when used, for a codec or bandwidth that the model does not go with.
    """

    def __init__(
        self,
        model: MultiBandDiffusion,
        seed: int = 0,
        calls: int | None = None,
        window_seconds: float = WINDOW_SECONDS,
        shared_seconds: float = SHARED_SECONDS,
    ) -> None:
        self.model = model
        self.seed = seed
        self.calls = calls
        self.window_seconds = window_seconds
        self.shared_seconds = shared_seconds

    def __call__(self, blocks: Iterable[Block], codec: Codec) -> Iterator[Samples]:
        """Sound `[channels, time]` at the codec's rate, with the padding of the last frame."""
        self.model.check_codec(codec)
        shared = round(self.shared_seconds * codec.frame_rate) * codec.hop_samples
        ending = torch.empty(codec.channels, 0)
        for index, tokens in enumerate(self._windows(blocks, codec)):
            encoded = Encoded(tokens, tokens.shape[-1] * codec.hop_samples)
            made = self.model.decode_batch(encoded, codec, self.seed + index, self.calls)[0]
            if index:
                made[..., :shared] = cross_fade(ending, made[..., :shared])
            finished = max(0, made.shape[-1] - shared)  # the rest waits for the next window
            yield to_numpy(made[..., :finished])
            ending = made[..., finished:]
        yield to_numpy(ending)

    def _windows(self, blocks: Iterable[Block], codec: Codec) -> Iterator[Tensor]:
        """Tokens `[1, codebooks, frames]` of windows that overlap; the last is longer than that."""
        window = round(self.window_seconds * codec.frame_rate)
        shared = round(self.shared_seconds * codec.frame_rate)
        held: Tensor | None = None
        for block in blocks:
            tokens = block.tokens.to(next(codec.parameters()).device)
            held = tokens if held is None else torch.cat([held, tokens], dim=-1)
            while held.shape[-1] >= window + shared:
                yield held[..., :window]
                held = held[..., window - shared :]
        if held is not None and held.shape[-1]:
            yield held


def cross_fade(before: Tensor, after: Tensor) -> Tensor:
    """One fading into the other, at the level of the two throughout.

    A linear fade, which keeps the level of equal sounds, takes 3 dB from the middle of sounds that
    have nothing in common; it is raised by what their correlation lets expect.

    Shape: both [channels, time] -> [channels, time].
    """
    rising = torch.linspace(0, 1, after.shape[-1], device=after.device)
    falling = 1 - rising
    # Below 0 the two would cancel each other, and what is left is not to be raised.
    alike = functional.cosine_similarity(before, after, dim=-1).clamp(min=0)[:, None]
    expected = falling.square() + rising.square() + 2 * alike * falling * rising
    return (before * falling + after * rising) / expected.sqrt()
