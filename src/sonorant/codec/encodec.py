"""EnCodec: a convolutional codec with residual vector quantisation.

Source: "High Fidelity Neural Audio Compression" (arXiv 2210.13438). Sound goes through the SEANet
encoder to latents at `sample_rate / hop`, a residual quantizer turns every latent into one token
per codebook, and the decoder mirrors it back. The bandwidth chooses how many codebooks are used.

This file holds the config, what all EnCodec models share, and the causal 24 kHz kind, which runs
live; the 48 kHz kind works in segments and stands in `encodec_segments.py`.

Live and offline give the same tokens and the same sound. The published padding reflects the start
of the signal, so the first seven latents depend on each other: in the exact mode both directions
wait for seven frames at the start of a stream (93 ms at 24 kHz), then run frame by frame. A state
made with `low_latency=True` starts from zeros without the wait, and the first frames differ.
"""

from __future__ import annotations

import math
from typing import ClassVar

import msgspec
import torch
from torch import Tensor

from sonorant.audio import Audio
from sonorant.codec.codec import Codec
from sonorant.codec.encoded import Encoded
from sonorant.errors import ConfigError, ShapeError
from sonorant.nn.quantizer import QuantizerConfig, ResidualQuantizer
from sonorant.nn.seanet import SEANetConfig, SEANetDecoder, SEANetEncoder
from sonorant.nn.state import State, StreamingModule

# Long sounds go in pieces, so that memory does not grow with length: the layers at high rates in
# blocks, the LSTM in stretches. Short ones go whole, which is a little quicker (measured).
WHOLE_FRAMES = 750
SEANET_BLOCK_FRAMES = 400
STRETCH_FRAMES = 2250


class EncodecConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One EnCodec model. The defaults are those of the 24 kHz one (section 4.1).

    segment_seconds, overlap: length of the segments that are coded on their own, and the share of
        a segment that the next one repeats; None for models that code the sound as a whole.
    normalize: divide every segment by its volume and send the volume along.
    """

    sample_rate: int = 24000
    target_bandwidths_kbps: tuple[float, ...] = (1.5, 3.0, 6.0, 12.0, 24.0)
    seanet: SEANetConfig = SEANetConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    segment_seconds: float | None = None
    overlap: float = 0.01
    normalize: bool = False

    def __post_init__(self) -> None:
        if self.seanet.dimension != self.quantizer.dimension:
            raise ConfigError(
                f"the encoder makes latents of {self.seanet.dimension} numbers, "
                f"but the quantizer takes {self.quantizer.dimension}; make them equal"
            )
        if self.sample_rate <= 0 or not self.target_bandwidths_kbps:
            raise ConfigError("a codec needs a sample rate above 0 and at least one bandwidth")


# Section 4.1 of the paper and the published checkpoints.
ENCODEC_24KHZ = EncodecConfig()
ENCODEC_48KHZ = EncodecConfig(
    sample_rate=48000,
    target_bandwidths_kbps=(3.0, 6.0, 12.0, 24.0),
    seanet=SEANetConfig(channels=2, causal=False, norm="time_group_norm"),
    quantizer=QuantizerConfig(codebooks=16),
    segment_seconds=1.0,
    normalize=True,
)


class EncodecCore(Codec):
    """Encoder, quantizer and decoder, and the arithmetic of rates that all EnCodec models share."""

    config_type: ClassVar[type[msgspec.Struct]] = EncodecConfig
    config: EncodecConfig
    quantizer: ResidualQuantizer

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__(config)
        self.encoder = SEANetEncoder(config.seanet)
        self.quantizer = ResidualQuantizer(config.quantizer)
        self.decoder = SEANetDecoder(config.seanet)
        self.sample_rate = config.sample_rate
        self.channels = config.seanet.channels
        self.hop_samples = math.prod(config.seanet.ratios)
        self.frame_rate = math.ceil(self.sample_rate / self.hop_samples)

    @property
    def segmented(self) -> bool:
        return self.config.segment_seconds is not None

    @property
    def scaled(self) -> bool:
        return self.config.normalize

    def codebooks_for(self, bandwidth_kbps: float | None = None) -> int:
        """How many codebooks a bandwidth in kb/s pays for; all of them for None.

        Raises: ConfigError for a bandwidth that this model was not trained for.
        """
        if bandwidth_kbps is None:
            return self.config.quantizer.codebooks
        known = self.config.target_bandwidths_kbps
        if bandwidth_kbps not in known:
            choices = ", ".join(f"{value:g}" for value in known)
            raise ConfigError(f"no bandwidth of {bandwidth_kbps:g} kb/s; choose one of {choices}")
        bits_per_second = math.log2(self.config.quantizer.codebook_size) * self.frame_rate
        paid = max(1, math.floor(bandwidth_kbps * 1000 / bits_per_second))
        return min(paid, self.config.quantizer.codebooks)

    def to_latent(self, x: Tensor) -> Tensor:
        return self.encoder(x)

    def from_latent(self, latent: Tensor) -> Tensor:
        return self.decoder(latent)

    def forward(self, x: Tensor, codebooks: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """One training pass over whole sounds `[batch, channels, time]`.

        Returns the reconstruction, of the same shape, the tokens, and the commitment penalty.
        """
        quantized, tokens, penalty = self.quantizer(self.encoder(x), codebooks)
        return self.decoder(quantized)[..., : x.shape[-1]], tokens, penalty


class Encodec(EncodecCore, StreamingModule):
    """EnCodec on whole sounds; causal models also run live.

    State of its own: `encoder_start` [batch, channels, samples] and `decoder_start` [batch,
    dimension, frames] hold what has come in before the exact start can be computed;
    `encoder_filled` and `decoder_filled` [batch, 1] say how much that is.
    """

    system: ClassVar[str] = "encodec"

    def __init__(self, config: EncodecConfig) -> None:
        if config.segment_seconds is not None or config.normalize:
            raise ConfigError("segments and normalisation belong to the system 'encodec_segments'")
        super().__init__(config)
        self.start_frames = start_frames(config.seanet)
        self.frame_samples = self.hop_samples

    @property
    def streams(self) -> bool:
        return self.config.seanet.causal and self.config.seanet.trim_right_ratio == 1

    def fresh_state(self, batch_size: int) -> dict[str, Tensor]:
        if not self.streams:
            raise ConfigError(
                "this model looks ahead or trims on the left, and cannot run live; use encode and "
                "decode"
            )
        like = next(self.parameters())
        samples = self.start_frames * self.hop_samples
        dimension = self.config.seanet.dimension
        return {
            "encoder_start": like.new_zeros(batch_size, self.channels, samples),
            "encoder_filled": like.new_zeros(batch_size, 1, dtype=torch.long),
            "decoder_start": like.new_zeros(batch_size, dimension, self.start_frames),
            "decoder_filled": like.new_zeros(batch_size, 1, dtype=torch.long),
        }

    @torch.no_grad()
    def encode_batch(self, x: Tensor, bandwidth_kbps: float | None = None) -> Encoded:
        """Tokens of sounds `[batch, channels, time]` at the codec's rate."""
        self._check_sound(x)
        codebooks = self.codebooks_for(bandwidth_kbps)
        if not self.streams or x.shape[-1] <= WHOLE_FRAMES * self.hop_samples:
            tokens = self.quantizer.encode(self.encoder(x), codebooks)
            return Encoded(tokens, x.shape[-1])
        state, block = self.init_state(x.shape[0]), SEANET_BLOCK_FRAMES * self.hop_samples
        parts = [
            self.quantizer.encode(self.encoder.run_in_blocks(stretch, state, block), codebooks)
            for stretch in x.split(STRETCH_FRAMES * self.hop_samples, dim=-1)
        ]
        return Encoded(torch.cat(parts, dim=-1), x.shape[-1])

    @torch.no_grad()
    def decode_batch(self, encoded: Encoded) -> Tensor:
        """Sounds `[batch, channels, encoded.samples]` of tokens."""
        return self.decode_tokens(encoded.tokens)[..., : encoded.samples]

    @torch.no_grad()
    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Sounds `[batch, channels, frames * hop]`, with the padding of the last frame."""
        self._check_tokens(tokens)
        if tokens.shape[-1] == 0:
            return self._no_sound(tokens)
        if not self.streams or tokens.shape[-1] <= WHOLE_FRAMES:
            return self.decoder(self.quantizer.decode(tokens))
        state = self.init_state(tokens.shape[0])
        parts = [
            self.decoder.run_in_blocks(self.quantizer.decode(stretch), state, SEANET_BLOCK_FRAMES)
            for stretch in tokens.split(STRETCH_FRAMES, dim=-1)
        ]
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def encode_step(
        self, chunk: Audio | Tensor, state: State, bandwidth_kbps: float | None = None
    ) -> Encoded:
        """Tokens of the next whole frames of live sound; none while the exact start is awaited.

        Shape: chunk [batch, channels, a multiple of the hop], at the codec's rate.
        Raises: ShapeError for other lengths; use `encode_flush` for the last, partial frame.
        """
        x = self._chunk(chunk)
        if x.shape[-1] % self.hop_samples:
            raise ShapeError(
                f"a live chunk is a multiple of {self.hop_samples} samples, got {x.shape[-1]}; "
                "hand the rest of the stream to encode_flush"
            )
        self._check_rows(x, state)
        slot = state[self]
        ready = self._past_start(x, slot.encoder_start, slot.encoder_filled, state)
        return self._encode_live(ready, state, bandwidth_kbps)

    @torch.no_grad()
    def encode_flush(
        self,
        state: State,
        chunk: Audio | Tensor | None = None,
        bandwidth_kbps: float | None = None,
    ) -> Encoded:
        """Tokens of all that is left, with a last chunk of any length. The stream is then over."""
        slot = state[self]
        x = slot.encoder_start[..., :0] if chunk is None else self._chunk(chunk)
        held = self._held(slot.encoder_start, slot.encoder_filled, state)
        if held is None:
            return self._encode_live(x, state, bandwidth_kbps)
        joined = torch.cat([held, x], dim=-1)
        live = state if joined.shape[-1] >= slot.encoder_start.shape[-1] else None
        return self._encode_live(joined, live, bandwidth_kbps)

    @torch.no_grad()
    def decode_step(self, encoded: Encoded, state: State) -> Tensor:
        """Live sound `[batch, channels, frames * hop]`; none while the exact start is awaited."""
        slot = state[self]
        self._check_rows(encoded.tokens, state)
        latent = self._latent(encoded.tokens)
        ready = self._past_start(latent, slot.decoder_start, slot.decoder_filled, state)
        return self._decode_live(ready, state)

    @torch.no_grad()
    def decode_flush(self, state: State) -> Tensor:
        """The sound of a stream that ended before its exact start; nothing otherwise."""
        slot = state[self]
        held = self._held(slot.decoder_start, slot.decoder_filled, state)
        return self._decode_live(slot.decoder_start[..., :0] if held is None else held, None)

    def _latent(self, tokens: Tensor) -> Tensor:
        self._check_tokens(tokens)
        return self.quantizer.decode(tokens)

    def _encode_live(self, x: Tensor, state: State | None, bandwidth_kbps: float | None) -> Encoded:
        codebooks = self.codebooks_for(bandwidth_kbps)
        if x.shape[-1] == 0:
            return Encoded(x.new_zeros(x.shape[0], codebooks, 0, dtype=torch.long), 0)
        return Encoded(self.quantizer.encode(self.encoder(x, state), codebooks), x.shape[-1])

    def _decode_live(self, latent: Tensor, state: State | None) -> Tensor:
        if latent.shape[-1] == 0:
            return latent.new_zeros(latent.shape[0], self.channels, 0)
        return self.decoder(latent, state)

    def _held(self, start: Tensor, filled: Tensor, state: State) -> Tensor | None:
        """What waits for the exact start, or None once the stream runs."""
        if state.low_latency or start.shape[-1] == 0:
            return None
        count = common_count(filled, state)
        return None if count == start.shape[-1] else start[..., :count]

    def _past_start(self, x: Tensor, start: Tensor, filled: Tensor, state: State) -> Tensor:
        """Hold `x` back until there is enough for the exact start, then let everything through."""
        held = self._held(start, filled, state)
        if held is None:
            return x
        joined = torch.cat([held, x], dim=-1)
        length = min(joined.shape[-1], start.shape[-1])
        state.update(filled, torch.full_like(filled, length))
        if length == start.shape[-1]:
            return joined
        state.update(start[..., :length], joined)
        return joined[..., :0]


def start_frames(config: SEANetConfig) -> int:
    """How many frames every convolution needs before it can reflect its start; 0 for other pads.

    EnCodec's outermost latent convolutions, of kernel 7, decide: 7 frames.
    """
    if config.pad_mode != "reflect":
        return 0
    per_frame = math.prod(config.ratios)
    spans = [(max(config.kernel_size, config.last_kernel_size), 1)]
    for ratio in reversed(config.ratios):
        widest = config.dilation_base ** max(0, config.residual_layers - 1)
        spans.append(((config.residual_kernel_size - 1) * widest + 1, per_frame))
        spans.append((ratio + 1, per_frame))
        per_frame //= ratio
    return max(-(-span // samples) for span, samples in spans)


def common_count(filled: Tensor, state: State) -> int:
    """How much the active rows hold. Raises: ShapeError when they differ."""
    counts = (filled if state.active is None else filled[state.active]).flatten()
    if counts.numel() == 0:
        return int(filled.max())
    if bool((counts != counts[0]).any()):
        raise ShapeError(
            "sessions of different ages share this step, which the exact start cannot serve; let "
            "them advance in turn with set_active, or make the state with low_latency=True"
        )
    return int(counts[0])
