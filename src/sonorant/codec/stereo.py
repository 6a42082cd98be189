"""Stereo from a codec for one channel: left and right coded on their own, their tokens in turn.

Source: the stereo models of MusicGen (arXiv 2306.05284), which run the 32 kHz mono codec on either
channel. There the codebooks take turns, k0 left, k0 right, k1 left and so on; AudioCraft can also
let the frames take turns.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from sonorant.audio import Audio
from sonorant.codec.codec import Codec
from sonorant.codec.encoded import Encoded
from sonorant.errors import ConfigError, ShapeError


class InterleavedStereo:
    """A mono codec for sounds `[batch, 2, time]`.

    per_timestep: tokens are `[batch, codebooks, 2 * frames]`, left and right of every frame in
        turn, instead of `[batch, 2 * codebooks, frames]`.
    Bandwidths are those of one channel.
    Raises: ConfigError for a codec that is not mono, or that sends volumes or works in segments.
    """

    def __init__(self, codec: Codec, per_timestep: bool = False) -> None:
        if codec.channels != 1 or codec.scaled or codec.segmented:
            raise ConfigError("stereo by turns needs a mono codec without segments and volumes")
        self.codec = codec
        self.per_timestep = per_timestep
        self.sample_rate = codec.sample_rate
        self.channels = 2

    def encode(self, audio: Audio, bandwidth_kbps: float | None = None) -> Encoded:
        """Turn a sound of any rate, mono or stereo, into tokens of both channels.

        Raises: AudioError for an empty sound or one with samples that are not finite; ConfigError
        for an unknown bandwidth.
        """
        converted = audio.to(self.sample_rate, self.channels)
        device = next(self.codec.parameters()).device
        return self.encode_batch(converted.samples[None].to(device), bandwidth_kbps)

    def decode(self, encoded: Encoded) -> Audio:
        """The stereo sound of the first row of tokens."""
        return Audio(self.decode_batch(encoded)[0], self.sample_rate)

    def encode_batch(self, x: Tensor, bandwidth_kbps: float | None = None) -> Encoded:
        """Tokens of sounds `[batch, 2, time]` at the codec's rate."""
        if x.dim() != 3 or x.shape[1] != 2:
            raise ShapeError(f"stereo takes [batch, 2, time], got {list(x.shape)}")
        encoded = self.codec.encode_batch(x.flatten(0, 1).unsqueeze(1), bandwidth_kbps)
        return replace(encoded, tokens=interleave(encoded.tokens, self.per_timestep))

    def decode_batch(self, encoded: Encoded) -> Tensor:
        """Sounds `[batch, 2, encoded.samples]` of tokens."""
        tokens = separate(encoded.tokens, self.per_timestep)
        sounds = self.codec.decode_batch(replace(encoded, tokens=tokens))
        return sounds.view(-1, 2, sounds.shape[-1])


def interleave(tokens: Tensor, per_timestep: bool = False) -> Tensor:
    """Tokens `[2 * batch, codebooks, frames]`, left and right rows in turn, as one row for both.

    >>> import torch
    >>> left, right = torch.tensor([[[1, 2]], [[3, 4]]])
    >>> interleave(torch.stack([left, right])).tolist()
    [[[1, 2], [3, 4]]]
    >>> interleave(torch.stack([left, right]), per_timestep=True).tolist()
    [[[1, 3, 2, 4]]]
    """
    pairs = tokens.unflatten(0, (-1, 2))  # [batch, 2, codebooks, frames]
    if per_timestep:
        return pairs.permute(0, 2, 3, 1).flatten(2)
    return pairs.transpose(1, 2).flatten(1, 2)


def separate(tokens: Tensor, per_timestep: bool = False) -> Tensor:
    """What `interleave` made one, `[2 * batch, codebooks, frames]` again.

    Raises: ShapeError for tokens that are not in pairs.
    """
    dim = 2 if per_timestep else 1
    if tokens.dim() != 3 or tokens.shape[dim] % 2:
        raise ShapeError(f"these are no tokens of left and right in turn: {list(tokens.shape)}")
    if per_timestep:
        return tokens.unflatten(2, (-1, 2)).permute(0, 3, 1, 2).flatten(0, 1)
    return tokens.unflatten(1, (-1, 2)).transpose(1, 2).flatten(0, 1)
