"""What the samples of a batch add up to, coordinate by coordinate, and how many each one has.

A gradient that is sparse and not coalesced names a coordinate once for each sample that touches it;
so the samples can still be told apart after `backward`. Sums and counts cost in proportion to the
entries named, whatever the number of coordinates.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sonorant.errors import ConfigError

_SCAN_SHARE = 8  # looking for touched coordinates among 8 an entry is as fast as among the entries


class SampleSums(NamedTuple):
    """Sums over samples, of a parameter seen as [coordinates, *width].

    coordinates: [touched] int64. `SumBuffers.collect` names each once; what it takes may repeat.
    totals: [touched, *width], the sums of the samples' gradients.
    counts: [touched] int32, how many samples touch the coordinate.
    """

    coordinates: Tensor
    totals: Tensor
    counts: Tensor

    @property
    def means(self) -> Tensor:
        """[touched, *width]: the mean over the samples that touch the coordinate."""
        return self.totals / self.counts.view(-1, *[1] * (self.totals.ndim - 1))


def samples_of(gradient: Tensor, samples: int | None = None) -> SampleSums:
    """The entries of a gradient that is a sum over samples, not added up yet.

    gradient: sparse, one entry for each sample and coordinate that it touches, or dense, where
        every sample counts for every coordinate.
    samples: how many there are; needed for a dense gradient.
    Raises: ConfigError for a sparse gradient that is coalesced, or a dense one without `samples`.
    """
    if gradient.is_sparse:
        if gradient.is_coalesced() and gradient._nnz() > 1:  # torch marks one entry so
            raise ConfigError(
                "the sparse gradient is coalesced, so its samples can no longer be counted: pass "
                "it as it comes from backward()"
            )
        coordinates = _row_major(gradient._indices(), gradient.shape)
        counts = torch.ones(len(coordinates), dtype=torch.int32, device=coordinates.device)
        return SampleSums(coordinates, gradient._values(), counts)
    if samples is None or samples < 1:
        raise ConfigError(
            "a dense gradient is averaged over all samples of the batch: say how many there are, "
            f"by step(samples=...), got {samples}"
        )
    totals = gradient.flatten()
    counts = torch.full((len(totals),), samples, dtype=torch.int32, device=totals.device)
    return SampleSums(torch.arange(len(totals), device=totals.device), totals, counts)


class SumBuffers:
    """Adds up entries in arrays as large as the parameter, which are zero between calls.

    sparse_dims: how many of the parameter's first dimensions number its coordinates; the others
        are the width of one.
    """

    def __init__(self, parameter: Tensor, sparse_dims: int) -> None:
        self.sparse_dims = sparse_dims
        self.width = parameter.shape[sparse_dims:]
        coordinates, device = math.prod(parameter.shape[:sparse_dims]), parameter.device
        self._totals = torch.zeros((coordinates, *self.width), dtype=parameter.dtype, device=device)
        self._counts = torch.zeros(coordinates, dtype=torch.int32, device=device)
        self._last = torch.zeros(coordinates, dtype=torch.int64, device=device)

    def collect(self, entries: SampleSums) -> SampleSums:
        """The same sums with each coordinate named once."""
        self._totals.index_add_(0, entries.coordinates, entries.totals)
        self._counts.index_add_(0, entries.coordinates, entries.counts)
        touched = self._touched(entries.coordinates)
        totals = self._totals.index_select(0, touched)
        counts = self._counts.index_select(0, touched)
        self._totals.index_fill_(0, touched, 0)
        self._counts.index_fill_(0, touched, 0)
        return SampleSums(touched, totals, counts)

    def _touched(self, coordinates: Tensor) -> Tensor:
        """Each coordinate once, without sorting: the entry that was written last stands for it."""
        if len(self._counts) <= _SCAN_SHARE * len(coordinates):
            return self._counts.nonzero().flatten()
        order = torch.arange(len(coordinates), device=coordinates.device)
        self._last.scatter_(0, coordinates, order)
        return coordinates.masked_select(self._last.index_select(0, coordinates) == order)


def sparse_dims_of(gradient: Tensor) -> int:
    """How many of the first dimensions number coordinates: all of them in a dense gradient."""
    return gradient.sparse_dim() if gradient.is_sparse else gradient.ndim


def add_at(parameter: Tensor, coordinates: Tensor, values: Tensor) -> None:
    """parameter[coordinates] += values [touched, *width], in place."""
    parameter.view(-1, *values.shape[1:]).index_add_(0, coordinates, values)


def as_sparse(sums: SampleSums, shape: torch.Size, sparse_dims: int) -> Tensor:
    """The means as a coalesced sparse gradient."""
    indices = torch.stack(torch.unravel_index(sums.coordinates, shape[:sparse_dims]))
    means = torch.sparse_coo_tensor(indices, sums.means, shape, check_invariants=False)
    return means.coalesce()


def coordinate_gain(chance: Tensor, batch_size: Tensor | int) -> Tensor:
    """How AdaBatch's expected step compares with the full gradient: (1 - (1 - p)^B) / p.

    For a coordinate that a sample touches with chance p it is 1 at B = 1, about B while p B is
    small, and 1 / p when it is large.
    chance: p, in (0, 1]. batch_size: B, of a shape that goes with it.
    Source: AdaBatch (arXiv 1711.01761), the implicit preconditioner.

    >>> coordinate_gain(torch.tensor([0.01, 1.0]), 2)
    tensor([1.9900, 1.0000])
    """
    if not bool(((chance > 0) & (chance <= 1)).all()):
        raise ConfigError("the chance of a coordinate must be in (0, 1]")
    return -torch.expm1(batch_size * torch.log1p(-chance)) / chance


def _row_major(indices: Tensor, shape: torch.Size) -> Tensor:
    """One number for each column of indices [dimensions, entries]."""
    flat = indices[0]
    for dimension in range(1, len(indices)):
        flat = flat * shape[dimension] + indices[dimension]
    return flat
