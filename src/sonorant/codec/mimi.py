"""Mimi: a streaming speech codec of 12.5 frames per second, the first token of which has meaning.

Source: Moshi (arXiv 2410.00037, section 3.3). A SEANet encoder makes latents at 25 Hz, a causal
transformer looks back over ten seconds of them, a convolution halves their rate, and two residual
quantizers take the same latent side by side: one level trained to agree with a speech model (the
semantic token), and the acoustic levels. Decoding mirrors it.

Every frame of 80 ms is coded as soon as it has come in, with no further delay, and live equals
offline for any chunking. The published package does not keep to that: once its live transformer's
ring of keys is full, after ten seconds, the first steps of every chunk miss the oldest keys that
they see offline. `with_published_ring` gives the same model with that behaviour, for comparing with
it live; offline the two agree.
"""

from __future__ import annotations

import math
from typing import ClassVar, Self

import msgspec
import torch
from torch import Tensor, nn

from sonorant.audio import Audio
from sonorant.codec.codec import Codec
from sonorant.codec.encoded import Encoded
from sonorant.errors import ConfigError, ShapeError
from sonorant.model import SkipInitialization
from sonorant.nn.conv import ConvStyle, StreamingConv1d, StreamingConvTranspose1d
from sonorant.nn.linear import PackedLinear, PackReport, lay_out_by_input
from sonorant.nn.quantizer import Codebook, QuantizerConfig
from sonorant.nn.seanet import SEANetConfig, SEANetDecoder, SEANetEncoder
from sonorant.nn.split_quantizer import SplitQuantizer
from sonorant.nn.state import State, StreamingModule, init_state
from sonorant.nn.transformer import Transformer, TransformerConfig

# The layers at high rates work on so many frames at once, so that what they make stays in the
# processor's cache (benchmarks/mimi.py).
SEANET_BLOCK_FRAMES = 48
# Convolutions from this many weights on spend live steps in reading them.
LARGE_CONV = 2**18

# Section 3.3.1 and the published checkpoint.
MIMI_SEANET = SEANetConfig(
    dimension=512,
    base_filters=64,
    ratios=(8, 6, 5, 4),
    last_kernel_size=3,
    lstm_layers=0,
    skip="identity",
    pad_mode="zero",
    norm="none",
)
MIMI_TRANSFORMER = TransformerConfig(layer_scale=0.01, context=250, live_chunk=32)
MIMI_QUANTIZER = QuantizerConfig(dimension=256, codebooks=32, codebook_size=2048, smoothing="clamp")


class MimiConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One Mimi. The defaults are those of the published one.

    transformer: of the encoder and of the decoder alike; its steps are the SEANet's latents.
    latents_per_frame: how many of those make one frame of tokens.
    quantizer: of both parts together; `codebooks` counts the semantic ones, which come first.
    """

    sample_rate: int = 24000
    seanet: SEANetConfig = MIMI_SEANET
    transformer: TransformerConfig = MIMI_TRANSFORMER
    latents_per_frame: int = 2
    quantizer: QuantizerConfig = MIMI_QUANTIZER
    semantic_codebooks: int = 1

    def __post_init__(self) -> None:
        if self.seanet.dimension != self.transformer.width:
            raise ConfigError(
                f"the SEANet makes latents of {self.seanet.dimension} numbers, but the transformer "
                f"takes {self.transformer.width}; make them equal"
            )
        if not 1 <= self.semantic_codebooks < self.quantizer.codebooks:
            raise ConfigError(
                f"{self.semantic_codebooks} of {self.quantizer.codebooks} codebooks cannot be "
                "semantic; both parts need at least one"
            )
        causal = self.seanet.causal and self.transformer.causal and self.transformer.context
        if not causal or self.seanet.trim_right_ratio != 1:
            raise ConfigError(
                "Mimi runs live: its SEANet must be causal and trim on the right only, and its "
                "transformer causal with a context"
            )
        if self.sample_rate <= 0 or self.latents_per_frame < 1:
            raise ConfigError("a codec needs a sample rate and latents per frame above 0")


MIMI = MimiConfig()


class Mimi(Codec, StreamingModule):
    """Mimi, offline and live. One state serves both directions."""

    system: ClassVar[str] = "mimi"
    config_type: ClassVar[type[msgspec.Struct]] = MimiConfig
    config: MimiConfig
    quantizer: SplitQuantizer

    def __init__(self, config: MimiConfig) -> None:
        super().__init__(config)
        width, stride = config.seanet.dimension, config.latents_per_frame
        self.encoder = SEANetEncoder(config.seanet)
        self.encoder_transformer = Transformer(config.transformer)
        self.downsample = Downsample(width, stride)
        self.quantizer = SplitQuantizer(width, config.quantizer, config.semantic_codebooks)
        self.upsample = Upsample(width, stride)
        self.decoder_transformer = Transformer(config.transformer)
        self.decoder = SEANetDecoder(config.seanet)
        self.sample_rate = config.sample_rate
        self.channels = config.seanet.channels
        self.latent_samples = math.prod(config.seanet.ratios)
        self.hop_samples = self.frame_samples = self.latent_samples * stride
        self.frame_rate = self.sample_rate / self.hop_samples

    @property
    def streams(self) -> bool:
        return True

    def fresh_state(self, batch_size: int) -> dict[str, Tensor]:
        return {}  # its layers remember everything

    def init_state(self, batch_size: int = 1, low_latency: bool = False) -> State:
        """A fresh state for that many live sessions. There is no latency to choose."""
        if not self.training:
            lay_out_by_input(self)
            for module in self.modules():
                if isinstance(module, Codebook):
                    module.lay_out_for_search()
        return super().init_state(batch_size, low_latency)

    def with_published_ring(self) -> Self:
        """The same model on the same weights, that runs live as the published package does.

        Raises: ConfigError for a packed model.
        """
        if any(isinstance(module, PackedLinear) for module in self.modules()):
            raise ConfigError(
                "a packed model has no twin: with_published_ring comes before optimize"
            )
        transformer = msgspec.structs.replace(self.config.transformer, ring="published")
        with SkipInitialization():
            twin = type(self)(msgspec.structs.replace(self.config, transformer=transformer))
        twin.load_state_dict(self.state_dict(), assign=True)
        twin.name = self.name
        return twin.train(self.training)

    def optimize(self, mode: str) -> PackReport:
        """Pack the transformers, the quantizer's projections and, for live steps, the convolutions
        of many channels; see `Model.optimize`. Whole sounds go through the convolutions as before.
        """
        layers = [
            layer
            for layer in self.modules()
            if isinstance(layer, StreamingConv1d | StreamingConvTranspose1d)
            and layer.conv.weight.numel() >= LARGE_CONV
            and layer.conv.dilation == (1,)
            and (isinstance(layer, StreamingConv1d) or layer.spans_two)
        ]
        for layer in layers:
            layer.add_live_product()
        try:
            return super().optimize(mode)
        except ConfigError:
            for layer in layers:
                layer.live_product = None
            raise

    def codebooks_for(self, bandwidth_kbps: float | None = None) -> int:
        """How many codebooks a bandwidth in kb/s pays for; all of them for None or more than all.

        Raises: ConfigError for less than one codebook takes.
        """
        available = self.config.quantizer.codebooks
        if bandwidth_kbps is None:
            return available
        lowest = self.bandwidth_of(1)
        # A rate that was rounded to print it still means the whole number of codebooks.
        paid = bandwidth_kbps / lowest + 0.01
        if not paid >= 1:
            raise ConfigError(
                f"{bandwidth_kbps:g} kb/s is less than one codebook takes; this model has 1 to "
                f"{available} of {lowest:g} kb/s each"
            )
        return math.floor(min(paid, available))

    # -- between sound and latents ------------------------------------------------------------

    def to_latent(self, x: Tensor, state: State | None = None) -> Tensor:
        """Latents `[batch, width, frames]` of sounds `[batch, channels, time]`, not quantised.

        Without a state, every convolution pads what its last frame lacks, as the transformers
        package does; `encode` pads the sound instead, as the moshi package does.
        """
        return self._from_seanet(self.encoder(x, state), state)

    def from_latent(self, latent: Tensor, state: State | None = None) -> Tensor:
        """Sounds `[batch, channels, frames * hop]` of latents `[batch, width, frames]`."""
        return self.decoder(self._to_seanet(latent, state), state)

    def _from_seanet(self, latent: Tensor, state: State | None = None) -> Tensor:
        steps = self.encoder_transformer(latent.transpose(1, 2), state)
        return self.downsample(steps.transpose(1, 2), state)

    def _to_seanet(self, latent: Tensor, state: State | None = None) -> Tensor:
        steps = self.upsample(latent, state).transpose(1, 2)
        return self.decoder_transformer(steps, state).transpose(1, 2)

    # -- offline ------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_batch(self, x: Tensor, bandwidth_kbps: float | None = None) -> Encoded:
        """Tokens of sounds `[batch, channels, time]` at the codec's rate.

        The end is padded with zeros to a whole frame.
        """
        self._check_sound(x)
        codebooks = self.codebooks_for(bandwidth_kbps)
        state = init_state(self.encoder, x.shape[0])
        latent = self.encoder.run_in_blocks(
            self._whole_frames(x), state, SEANET_BLOCK_FRAMES * self.hop_samples
        )
        return Encoded(self.quantizer.encode(self._from_seanet(latent), codebooks), x.shape[-1])

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
        latent = self._to_seanet(self.quantizer.decode(tokens))
        state = init_state(self.decoder, tokens.shape[0])
        block = SEANET_BLOCK_FRAMES * self.config.latents_per_frame
        return self.decoder.run_in_blocks(latent, state, block)

    def _whole_frames(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, -x.shape[-1] % self.hop_samples))

    # -- live ---------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_step(
        self, chunk: Audio | Tensor, state: State, bandwidth_kbps: float | None = None
    ) -> Encoded:
        """Tokens of the next whole frames of live sound.

        Shape: chunk [batch, channels, a multiple of 1920 samples], at the codec's rate. Rows that
        are not active (`state.set_active`) get tokens of no meaning and stay as they were.
        Raises: ShapeError for other lengths; use `encode_flush` for the last, partial frame.
        """
        x = self._chunk(chunk)
        if x.shape[-1] % self.hop_samples:
            raise ShapeError(
                f"a live chunk is a multiple of {self.hop_samples} samples, got {x.shape[-1]}; "
                "hand the rest of the stream to encode_flush"
            )
        self._check_rows(x, state)
        codebooks = self.codebooks_for(bandwidth_kbps)
        if x.shape[-1] == 0:
            return Encoded(x.new_zeros(x.shape[0], codebooks, 0, dtype=torch.long), 0)
        with torch.inference_mode():
            tokens = self.quantizer.encode(self.to_latent(x, state), codebooks)
        return Encoded(tokens.clone(), x.shape[-1])  # tokens like any other

    @torch.no_grad()
    def encode_flush(
        self,
        state: State,
        chunk: Audio | Tensor | None = None,
        bandwidth_kbps: float | None = None,
    ) -> Encoded:
        """Tokens of a last chunk of any length, padded with zeros. The stream is then over."""
        if chunk is None:
            chunk = next(self.parameters()).new_zeros(state.batch_size, self.channels, 0)
        x = self._chunk(chunk)
        encoded = self.encode_step(self._whole_frames(x), state, bandwidth_kbps)
        return Encoded(encoded.tokens, x.shape[-1])

    @torch.no_grad()
    def decode_step(self, encoded: Encoded, state: State) -> Tensor:
        """Live sound `[batch, channels, frames * hop]` of the next frames."""
        self._check_rows(encoded.tokens, state)
        self._check_tokens(encoded.tokens)
        if encoded.frames == 0:
            return self._no_sound(encoded.tokens)
        with torch.inference_mode():
            y = self.from_latent(self.quantizer.decode(encoded.tokens), state)
        return y.clone()  # sound like any other

    @torch.no_grad()
    def decode_flush(self, state: State) -> Tensor:
        """Nothing: every frame is decoded in full at its step."""
        return next(self.parameters()).new_zeros(state.batch_size, self.channels, 0)

    # -- training -----------------------------------------------------------------------------

    def forward(
        self, x: Tensor, codebooks: int | None = None, bypass: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One training pass over whole sounds `[batch, channels, time]`.

        bypass: rows (bool `[batch]`) whose latent goes to the decoder without being quantised.
        Returns the reconstruction, of the same shape, the semantic part's output `[batch, width,
        frames]`, and the commitment penalty.
        """
        quantized, semantic, penalty = self.quantizer(self.to_latent(x), codebooks, bypass)
        return self.from_latent(quantized)[..., : x.shape[-1]], semantic, penalty


