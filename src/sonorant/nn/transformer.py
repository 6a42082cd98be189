"""The one transformer of all systems: codecs, language models, generators.

Source: arXiv 1706.03762, in the variants of EnCodec's entropy model (arXiv 2210.13438, section
3.3), Mimi and Moshi (arXiv 2410.00037, sections 3.2 and 3.3), MusicGen (arXiv 2306.05284, section
3.1) and Llama 2 (arXiv 2307.09288, section 2). A variant is another choice of small classes:
`NORMS`, `POSITIONS`, `FEED_FORWARDS`, `LAYERS`, `RINGS`.

It maps vectors to vectors: embeddings, projections, heads and a last norm belong to the systems.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.errors import ConfigError, ShapeError
from sonorant.nn.attention import CrossAttention, LiveSteps, OfflineSteps, SelfAttention, Steps
from sonorant.nn.live_layer import LiveLayer, live_layer
from sonorant.nn.norm import NORMS, Norm, residual_sum
from sonorant.nn.positions import POSITIONS, Position
from sonorant.nn.ring import RINGS, Ring, RingName, as_bias, slots_in_use
from sonorant.nn.state import State, StreamingModule

FeedForwardName = Literal["gelu", "relu", "gated_silu"]
NormOrder = Literal["pre", "post"]

# The norm before cross-attention is this one in every published model, whatever the other norms.
CROSS_NORM_EPSILON = 1e-5


class TransformerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One transformer; the sizes by default are Mimi's (arXiv 2410.00037, section 3.3.1).

    key_value_heads: fewer than `heads` for grouped queries; None for as many.
    hidden: width between the two products of the feed-forward part.
    norm_order: `pre` normalises what goes into a branch, `post` the sum that comes out.
    max_period: base of the geometric series of the positions' frequencies.
    layer_scale: initial factor of the residual branches; None for no factor.
    context: how many steps a step sees, itself included; None for all, which cannot run live.
    live_chunk: a longer live chunk is worked off in parts of this many steps. Large for language
        models that read prompts, small for codecs that run frame by frame.
    ring: `exact` makes live equal offline; `published` is the ring of the Mimi and Moshi packages.
    memory_steps: longest condition of cross-attention; 0 for a transformer without.
    """

    width: int = 512
    layers: int = 8
    heads: int = 8
    key_value_heads: int | None = None
    hidden: int = 2048
    feed_forward: FeedForwardName = "gelu"
    norm: Norm = "layer_norm"
    norm_epsilon: float = 1e-5
    norm_order: NormOrder = "pre"
    position: Position = "rotary"
    max_period: float = 10000.0
    bias: bool = False
    layer_scale: float | None = None
    causal: bool = True
    context: int | None = None
    live_chunk: int = 16
    ring: RingName = "exact"
    memory_steps: int = 0

    def __post_init__(self) -> None:
        if self.width % self.heads or self.heads % (self.key_value_heads or self.heads):
            raise ConfigError(
                f"{self.heads} heads must divide the width {self.width} and be a multiple of "
                f"{self.key_value_heads or self.heads} key_value_heads"
            )
        if self.position == "rotary" and self.head_dim % 2:
            raise ConfigError(
                f"rotary positions turn pairs of channels; heads of {self.head_dim} do not fit"
            )
        if self.position == "sinusoidal" and (self.width % 2 or self.width < 4):
            raise ConfigError(f"sinusoidal positions need an even width above 2, not {self.width}")
        if self.context is not None and (self.context < 1 or not self.causal):
            raise ConfigError("a context is a number of steps above 0, of a causal transformer")
        if self.live_chunk < 1 or self.memory_steps < 0:
            raise ConfigError("live_chunk must be at least 1, and memory_steps not below 0")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def key_ring(self) -> Ring | None:
        """Where keys and values are kept live; None without a context."""
        return None if self.context is None else RINGS[self.ring](self.context, self.live_chunk)


