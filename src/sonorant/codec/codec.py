"""What every codec offers, whatever is inside: the same verbs, the same checks at the border.

A codec turns sound into tokens and back, offline (`encode`, `decode`) and live (`encode_step`,
`decode_step`, and the flushes at the end of a stream). `Encoded` is what travels between the two.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sonorant.audio import Audio
from sonorant.codec.encoded import Encoded
from sonorant.errors import AudioError, ShapeError
from sonorant.model import Model
from sonorant.nn.quantizer import Codebook, ResidualQuantizer
from sonorant.nn.split_quantizer import SplitQuantizer
from sonorant.nn.state import State


class Codec(Model, ABC):
    """A system that turns sound `[batch, channels, time]` into tokens `[batch, codebooks, frames]`.

    Subclasses set the attributes below; their config has a `quantizer`, a `QuantizerConfig`.
    quantizer: `encode` and `decode` between latents and tokens, and `initialize` for training.
    segmented, scaled: whether sounds are coded in segments, and with the volume of each.
    """

    sample_rate: int
    """Hz."""
    channels: int
    hop_samples: int
    """Samples per frame of tokens."""
    frame_rate: float
    """Frames per second."""
    frame_samples: int
    """Samples of the shortest live chunk."""
    quantizer: ResidualQuantizer | SplitQuantizer

    @property
    def segmented(self) -> bool:
        return False

    @property
    def scaled(self) -> bool:
        return False

    @abstractmethod
    def codebooks_for(self, bandwidth_kbps: float | None = None) -> int:
        """How many codebooks a bandwidth in kb/s pays for; all of them for None."""

    def bandwidth_of(self, codebooks: int) -> float:
        """The bandwidth in kb/s of tokens of that many codebooks."""
        bits = math.log2(self.config.quantizer.codebook_size)
        return codebooks * bits * self.sample_rate / self.hop_samples / 1000

    def frames_of(self, samples: int) -> int:
        """How many frames stand for that many samples at the codec's rate."""
        return -(-samples // self.hop_samples)

    def encode(self, audio: Audio, bandwidth_kbps: float | None = None) -> Encoded:
        """Turn a sound of any rate, mono or stereo, into tokens `[1, codebooks, frames]`.

        Raises: AudioError for an empty sound, one with more than two channels or with samples that
        are not finite; ConfigError for an unknown bandwidth.
        """
        return self.encode_batch(self._batch_of(audio)[0], bandwidth_kbps)

    def decode(self, encoded: Encoded) -> Audio:
        """The sound of the first row of tokens, at the codec's rate."""
        return Audio(self.decode_batch(encoded)[0], self.sample_rate)

    def converted(self, audio: Audio) -> Audio:
        """A sound, mono or stereo, at the codec's rate and with its channels.

        Raises: AudioError for an empty sound, one with more than two channels or with samples that
        are not finite.
        """
        if audio.channels > 2:
            raise AudioError(
                f"this sound has {audio.channels} channels; mix it down to one or two first"
            )
        return audio.check().to(self.sample_rate, self.channels)

    @abstractmethod
    def to_latent(self, x: Tensor) -> Tensor:
        """Latents `[batch, dimension, frames]` of sounds `[batch, channels, time]`, with gradients.

        What the quantizer takes.
        """

    @abstractmethod
    def from_latent(self, latent: Tensor) -> Tensor:
        """Sounds `[batch, channels, frames * hop]` of latents, with gradients."""

    @abstractmethod
    def encode_batch(self, x: Tensor, bandwidth_kbps: float | None = None) -> Encoded:
        """Tokens of sounds `[batch, channels, time]` at the codec's rate."""

    @abstractmethod
    def decode_batch(self, encoded: Encoded) -> Tensor:
        """Sounds `[batch, channels, encoded.samples]` of tokens."""

    @abstractmethod
    def encode_step(
        self, chunk: Audio | Tensor, state: State, bandwidth_kbps: float | None = None
    ) -> Encoded:
        """Tokens of the next whole frames of live sound."""

    @abstractmethod
    def encode_flush(
        self,
        state: State,
        chunk: Audio | Tensor | None = None,
        bandwidth_kbps: float | None = None,
    ) -> Encoded:
        """Tokens of all that is left, with a last chunk of any length. The stream is then over."""

    @abstractmethod
    def decode_step(self, encoded: Encoded, state: State) -> Tensor:
        """Live sound `[batch, channels, time]` of the next frames."""

    @abstractmethod
    def decode_flush(self, state: State) -> Tensor:
        """The sound that is left at the end of a stream."""

    def saved_tensors(self) -> dict[str, Tensor]:
        """Weights and codewords, without the moving averages that only training needs."""
        return {
            name: tensor
            for name, tensor in super().saved_tensors().items()
            if name.rsplit(".", 1)[-1] not in Codebook.training_buffers
        }

    def _batch_of(self, audio: Audio) -> tuple[Tensor, int]:
        """The sound as `[1, channels, time]` at the codec's rate, and its length."""
        converted = self.converted(audio)
        return converted.samples[None].to(next(self.parameters())), converted.samples.shape[-1]

    def _chunk(self, chunk: Audio | Tensor) -> Tensor:
        if isinstance(chunk, Audio):
            if chunk.sample_rate != self.sample_rate:
                raise AudioError(
                    f"a live chunk must come at {self.sample_rate} Hz, got {chunk.sample_rate}; "
                    "let sonorant.blocks convert the stream"
                )
            chunk = chunk.samples[None].to(next(self.parameters()))
        self._check_input(chunk)
        return chunk

    def _check_rows(self, x: Tensor, state: State) -> None:
        if x.shape[0] != state.batch_size:
            raise ShapeError(f"the state is for {state.batch_size} rows, this has {x.shape[0]}")

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[1] != self.channels:
            raise ShapeError(
                f"this codec takes [batch, {self.channels}, time], got {list(x.shape)}"
            )
        precision = next(self.parameters()).dtype
        if x.dtype != precision:
            raise ShapeError(
                f"the sound must be {precision} as the model, between -1 and 1, got {x.dtype}"
            )
        if not bool(torch.isfinite(x).all()):
            raise AudioError("the sound has samples that are not finite numbers; repair it first")

    def _check_sound(self, x: Tensor) -> None:
        self._check_input(x)
        if x.shape[-1] == 0:
            raise AudioError("the sound is empty; give at least one sample")

    def _no_sound(self, tokens: Tensor) -> Tensor:
        return next(self.parameters()).new_zeros(tokens.shape[0], self.channels, 0)

    def _check_tokens(self, tokens: Tensor) -> None:
        if tokens.dim() != 3 or not 1 <= tokens.shape[1] <= self.config.quantizer.codebooks:
            raise ShapeError(
                f"tokens must be [batch, 1 to {self.config.quantizer.codebooks} codebooks, frames],"
                f" got {list(tokens.shape)}"
            )
        if tokens.dtype not in (torch.int64, torch.int32):
            raise ShapeError(f"tokens must be int64, got {tokens.dtype}; hand over tokens.long()")
        size = self.config.quantizer.codebook_size
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < size:
            raise ShapeError(f"tokens must lie from 0 to {size - 1}; these are of another codec")
