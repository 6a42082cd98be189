"""Uniform quantisation of a tensor: evenly spaced levels from its least to its largest value.

Source: DiffQ (arXiv 2104.09987, section 3.1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sonorant.errors import CheckpointError, ConfigError

LEAST_BITS = 2
"""With one bit a weight would be one of the two extremes."""
MOST_BITS = 15
"""Levels are stored in 16 signed bits at most."""
BYTE_BITS = 8

Range = tuple[float, float]
"""The least and the largest value of a tensor."""


def check_bits(bits: int) -> None:
    """Raises: ConfigError for bits that weights cannot have."""
    if not LEAST_BITS <= bits <= MOST_BITS:
        raise ConfigError(f"weights take {LEAST_BITS} to {MOST_BITS} bits, not {bits}")


def to_levels(x: Tensor, bits: Tensor | int, name: str) -> tuple[Tensor, Range]:
    """Round each value of `x` to the nearest of 2^bits levels between its extremes.

    Shape: x, any; `bits`, whole numbers 1 to 15, of any shape that broadcasts with it -> levels
    as x, uint8 if all have 8 bits or less, else int16. Halves go to the even level.
    Raises: CheckpointError with the `name` of `x` if it holds values that are not finite.
    """
    low, high = float(x.min()), float(x.max())
    check_finite(high - low, name)
    most = int(bits.max()) if isinstance(bits, Tensor) else bits
    dtype = torch.uint8 if most <= BYTE_BITS else torch.int16
    if low == high:  # all is one value, the lowest level
        return torch.zeros_like(x, dtype=dtype), (low, high)
    return torch.round((x - low) / (high - low) / _unit(bits, x)).to(dtype), (low, high)


def from_levels(levels: Tensor, bits: Tensor | int, limits: Range) -> Tensor:
    """The values of levels, float32 in the shape of `levels`."""
    low, high = limits
    return levels.float() * _unit(bits, levels) * (high - low) + low


def by_width(bits: Tensor) -> dict[int, Tensor]:
    """The places of the groups of each number of bits, ascending; bits are uint8 [groups]."""
    order, counts = bits.argsort(stable=True), bits.bincount()
    places = order.split(counts.tolist())
    return {width: place for width, place in enumerate(places) if place.numel()}


def check_finite(number: float, name: str) -> None:
    """Raises: CheckpointError if `number`, made of the values of `name`, is not finite."""
    if not -float("inf") < number < float("inf"):
        raise CheckpointError(
            f"{name} has values that are not finite, so it cannot be quantised; training has "
            "diverged, go back to weights from before"
        )


def _unit(bits: Tensor | int, like: Tensor) -> Tensor:
    """Distance between two levels where the range is 1, float32."""
    return 1 / (2 ** torch.as_tensor(bits, dtype=torch.float32, device=like.device) - 1)
