"""Attention that gives the same numbers offline and live, with a bounded memory.

Source: arXiv 1706.03762, section 3.2; grouped queries: arXiv 2305.13245; causal attention within a
window of `context` steps as in Mimi (arXiv 2410.00037, section 3.3.1).

Step i sees the keys j with 0 <= i - j < context. Offline that is a band, computed block by block so
that memory grows with the context and not with the length. Live, keys and values stand in a ring
(`ring.py`). What all layers of one call share, positions and visibility, is worked out once, in
`OfflineSteps` or `LiveSteps`, and handed to every layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.nn.positions import Rotation
from sonorant.nn.ring import RingView
from sonorant.nn.state import State, StreamingModule

# Fewer queries at once cost more in calls than they save in products.
SMALLEST_BLOCK = 64


@dataclass(frozen=True)
class OfflineSteps:
    """A whole sequence, known at once.

    context: how many keys a step of a causal sequence sees, itself included; None for all.
    rotation: of queries and keys.
    memory: the condition [batch, memory_steps, width] that cross-attention attends to.
    visible: bool, broadcast to [batch, heads, steps, keys], what a sequence that is not causal
        sees; None for all.
    dropout: share of the attention weights left out, in training.
    """

    causal: bool = False
    context: int | None = None
    rotation: Rotation | None = None
    memory: Tensor | None = None
    visible: Tensor | None = None
    dropout: float = 0.0

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What the steps take from the keys they see.

        Shape: q [batch, heads, steps, head_dim], k and v [batch, key_value_heads, keys, head_dim].
        Where there are more keys than steps, the first ones stand before the first step.
        """
        steps, before = q.shape[2], k.shape[2] - q.shape[2]
        context = self.context or k.shape[2]
        if not self.causal:
            return _attend(q, k, v, self.visible, dropout=self.dropout)
        if before == 0 and context >= steps:
            return _attend(q, k, v, causal=True)
        size = max(context, SMALLEST_BLOCK)
        parts = []
        for start in range(0, steps, size):
            end = min(start + size, steps)
            first, last = max(0, start + before - context + 1), end + before
            age = _range(q, start + before, last)[:, None] - _range(q, first, last)
            visible = (age >= 0) & (age < context)
            keys, values = k[:, :, first:last], v[:, :, first:last]
            parts.append(_attend(q[:, :, start:end], keys, values, visible))
        return torch.cat(parts, dim=2)


@dataclass(frozen=True)
class LiveSteps:
    """The next few steps of every row, and what they see of the rings.

    view: where they stand in the rings.
    starts: bool [batch, 1, 1, 1], the rows at the start of their stream; None if there is none.
    memory_bias: [batch, 1, 1, memory_steps], 0 where rows see a step of the condition, else -inf.
    """

    state: State
    rotation: Rotation | None
    view: RingView
    starts: Tensor | None
    memory_bias: Tensor | None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What the steps take from the slots they see.

        Shape: q [batch, heads, steps, head_dim], k and v [batch, key_value_heads, slots, head_dim].
        """
        return _attend(q, k, v, self.view.bias)


Steps = OfflineSteps | LiveSteps


class SelfAttention(StreamingModule):
    """Steps attend to themselves and to steps before them.

    Shape: x [batch, steps, width] -> the same.
    State: `keys` and `values` [batch, key_value_heads, capacity, head_dim], after rotation; none
    with a capacity of 0.
    Query head h uses key and value head h // (heads / key_value_heads).
    """

    like: Tensor
    keys_before_start = 0
    """Keys that stand before the first step, added by subclasses."""

    def __init__(
        self, width: int, heads: int, key_value_heads: int, bias: bool, capacity: int
    ) -> None:
        super().__init__()
        self.heads, self.key_value_heads = heads, key_value_heads
        self.head_dim = width // heads
        self.capacity = capacity
        self.in_proj = nn.Linear(width, (heads + 2 * key_value_heads) * self.head_dim, bias)
        self.out_proj = nn.Linear(width, width, bias)
        # Precision and device of the state, also once the projections are packed.
        self.register_buffer("like", torch.empty(0), persistent=False)

    def fresh_state(self, batch_size: int) -> dict[str, Tensor]:
        if self.capacity == 0:
            return {}
        shape = (batch_size, self.key_value_heads, self.capacity, self.head_dim)
        return {"keys": self.like.new_zeros(shape), "values": self.like.new_zeros(shape)}

    def forward(self, x: Tensor, steps: Steps) -> Tensor:
        q, k, v = self.split_heads(self.in_proj(x), steps.rotation)
        k, v = self.recall(k, v, steps)
        return self.out_proj(steps.attend(q, k, v).transpose(1, 2).flatten(2))

    def split_heads(
        self, projected: Tensor, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [batch, heads, steps, head_dim] of what `in_proj` gives."""
        heads = projected.view(*projected.shape[:2], -1, self.head_dim)
        turning, values = heads.split([self.heads + self.key_value_heads, self.key_value_heads], 2)
        if rotation is not None:
            turning = rotation.turn(turning)
        queries, keys = turning.split([self.heads, self.key_value_heads], 2)
        return queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)

    def recall(self, k: Tensor, v: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
        """All keys and values that these steps may see; live, theirs are remembered as well."""
        if isinstance(steps, OfflineSteps):
            return k, v
        slot = steps.state[self]
        return steps.view.write(slot.keys, k), steps.view.write(slot.values, v)


class CrossAttention(StreamingModule):
    """Steps attend to a condition that stays the same while a stream runs.

    Shape: x [batch, steps, width] -> the same; the condition is [batch, memory_steps, width].
    State: `keys` and `values` [batch, heads, memory_steps, head_dim] of the condition, computed
    once by `remember`.
    """

    like: Tensor

    def __init__(self, width: int, heads: int, bias: bool, memory_steps: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.memory_steps = memory_steps
        self.query_proj = nn.Linear(width, width, bias)
        self.memory_proj = nn.Linear(width, 2 * width, bias)
        self.out_proj = nn.Linear(width, width, bias)
        self.register_buffer("like", torch.empty(0), persistent=False)

    def fresh_state(self, batch_size: int) -> dict[str, Tensor]:
        shape = (batch_size, self.heads, self.memory_steps, self.head_dim)
        return {"keys": self.like.new_zeros(shape), "values": self.like.new_zeros(shape)}

    def remember(self, memory: Tensor, state: State) -> None:
        """Keep the keys and values of a condition for the active rows of a state."""
        keys, values = self._project(memory)
        slot = state[self]
        state.update(slot.keys[:, :, : memory.shape[1]], keys)
        state.update(slot.values[:, :, : memory.shape[1]], values)

    def forward(self, x: Tensor, steps: Steps) -> Tensor:
        q = self.query_proj(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        if isinstance(steps, LiveSteps):
            slot, bias = steps.state[self], steps.memory_bias
            assert bias is not None, "a live call of cross-attention needs its memory_bias"
            in_use = bias.shape[-1]
            y = _attend(q, slot.keys[:, :, :in_use], slot.values[:, :, :in_use], bias)
        else:
            assert steps.memory is not None, "cross-attention needs a memory to attend to"
            y = _attend(q, *self._project(steps.memory))
        return self.out_proj(y.transpose(1, 2).flatten(2))

    def _project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.memory_proj(memory).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return keys.transpose(1, 2), values.transpose(1, 2)


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    return F.scaled_dot_product_attention(
        q, k, v, mask, dropout, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1]
    )


def _range(like: Tensor, start: int, end: int) -> Tensor:
    return torch.arange(start, end, device=like.device)