class Downsample(StreamingConv1d):
    """The convolution from latents to frames; its start repeats the first latent.

    Shape: x [batch, width, time] -> [batch, width, time / stride].
    """

    def __init__(self, width: int, stride: int) -> None:
        style = ConvStyle(causal=True, pad_mode="replicate", norm="none")
        super().__init__(width, width, 2 * stride, stride, style=style, bias=False)


class Upsample(StreamingModule):
    """The way back, a transposed convolution of each channel on its own.

    Shape: x [batch, width, frames] -> [batch, width, frames * stride].
    State: `previous` [batch, width, 1], the last frame, which reaches into the next one's steps.
    """

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        # Every output is a sum of two products, as in a convolution of two inputs.
        bound = 1 / math.sqrt(2)
        self.weight = nn.Parameter(torch.empty(width, 2 * stride).uniform_(-bound, bound))

    def fresh_state(self, batch_size: int) -> dict[str, Tensor]:
        return {"previous": self.weight.new_zeros(batch_size, len(self.weight), 1)}

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        before = torch.zeros_like(x[..., :1]) if state is None else state[self].previous
        delayed = torch.cat([before, x[..., :-1]], dim=-1)
        if state is not None:
            state.update(state[self].previous, x[..., -1:])
        current, previous = self.weight.split(self.stride, dim=1)
        y = x[..., None] * current[:, None] + delayed[..., None] * previous[:, None]
        return y.flatten(2)
