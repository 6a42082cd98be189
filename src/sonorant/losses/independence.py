"""How far the streams of a quantizer depend on each other, as a loss.

Source: the independence-promoting loss (arXiv 2406.02315) in its published form. Language models
that predict the tokens of all codebooks of a frame at once treat them as independent given the
past, so the codec is trained to make them so. The loss is the maximum mean discrepancy between the
vectors as they occur together, one from each level, and the same vectors drawn together by chance:
each level shuffled over the frames on its own, which keeps its distribution and ends its dependence
on the others.

    loss = max(0, sum over a of (S_xx - B) / (B (B - 1)) - 2 S_xy / B^2 + (S_yy - B) / (B (B - 1)))

S are sums of the kernel exp(-|x - y|^2 / (2 a)) over all pairs. The published form divides by the
number of sounds B where the textbook's estimator has the number of vectors N. So values are about
(N / B)^2 larger, to which the published weight of 1000 belongs, and far above 0 for independent
streams too: most of the diagonal stays in, and the three terms have different factors.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sonorant.errors import ConfigError, ShapeError

Positive = Annotated[float, msgspec.Meta(gt=0)]
BLOCK_ROWS = 1024
"""Rows of the kernel matrix in memory at once; backward computes them again."""


class IndependenceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The defaults are the published ones.

    bandwidths: the kernels' a, in squared units of the standardised vectors.
    epsilon: added to the variance before standardising.
    delayed: compare what a language model with the delay pattern predicts together: level k of the
        frame k before.
    """

    bandwidths: tuple[Positive, ...] = (0.1, 1.0, 5.0, 10.0, 20.0, 50.0)
    epsilon: float = 1e-8
    delayed: bool = True

    def __post_init__(self) -> None:
        if not self.bandwidths:
            raise ConfigError("the independence loss needs at least one kernel bandwidth")


PUBLISHED_INDEPENDENCE = IndependenceConfig()


def independence_loss(
    streams: Tensor,
    config: IndependenceConfig = PUBLISHED_INDEPENDENCE,
    shuffles: Tensor | None = None,
) -> Tensor:
    """A scalar, the smaller the less the streams `[batch, levels, dimension, frames]` depend.

    shuffles: for each level an order of all vectors, int64 `[levels, vectors]`, where the vectors
        of the first sound come first; None draws from torch's global generator.
    Raises: ShapeError for fewer than two sounds, or no frame left by the delays.

    >>> independence_loss(torch.zeros(2, 3, 4, 5)).item() > 0  # all vectors alike: see the diagonal
    True
    """
    batch, levels, dimension, _ = streams.shape
    if config.delayed:
        streams = delay_streams(streams)
    frames = streams.shape[-1]
    if batch < 2 or batch * frames < 2:
        raise ShapeError(
            f"the independence loss compares sounds with each other: got {batch} of {frames} frames"
            + (f" after delays of up to {levels}" if config.delayed else "")
        )
    vectors = _standardised(streams.permute(0, 3, 1, 2).flatten(0, 1), config.epsilon)
    if shuffles is None:
        shuffles = draw_shuffles(levels, len(vectors), vectors.device)
    # Gathered in the form [vectors, levels, dimension]; gradients flow through both sides.
    shuffled = vectors.gather(0, shuffles.t()[:, :, None].expand(-1, -1, dimension))
    x, y = vectors.flatten(1), shuffled.flatten(1)
    pairs = batch * (batch - 1)
    discrepancy = sum(
        (within_x - batch) / pairs - 2 * across / batch**2 + (within_y - batch) / pairs
        for within_x, across, within_y in zip(
            kernel_sums(x, x, config.bandwidths),
            kernel_sums(x, y, config.bandwidths),
            kernel_sums(y, y, config.bandwidths),
            strict=True,
        )
    )
    assert isinstance(discrepancy, Tensor)
    return discrepancy.clamp(min=0)


def delay_streams(streams: Tensor) -> Tensor:
    """Level k of each frame from k frames before, without the first frames, as many as levels.

    Shape: streams [batch, levels, ..., frames] -> [batch, levels, ..., frames - levels].

    >>> delay_streams(torch.arange(4.0).expand(1, 2, 1, 4)).squeeze().tolist()
    [[2.0, 3.0], [1.0, 2.0]]
    """
    levels, frames = streams.shape[1], streams.shape[-1]
    kept = max(frames - levels, 0)
    rows = [streams[:, k, ..., levels - k : levels - k + kept] for k in range(levels)]
    return torch.stack(rows, dim=1)


def draw_shuffles(levels: int, vectors: int, device: torch.device) -> Tensor:
    """An own random order `[levels, vectors]` for each level."""
    orders = [torch.randperm(vectors, device=device) for _ in range(levels)]
    return torch.stack(orders)


def kernel_sums(x: Tensor, y: Tensor, bandwidths: tuple[float, ...]) -> list[Tensor]:
    """Sum of exp(-|x_i - y_j|^2 / (2 a)) over all pairs, for each bandwidth a.

    Shape: x, y [vectors, numbers]. Memory grows with the vectors, not with their pairs.
    """
    blocks = [
        checkpoint(_block_kernel_sums, rows, y, bandwidths, use_reentrant=False)
        for rows in x.split(BLOCK_ROWS)
    ]
    return list(torch.stack(blocks).sum(dim=0))


def _block_kernel_sums(x: Tensor, y: Tensor, bandwidths: tuple[float, ...]) -> Tensor:
    """Shape: x [rows, numbers], y [vectors, numbers] -> [bandwidths]."""
    squares = x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)[None]
    distances = torch.addmm(squares, x, y.t(), alpha=-2)
    return torch.stack([(distances * (-0.5 / a)).exp().sum() for a in bandwidths])


def _standardised(vectors: Tensor, epsilon: float) -> Tensor:
    """Mean 0 and variance 1 over the first dimension."""
    centred = vectors - vectors.mean(dim=0)
    return centred / (vectors.var(dim=0) + epsilon).sqrt()