class FeedForward(nn.Module):
    """Two linear layers with an exact GELU between them."""

    branches = 1

    def __init__(self, width: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.linear_in = nn.Linear(width, self.branches * hidden, bias)
        self.linear_out = nn.Linear(hidden, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_out(self.activation(self.linear_in(x)))

    @staticmethod
    def activation(x: Tensor) -> Tensor:
        return F.gelu(x)


class ReluFeedForward(FeedForward):
    """The same with a ReLU."""

    @staticmethod
    def activation(x: Tensor) -> Tensor:
        return F.relu(x)


class GatedFeedForward(FeedForward):
    """SwiGLU (arXiv 2002.05202): the first half of one product, through SiLU, gates the second."""

    branches = 2

    @staticmethod
    def activation(x: Tensor) -> Tensor:
        gate, values = x.chunk(2, dim=-1)
        return F.silu(gate) * values


FEED_FORWARDS: dict[FeedForwardName, type[FeedForward]] = {
    "gelu": FeedForward,
    "relu": ReluFeedForward,
    "gated_silu": GatedFeedForward,
}


class PreNormLayer(nn.Module):
    """Attention and feed-forward part, each on the normalised input and added to it.

    Shape: x [batch, steps, width] -> the same.
    """

    def __init__(self, config: TransformerConfig, attention: type[SelfAttention]) -> None:
        super().__init__()
        width, bias = config.width, config.bias
        key_value_heads = config.key_value_heads or config.heads
        capacity = config.key_ring.capacity if config.key_ring else 0
        self.attention = attention(width, config.heads, key_value_heads, bias, capacity)
        self.attention_norm = NORMS[config.norm](width, config.norm_epsilon)
        self.attention_scale = residual_sum(width, config.layer_scale)
        self.cross_attention: CrossAttention | None = None
        if config.memory_steps:
            self.cross_attention = CrossAttention(width, config.heads, bias, config.memory_steps)
            self.cross_norm = nn.LayerNorm(width, CROSS_NORM_EPSILON)
            self.cross_scale = residual_sum(width, config.layer_scale)
        self.feed_forward = FEED_FORWARDS[config.feed_forward](width, config.hidden, bias)
        self.feed_forward_norm = NORMS[config.norm](width, config.norm_epsilon)
        self.feed_forward_scale = residual_sum(width, config.layer_scale)

    def forward(self, x: Tensor, steps: Steps) -> Tensor:
        x = self.attention_scale(x, self.attention(self.attention_norm(x), steps))
        if self.cross_attention is not None:
            x = self.cross_scale(x, self.cross_attention(self.cross_norm(x), steps))
        return self.feed_forward_scale(x, self.feed_forward(self.feed_forward_norm(x)))


class PostNormLayer(PreNormLayer):
    """The same parts, with every sum normalised.

    As in AudioCraft, cross-attention asks with the layer's input, not with the sum before it.
    """

    def forward(self, x: Tensor, steps: Steps) -> Tensor:
        y = self.attention_norm(self.attention_scale(x, self.attention(x, steps)))
        if self.cross_attention is not None:
            y = self.cross_norm(self.cross_scale(y, self.cross_attention(x, steps)))
        return self.feed_forward_norm(self.feed_forward_scale(y, self.feed_forward(y)))


LAYERS: dict[NormOrder, type[PreNormLayer]] = {"pre": PreNormLayer, "post": PostNormLayer}


class Transformer(StreamingModule):
    """Layers of attention over time, the same offline and live.

    Shape: x [batch, steps, width] -> the same; memory [batch, memory_steps, width].
    State: `position` int64 [batch], the steps so far; `memory_length` int64 [batch] where there is
    cross-attention. Live, the condition is given once, with `remember`.
    Latency: none. A live chunk may have any number of steps.
    Raises: ShapeError for a live call of a transformer without a context, or a missing condition.

    >>> transformer = Transformer(TransformerConfig(width=8, layers=1, heads=2, hidden=16))
    >>> transformer(torch.ones(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(
        self, config: TransformerConfig, attention: type[SelfAttention] = SelfAttention
    ) -> None:
        super().__init__()
        self.config = config
        self.positions = POSITIONS[config.position](config.head_dim, config.max_period)
        self.ring = config.key_ring
        self.keys_before_start = attention.keys_before_start
        layer = LAYERS[config.norm_order]
        self.flattens = (
            attention is SelfAttention and layer is PreNormLayer and not config.memory_steps
        )
        self.layers = nn.ModuleList(layer(config, attention) for _ in range(config.layers))

    def fresh_state(self, batch_size: int) -> dict[str, Tensor]:
        device = next(self.parameters()).device
        tensors = {"position": torch.zeros(batch_size, dtype=torch.int64, device=device)}
        if self.config.memory_steps:
            tensors["memory_length"] = torch.zeros_like(tensors["position"])
        return tensors

    def forward(
        self, x: Tensor, state: State | None = None, memory: Tensor | None = None
    ) -> Tensor:
        if x.shape[1] == 0:
            return x
        if state is None:
            return self._offline(x, memory)
        if memory is not None:
            raise ShapeError("live, a condition is given once, with `remember`, not at every call")
        if self.ring is None:
            raise ShapeError("a transformer runs live only with a context; set one in its config")
        pieces = self.ring.pieces(x)
        return torch.cat([self._live(piece, state, self.ring) for piece in pieces], dim=1)

    def remember(self, memory: Tensor, state: State) -> None:
        """Give the active rows of a state the condition [batch, steps, width] to attend to.

        Raises: ShapeError if it is longer than `memory_steps`, or nothing attends to it.
        """
        limit, length = self.config.memory_steps, memory.shape[1]
        if not 0 < length <= limit:
            raise ShapeError(
                f"a condition of {length} steps does not fit a transformer for 1 to {limit}"
                if limit
                else "this transformer has no cross-attention to give a condition to"
            )
        for module in self.modules():
            if isinstance(module, CrossAttention):
                module.remember(memory, state)
        slot = state[self]
        state.update(slot.memory_length, torch.full_like(slot.memory_length, length))

    def _offline(self, x: Tensor, memory: Tensor | None) -> Tensor:
        if (memory is None) == bool(self.config.memory_steps):
            raise ShapeError(
                "this transformer attends to a condition; give it as `memory`"
                if memory is None
                else "this transformer has no cross-attention; it takes no memory"
            )
        positions = torch.arange(x.shape[1], device=x.device)[None]
        return self._run(
            self.positions.add(x, positions),
            OfflineSteps(
                causal=self.config.causal,
                context=self.config.context,
                rotation=self.positions.rotation(positions),
                memory=memory,
            ),
        )

    def _live(self, x: Tensor, state: State, ring: Ring) -> Tensor:
        slot = state[self]
        positions = slot.position[:, None] + torch.arange(x.shape[1], device=x.device)
        ring_positions = positions + self.keys_before_start
        steps = LiveSteps(
            state=state,
            rotation=self.positions.rotation(positions),
            view=ring.view(ring_positions, state.active, x.dtype),
            starts=_starts(slot.position),
            memory_bias=self._memory_bias(state, x.dtype),
        )
        y = self.positions.add(x, positions)
        if self.flattens and x.device.type == "cpu" and not torch.is_grad_enabled():
            for live in self._live_layers(state):
                y = live(y, steps)
        else:
            y = self._run(y, steps)
        state.update(slot.position, slot.position + x.shape[1])
        return y

    def _live_layers(self, state: State) -> list[LiveLayer]:
        if self not in state.prepared:
            layers: list[PreNormLayer] = list(self.layers)  # type: ignore[arg-type]
            state.prepared[self] = [live_layer(layer, state) for layer in layers]
        prepared: list[LiveLayer] = state.prepared[self]
        return prepared

    def _run(self, x: Tensor, steps: Steps) -> Tensor:
        for layer in self.layers:
            x = layer(x, steps)
        return x

    def _memory_bias(self, state: State, dtype: torch.dtype) -> Tensor | None:
        """What rows see of their conditions; a row that was given none sees one zero vector."""
        if not self.config.memory_steps:
            return None
        length = state[self].memory_length
        steps = torch.arange(slots_in_use(length, self.config.memory_steps), device=length.device)
        return as_bias(steps < length.clamp(min=1)[:, None], dtype)[:, None, None]


def _starts(position: Tensor) -> Tensor | None:
    """Rows at the start of their stream, as [batch, 1, 1, 1].

    None if there is none, where asking costs nothing (on CPU).
    """
    starts = position == 0
    if position.device.type == "cpu" and not torch.compiler.is_compiling() and not starts.any():
        return None
    return starts[:, None, None, None]
