"""Normalisations and residual scales that transformers choose from."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["layer_norm", "rms_norm"]

# Both take (width, eps) and compute in fp32 whatever the precision of their input.
NORMS: dict[Norm, type[nn.Module]] = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}


class ResidualSum(nn.Module):
    """What a residual branch gives, added to its input. Shape: [..., width] each."""

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch


class LayerScale(ResidualSum):
    """The same with a learned factor per channel on the branch, small at first.

    Source: CaiT (arXiv 2103.17239, section 2.1).
    """

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return torch.addcmul(x, branch, self.scale)


def residual_sum(width: int, layer_scale: float | None) -> ResidualSum:
    """A sum with a `LayerScale` that starts at this, or the plain sum for None."""
    return ResidualSum() if layer_scale is None else LayerScale(width, layer_scale)
