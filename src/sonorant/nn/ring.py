"""The ring in which a live transformer keeps the keys and values it may still see.

Step p of a row stands in slot p % capacity. Rows have positions of their own (sessions of different
ages share a batch), and a row's position alone tells which step each of its slots holds, whether it
was written since the last reset, and which steps may see it. Nothing asks the device for a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sonorant.errors import ShapeError


@dataclass(frozen=True)
class RingView:
    """Where the next steps of every row stand in a ring, and what they see of it.

    slots: int64 [batch, 1, steps, 1], where each step is written.
    rows: bool [batch, 1, 1, 1], the rows that write; None for all.
    bias: [batch, 1, steps, slots in use], 0 where a step sees a slot and -inf where it does not.
    in_use: how many slots these are.
    first: where the steps of all rows stand one after the other from this slot on, and all rows
        write; None elsewhere, and where asking costs something.
    """

    slots: Tensor
    rows: Tensor | None
    bias: Tensor
    in_use: int
    first: int | None = None

    def write(self, ring: Tensor, new: Tensor) -> Tensor:
        """Put `new` [batch, heads, steps, head_dim] into a ring; returns its slots in use."""
        if self.first is not None:
            ring.narrow(2, self.first, new.shape[2]).copy_(new)
            return ring.narrow(2, 0, self.in_use)
        index = self.slots.expand(-1, ring.shape[1], -1, ring.shape[3])
        if self.rows is not None:
            new = torch.where(self.rows, new, ring.gather(2, index))
        ring.scatter_(2, index, new)
        return ring.narrow(2, 0, self.in_use)


@dataclass(frozen=True)
class Ring:
    """Live equals offline for any chunking: `context + live_chunk - 1` slots.

    No more than `live_chunk` steps are written before they attend, so that whatever they overwrite
    is out of everybody's sight. Rows that are not active stay untouched.
    """

    context: int
    live_chunk: int

    @property
    def capacity(self) -> int:
        return self.context + self.live_chunk - 1

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        """A live chunk [batch, steps, width] in parts that may be written at once."""
        return x.split(self.live_chunk, dim=1)

    def view(self, positions: Tensor, active: Tensor | None, dtype: torch.dtype) -> RingView:
        """For steps at positions [batch, steps], counted from the first key of their row."""
        last = positions[:, -1:]
        in_use = slots_in_use(last + 1, self.capacity)
        slots = torch.arange(in_use, device=last.device)
        held = last - (last - slots) % self.capacity
        age = positions[..., None] - held[:, None]
        visible = (age >= 0) & (age < self.context) & (held >= 0)[:, None]
        where = positions % self.capacity
        return RingView(
            slots=where[:, None, :, None],
            rows=None if active is None else active[:, None, None, None],
            bias=as_bias(visible, dtype)[:, None],
            in_use=in_use,
            first=first_slot(where) if active is None else None,
        )


class PublishedRing(Ring):
    """The ring of the published Mimi and Moshi, for comparing with them: `context` slots.

    A chunk is written as a whole before its first step attends. Once the ring is full, the first
    steps of a chunk therefore miss the oldest keys that they see offline. Rows that are not active
    write their keys as well, over what their next chunk overwrites; they do not see them before
    their ring is full.
    """

    @property
    def capacity(self) -> int:
        return self.context

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.shape[1] > self.context:
            raise ShapeError(
                f"the published ring takes at most {self.context} steps at once, got {x.shape[1]}; "
                "send shorter chunks or choose the exact ring"
            )
        return (x,)

    def view(self, positions: Tensor, active: Tensor | None, dtype: torch.dtype) -> RingView:
        exact = super().view(positions, None, dtype)
        if active is None:
            return exact
        slots = torch.arange(exact.bias.shape[-1], device=positions.device)
        uncounted = ~active[:, None] & (slots >= positions[:, :1])
        bias = exact.bias.masked_fill(uncounted[:, None, None], -torch.inf)
        return RingView(exact.slots, None, bias, exact.in_use)


RingName = Literal["exact", "published"]

RINGS: dict[RingName, type[Ring]] = {"exact": Ring, "published": PublishedRing}


def as_bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where visible, -inf elsewhere: what attention adds to its scores.

    Attention kernels take it as it is, but would convert a boolean mask again in every layer.
    """
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, -torch.inf
    )


def slots_in_use(counts: Tensor, capacity: int) -> int:
    """How many slots some row has in use, where asking costs nothing (on CPU); else all."""
    if counts.device.type != "cpu" or torch.compiler.is_compiling():
        return capacity
    return max(1, min(capacity, int(counts.max())))


def first_slot(slots: Tensor) -> int | None:
    """The first of consecutive slots [batch, steps] of a single row, asked on CPU alone."""
    if len(slots) > 1 or slots.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    first, last = int(slots[0, 0]), int(slots[0, -1])
    return first if last - first == slots.shape[1] - 1 else None
