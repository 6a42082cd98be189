"""A small entropy model for codecs of many codebooks, which also looks inside the frame.

The idea is that of EnCodec (arXiv 2210.13438, section 3.3), a causal transformer over frames. Two
things differ, so that it fits into a few megabytes and saves more bits:

- Most weights of the published model are its tables, in and out, of full width for every token.
  Here one narrow table per codebook serves both ends, and linear layers widen it.
- The published model predicts all tokens of a frame at once. Here each also depends on the coarser
  ones of its own frame: what they say is added to the hidden layer of its head. That costs small
  products only; the transformer still runs once a frame.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.codec.entropy_coding import EntropyCore, published_kind
from sonorant.errors import ConfigError
from sonorant.nn.state import State
from sonorant.nn.transformer import TransformerConfig


def _small() -> TransformerConfig:
    """What leaves 16 codebooks of 1024 tokens below 3 MB in fp16."""
    return published_kind(width=128, layers=3, heads=4, hidden=512, frame_rate=75)


class CompactEntropyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One compact entropy model; the defaults are those of the shipped codec's.

    rank: columns of the table of a codebook. head_width: hidden units of the heads.
    """

    codebooks: int = 16
    codebook_size: int = 1024
    rank: int = 32
    head_width: int = 128
    transformer: TransformerConfig = _small()
    norm_in: bool = True

    def __post_init__(self) -> None:
        if self.codebooks < 1 or self.codebook_size < 2 or self.rank < 1 or self.head_width < 1:
            raise ConfigError(
                f"{self.codebooks} codebooks of {self.codebook_size} tokens, rank {self.rank} and "
                f"{self.head_width} hidden units: none of these can be so small"
            )


class FramePart(nn.Module):
    """One matrix per codebook, for what its narrow token vectors become.

    Shape of `weight`: [codebooks, rank, outputs].
    """

    def __init__(self, codebooks: int, rank: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(codebooks, rank, outputs))
        bound = (codebooks * rank) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors [batch, codebooks, frames, rank] -> the same, of `outputs` columns."""
        return vectors @ self.weight[: vectors.shape[1]]


class CompactEmbedding(nn.Module):
    """Narrow tables, widened and summed over the codebooks.

    Shape: previous int64 [batch, codebooks, frames], 0 or 1 + token -> [batch, frames, width].
    """

    def __init__(self, config: CompactEntropyConfig) -> None:
        super().__init__()
        self.tables = nn.Parameter(torch.empty(config.codebooks, config.codebook_size, config.rank))
        nn.init.normal_(self.tables)
        self.widen = FramePart(config.codebooks, config.rank, config.transformer.width)

    def forward(self, previous: Tensor) -> Tensor:
        known = (previous > 0)[..., None]
        return self.widen(self.vectors((previous - 1).clamp(min=0)) * known).sum(dim=1)

    def vectors(self, tokens: Tensor) -> Tensor:
        """Narrow vectors [batch, codebooks, frames, rank] of tokens."""
        _, size, _ = self.tables.shape
        first_rows = torch.arange(tokens.shape[1], device=tokens.device) * size
        return F.embedding(tokens + first_rows[:, None], self.tables.flatten(0, 1))


class CompactHeads(nn.Module):
    """For each codebook, a hidden layer that hears of the coarser tokens of the frame, and logits
    by likeness to the vectors of its table."""

    def __init__(self, config: CompactEntropyConfig) -> None:
        super().__init__()
        self.from_past = nn.Linear(config.transformer.width, config.head_width)
        self.from_frame = FramePart(config.codebooks, config.rank, config.head_width)
        self.narrow = FramePart(config.codebooks, config.head_width, config.rank)
        self.bias = nn.Parameter(torch.zeros(config.codebooks, config.codebook_size))

    def forward(self, hidden: Tensor, vectors: Tensor, tables: Tensor) -> Tensor:
        """Logits [batch, codebooks, frames, codebook_size].

        Shape: hidden [batch, frames, width], vectors [batch, codebooks, frames, rank] of the
        frames' own tokens, tables [codebooks, codebook_size, rank].
        """
        coarser = F.pad(self.from_frame(vectors).cumsum(dim=1)[:, :-1], (0, 0, 0, 0, 1, 0))
        units = F.gelu(self.from_past(hidden)[:, None] + coarser)
        codebooks = vectors.shape[1]
        likeness = self.narrow(units) @ tables[:codebooks].transpose(1, 2)
        return likeness + self.bias[:codebooks, None]


class CompactEntropyModel(EntropyCore):
    """Distributions of the next frame's tokens, given the frames before and the coarser tokens.

    Shape: previous and tokens int64 [batch, codebooks, frames], the frame before each (see
    `previous_tokens`) and the frame itself -> logits [batch, codebook_size, codebooks, frames].
    State: that of the transformer.
    Raises: ShapeError for more codebooks than the model has.
    """

    system: ClassVar[str] = "compact_entropy"
    config_type: ClassVar[type[msgspec.Struct]] = CompactEntropyConfig
    config: CompactEntropyConfig
    embedding: CompactEmbedding
    heads: CompactHeads

    def __init__(self, config: CompactEntropyConfig) -> None:
        super().__init__(config, CompactEmbedding(config), CompactHeads(config))

    def forward(self, previous: Tensor, tokens: Tensor, state: State | None = None) -> Tensor:
        return self.logits(self.hidden(previous, state), tokens)

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Logits [batch, codebook_size, codebooks, frames] of the tokens of each frame."""
        vectors = self.embedding.vectors(tokens)
        return self.heads(hidden, vectors, self.embedding.tables).permute(0, 3, 1, 2)
