"""A penalty on the largest singular values of a network's weights, against overfitting.

Source: Hybrid Demucs (arXiv 2111.03600, section 4): the squared largest singular value of every
weight above a size, approximated by a randomised decomposition.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import msgspec
import torch
from torch import Tensor, nn

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_MB_OF_FLOATS = 2**18  # values of 4 bytes in 2^20 bytes
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Positive = Annotated[int, msgspec.Meta(ge=1)]


class SingularValuePenalty(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Numbers of the penalty; the defaults are those of the published hybrid models (`base2`).

    weight: of the penalty in the loss.
    probability: of taking the penalty in a step; it is then weighted by its inverse.
    min_size_mb: smallest weight that counts, in MB (2^20 bytes) of float32.
    transposed: weights of transposed convolutions are seen as maps from all their inputs, like
        those of others, and not of all their outputs.
    rank, iterations: of the randomised decomposition; a matrix with no more rows or columns than
        `rank` is decomposed exactly.
    """

    weight: Annotated[float, msgspec.Meta(ge=0)] = 1e-5
    probability: Share = 1.0
    min_size_mb: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    transposed: bool = True
    rank: Positive = 100
    iterations: Positive = 4


def penalty(model: nn.Module, config: SingularValuePenalty) -> Tensor:
    """Sum over the weights of their squared largest singular value, [], differentiable.

    Not yet times `config.weight`. Zero for a model without a weight of the size. Draws from torch's
    random numbers.
    """
    found = [_largest(matrix, config) for matrix in _matrices(model, config)]
    if not found:
        return torch.zeros(())
    return torch.stack(found).square().sum()


def _matrices(model: nn.Module, config: SingularValuePenalty) -> Iterator[Tensor]:
    """Each weight that counts, `[first dimension, all others]`; biases do not."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim < 2 or "bias" in name:
                continue
            if parameter.numel() / _MB_OF_FLOATS < config.min_size_mb:
                continue
            turned = config.transposed and isinstance(module, _TRANSPOSED)
            weight = parameter.transpose(0, 1) if turned else parameter
            yield weight.flatten(1)


def _largest(matrix: Tensor, config: SingularValuePenalty) -> Tensor:
    """The largest singular value, []."""
    if min(matrix.shape) <= config.rank:
        return torch.linalg.matrix_norm(matrix, 2)
    with torch.no_grad():  # the directions; the value then has the gradient of the norm itself
        left, _, right = torch.svd_lowrank(matrix, config.rank, config.iterations)
    return left[:, 0] @ matrix @ right[:, 0]
