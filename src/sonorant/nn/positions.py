"""How a transformer knows where its steps stand in time.

Positions are integers per row, since live sessions in one batch have different ages. Angles are
computed in fp32 whatever the model's precision, as the published models do. An angle is then off by
up to position * 6e-8 radians, which a stream at 25 steps per second notices after days.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


def sinusoidal(positions: Tensor, width: int, max_period: float = 10000.0) -> Tensor:
    """Absolute position vectors: cosines, then sines, of geometrically spaced frequencies.

    Shape: positions [batch, steps] -> fp32 [batch, steps, width]; the width is even.
    Source: arXiv 1706.03762, section 3.5, in the order and spacing of EnCodec's entropy model,
    MusicGen and Demucs: the exponents reach 1, and cosines come first.
    """
    half = width // 2
    exponents = torch.arange(half, device=positions.device, dtype=torch.float32) / (half - 1)
    phase = positions[..., None].float() / max_period**exponents
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


@dataclass(frozen=True)
class Rotation:
    """Complex factors [batch, steps, 1, head_dim / 2] of one call's steps."""

    factors: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """Rotate neighbouring channels (0, 1), (2, 3), ... of x [batch, steps, heads, head_dim].

        Computed in fp32, returned in the precision of x.
        """
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * self.factors).flatten(-2).to(x.dtype)

    def turn_in_place(self, x: Tensor) -> None:
        """The same on the memory of x."""
        if x.dtype == torch.float32:
            torch.view_as_complex(x.unflatten(-1, (-1, 2))).mul_(self.factors)
        else:
            x.copy_(self.turn(x))


def rotation(positions: Tensor, head_dim: int, max_period: float = 10000.0) -> Rotation:
    """Rotary positions: the pair (2i, 2i + 1) turns by position / max_period^(2i / head_dim).

    Shape: positions [batch, steps].
    Source: RoFormer (arXiv 2104.09864, section 3.2.2). Checkpoints that pair channel i with
    i + head_dim / 2 need the rows of their query and key projections reordered.
    """
    channels = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    frequencies = 1.0 / max_period ** (channels / head_dim)
    angles = positions[..., None].float() * frequencies
    return Rotation(torch.complex(angles.cos(), angles.sin())[:, :, None])


@dataclass(frozen=True)
class NoPositions:
    """The order of steps shows in the causal mask alone; the other kinds differ from this."""

    head_dim: int
    max_period: float

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        """The input of the first layer, x [batch, steps, width], at positions [batch, steps]."""
        return x

    def rotation(self, positions: Tensor) -> Rotation | None:
        """How every layer turns its queries and keys at positions [batch, steps]."""
        return None


class SinusoidalPositions(NoPositions):
    """Absolute position vectors are added to the input of the first layer."""

    def add(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + sinusoidal(positions, x.shape[-1], self.max_period).to(x.dtype)


class RotaryPositions(NoPositions):
    """Queries and keys of every layer are rotated."""

    def rotation(self, positions: Tensor) -> Rotation | None:
        return rotation(positions, self.head_dim, self.max_period)


Position = Literal["none", "sinusoidal", "rotary"]

POSITIONS: dict[Position, type[NoPositions]] = {
    "none": NoPositions,
    "sinusoidal": SinusoidalPositions,
    "rotary": RotaryPositions,
}
