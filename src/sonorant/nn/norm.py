"""Normalisations of transformers and of whole sounds, and the residual scales of transformers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["layer_norm", "rms_norm"]

# Both take (width, eps) and compute in fp32 whatever the precision of their input.
NORMS: dict[Norm, type[nn.Module]] = {"layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}


BLOCK_NUMBERS = 1024  # whose squares are summed at once, which keeps the digits of long sounds

LOST_DIGITS = 1e-2
"""A variance below this share of the squared mean has lost two digits to their difference."""


class TimeGroupNorm(nn.GroupNorm):
    """One-group normalisation over channels and time. Shape: [batch, channels, time].

    Source: GroupNorm (arXiv 1803.08494) as EnCodec's 48 kHz model uses it. On CPU, without
    gradients, a sound that lies in memory by time stays so: PyTorch's own would rearrange it, which
    takes twice as long as the norm.
    """

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__(1, channels, eps=epsilon)

    def forward(self, x: Tensor) -> Tensor:
        by_time = x.transpose(1, 2)
        kept = by_time.is_contiguous() and x.dtype in (torch.float32, torch.float64)
        if x.device.type != "cpu" or torch.is_grad_enabled() or not kept or not x.numel():
            return super().forward(x)
        mean, variance = _moments(by_time.flatten(1))
        scale = self.weight * (variance + self.eps).rsqrt()[:, None]
        shift = self.bias - mean[:, None] * scale
        return torch.addcmul(shift[:, None], by_time, scale[:, None]).transpose(1, 2)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance `[batch]` of rows `[batch, numbers]`."""
    count = x.shape[1]
    whole = count - count % BLOCK_NUMBERS
    blocks = x[:, :whole].unflatten(1, (-1, BLOCK_NUMBERS)) if whole else x[:, None, :0]
    squares = torch.linalg.vector_norm(blocks, dim=-1).square().sum(dim=1)
    squares = squares + torch.linalg.vector_norm(x[:, whole:], dim=-1).square()
    mean = x.mean(dim=1)
    variance = squares / count - mean.square()
    if bool((variance < LOST_DIGITS * mean.square()).any()):
        variance = x.var(dim=1, correction=0)  # several times slower
    return mean, variance


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
