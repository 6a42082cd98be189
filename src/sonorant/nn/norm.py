"""Normalisations and residual scales that transformers choose from."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["layer_norm", "rms_norm"]

# Both take (width, eps) and compute in fp32 whatever the precision of their input.
NORMS: dict[Norm, type[nn.Module]] = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch, small at first.

    Shape: x [..., width] -> the same.
    Source: CaiT (arXiv 2103.17239, section 2.1).
    """

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def residual_scale(width: int, initial: float | None) -> nn.Module:
    """A `LayerScale`, or nothing for None."""
    return nn.Identity() if initial is None else LayerScale(width, initial)
