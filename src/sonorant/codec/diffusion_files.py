"""Decompressing by diffusion in place of the codec's decoder, with bounded memory.

Diffusion looks at a sound as a whole. A long one is made window by window; neighbouring windows
share a second, over which one fades into the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

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
                rising = torch.linspace(0, 1, shared, device=made.device)
                made[..., :shared] = ending * (1 - rising) + made[..., :shared] * rising
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
