"""Which pairs of steps attention sees where it does not see them all.

Source: arXiv 2211.08553, section 3.2, on attention over longer sounds by locality-sensitive
hashing, and the options of the published package (demucs 4.1.0). No such model was ever released.
What is not seen is masked, so that memory and time are those of full attention.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 32  # of hashing, each to one of the four directions of a random plane
PLANE = 2

Pattern = Literal["diagonal", "triangular", "random", "global"]


class SparseConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sparse attention.

    in_self_attention, in_cross_attention: where.
    hashed: see pairs of similar direction, as many as `sparsity` leaves; otherwise what any of the
        patterns shows.
    patterns: `diagonal`, keys within `window` steps of the query's place; `triangular`, keys whose
        distance is a triangular number; `random`, drawn from `seed`, as many as `sparsity` leaves;
        `global`, the first `global_window` keys for all, and all keys for as many queries.
    sparsity: share of the pairs that is not seen.
    """

    in_self_attention: bool = False
    in_cross_attention: bool = False
    hashed: bool = False
    patterns: tuple[Pattern, ...] = ("diagonal",)
    window: int = 500
    global_window: int = 100
    sparsity: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.95
    seed: int = 42

    def visible(self, q: Tensor, k: Tensor) -> Tensor:
        """What queries [batch, heads, queries, width] see of keys [batch, heads, keys, width].

        Shape: bool, [queries, keys], or [batch, heads, queries, keys] where hashing decides.
        """
        if self.hashed:
            return similar_pairs(q, k, self.sparsity)
        return _pattern(self, q.shape[-2], k.shape[-2]).to(q.device)


@torch.no_grad()
def similar_pairs(q: Tensor, k: Tensor, sparsity: float) -> Tensor:
    """Pairs that fall into the same bucket in the most rounds; at least one for every query.

    Shape: q [..., queries, width], k [..., keys, width] -> bool [..., queries, keys].
    """
    planes = torch.randn(q.shape[-1], ROUNDS * PLANE, device=q.device, dtype=q.dtype)
    matches = _buckets(q @ planes) @ _buckets(k @ planes).transpose(-1, -2)
    counts = torch.bincount(matches.long().flatten(), minlength=ROUNDS + 1)
    seen_at_least = counts.flip(0).cumsum(0).flip(0)
    few_enough = (seen_at_least <= (1 - sparsity) * matches.numel()).nonzero()
    threshold = few_enough[0, 0] if len(few_enough) else ROUNDS
    return matches >= matches.amax(dim=-1, keepdim=True).clamp(max=threshold)


def _buckets(projected: Tensor) -> Tensor:
    """Ones at the bucket of every round. Shape: [..., rounds * 2] -> [..., rounds * 4]."""
    planes = projected.unflatten(-1, (ROUNDS, PLANE))
    directions = torch.cat([planes, -planes], dim=-1).argmax(dim=-1)
    return F.one_hot(directions, 2 * PLANE).flatten(-2).to(projected.dtype)


@lru_cache(maxsize=8)
def _pattern(config: SparseConfig, queries: int, keys: int) -> Tensor:
    place = torch.arange(queries)[:, None] * keys // queries
    distance = (torch.arange(keys) - place).abs()
    seen = torch.zeros(queries, keys, dtype=torch.bool)
    if "diagonal" in config.patterns:
        seen |= distance <= config.window
    if "triangular" in config.patterns:
        seen |= torch.isin(distance, torch.arange(keys).cumsum(0))
    if "random" in config.patterns:
        generator = torch.Generator().manual_seed(config.seed)
        seen |= torch.rand(queries * keys, generator=generator).view(queries, keys) > (
            config.sparsity
        )
    if "global" in config.patterns:
        seen[:, : config.global_window] = True
        seen[: int(config.global_window * queries / keys)] = True
    return seen
