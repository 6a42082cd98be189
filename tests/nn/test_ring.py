"""Rings of keys: what a step sees, against a plain record of what was written."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sonorant.errors import ShapeError
from sonorant.nn.ring import PublishedRing, Ring

ROWS, CONTEXT = 2, 4
row_masks = st.lists(st.booleans(), min_size=ROWS, max_size=ROWS).map(torch.tensor)
calls = st.lists(st.tuples(st.integers(1, 3), row_masks), min_size=1, max_size=12)


def seen(ring: Ring, calls: list[tuple[int, Tensor]]) -> list[list[list[list[int]]]]:
    """Per call, row and step, the written numbers in sight, in order; one number per step."""
    positions = torch.zeros(ROWS, dtype=torch.int64)
    keys = torch.zeros(ROWS, 1, ring.capacity, 1)
    result = []
    for steps, active in calls:
        where = positions[:, None] + torch.arange(steps)
        view = ring.view(where, active, torch.float32)
        new = where[:, None, :, None].float()
        held = view.write(keys, new)[:, 0, :, 0].long()
        visible = view.bias[:, 0] == 0
        result.append(
            [
                [sorted(held[row, visible[row, step]].tolist()) for step in range(steps)]
                for row in range(ROWS)
            ]
        )
        positions += steps * active
    return result


@settings(max_examples=60, deadline=None)
@given(calls=calls)
def test_active_rows_see_their_context(calls: list[tuple[int, Tensor]]) -> None:
    positions = [0] * ROWS
    for (steps, active), rows in zip(calls, seen(Ring(CONTEXT, 3), calls), strict=True):
        for row in active.nonzero().flatten().tolist():
            for step in range(steps):
                now = positions[row] + step
                assert rows[row][step] == list(range(max(0, now - CONTEXT + 1), now + 1))
            positions[row] += steps


@settings(max_examples=60, deadline=None)
@given(calls=calls)
def test_the_published_ring_forgets_early_in_a_chunk(calls: list[tuple[int, Tensor]]) -> None:
    """A chunk of n steps leaves its first step the context less n - 1 keys, once the ring is full.

    Chunks are of one size here, as when a codec runs frame by frame.
    """
    size = calls[0][0]
    calls = [(size, active) for _, active in calls]
    positions = [0] * ROWS
    for (steps, active), rows in zip(calls, seen(PublishedRing(CONTEXT, 1), calls), strict=True):
        for row in active.nonzero().flatten().tolist():
            oldest = max(0, positions[row] + steps - CONTEXT)
            for step in range(steps):
                assert rows[row][step] == list(range(oldest, positions[row] + step + 1))
            positions[row] += steps


def test_a_paused_row_of_the_published_ring_does_not_see_its_own_new_keys() -> None:
    running, paused = torch.tensor([True, True]), torch.tensor([True, False])
    assert seen(PublishedRing(CONTEXT, 1), [(1, running), (1, paused)])[1] == [[[0, 1]], [[0]]]


def test_a_chunk_beyond_the_published_ring_is_refused() -> None:
    with pytest.raises(ShapeError, match="at most 4 steps"):
        PublishedRing(CONTEXT, 1).pieces(torch.zeros(1, 5, 1))
