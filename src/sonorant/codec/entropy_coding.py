"""The language model that tells how likely every token of an EnCodec frame is.

Source: EnCodec (arXiv 2210.13438, section 3.3). A small causal transformer reads the tokens of the
frames before and gives one distribution per codebook of the next frame, all codebooks of a frame
independently of each other; an entropy coder then spends fewer bits on likely tokens.

The published model differs from the usual one in three ways. The sum of the embeddings is
normalised before positions are added. Layers normalise after the sums. And every layer starts from
one vector of zeros, which stands before the first frame, has no position, and is attended to like a
frame: through the biases it has a key and a value.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.errors import ConfigError, ShapeError
from sonorant.model import Model
from sonorant.nn.attention import LiveSteps, SelfAttention, Steps
from sonorant.nn.state import State
from sonorant.nn.transformer import Transformer, TransformerConfig

CONTEXT_SECONDS = 3.5  # how far the model looks back (section 3.3)


def published_kind(
    width: int, layers: int, heads: int, hidden: int, frame_rate: int
) -> TransformerConfig:
    """A transformer as the published models have it: post-norm, sinusoidal positions, biases."""
    return TransformerConfig(
        width=width,
        layers=layers,
        heads=heads,
        hidden=hidden,
        norm_order="post",
        position="sinusoidal",
        bias=True,
        context=int(CONTEXT_SECONDS * frame_rate) + 1,
        live_chunk=1,
    )


def is_published_kind(config: TransformerConfig) -> bool:
    """Whether a transformer is of that kind, whatever its sizes."""
    kind = (config.norm_order, config.position, config.norm, config.feed_forward, config.bias)
    return kind == ("post", "sinusoidal", "layer_norm", "gelu", True) and config.context is not None


def _published(frame_rate: int) -> TransformerConfig:
    """Section 3.3: 5 layers, 8 heads, 200 channels, 800 in the feed-forward part."""
    return published_kind(200, 5, 8, 800, frame_rate)


class EntropyConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entropy model; the defaults are those of the 24 kHz one.

    transformer: its `context` counts the frame itself and those before.
    norm_in: normalise the sum of the embeddings.
    """

    codebooks: int = 32
    codebook_size: int = 1024
    transformer: TransformerConfig = _published(frame_rate=75)
    norm_in: bool = True

    def __post_init__(self) -> None:
        if self.codebooks < 1 or self.codebook_size < 2:
            raise ConfigError(
                f"{self.codebooks} codebooks of {self.codebook_size} tokens leave nothing to code"
            )


ENTROPY_24KHZ = EntropyConfig()
ENTROPY_48KHZ = EntropyConfig(codebooks=16, transformer=_published(frame_rate=150))


class ZeroStartAttention(SelfAttention):
    """Attention that also sees a vector of zeros before the first step."""

    keys_before_start = 1

    def recall(self, k: Tensor, v: Tensor, steps: Steps) -> tuple[Tensor, Tensor]:
        if self.in_proj.bias is None:
            of_zero = k.new_zeros(self.in_proj.out_features)
        else:
            of_zero = self.in_proj.bias
        _, first_k, first_v = self.split_heads(of_zero[None, None], None)
        if not isinstance(steps, LiveSteps):
            rows = (len(k), -1, -1, -1)
            k, v = torch.cat([first_k.expand(rows), k], 2), torch.cat([first_v.expand(rows), v], 2)
        elif steps.starts is not None:
            slot = steps.state[self]
            for ring, first in ((slot.keys, first_k), (slot.values, first_v)):
                start = ring[:, :, :1]
                steps.state.update(start, torch.where(steps.starts, first, start))
        return super().recall(k, v, steps)


class CodebookEmbedding(nn.Module):
    """One table per codebook; what they hold for a frame is summed.

    Shape: tokens int64 [batch, codebooks, frames] below `rows` -> [batch, frames, width].
    Tokens of fewer codebooks use the first tables.
    """

    def __init__(self, codebooks: int, rows: int, width: int) -> None:
        super().__init__()
        self.tables = nn.Parameter(torch.empty(codebooks, rows, width))
        nn.init.normal_(self.tables)  # as nn.Embedding starts

    def forward(self, tokens: Tensor) -> Tensor:
        _, rows, _ = self.tables.shape
        first_rows = torch.arange(tokens.shape[1], device=tokens.device) * rows
        return F.embedding(tokens + first_rows[:, None], self.tables.flatten(0, 1)).sum(dim=1)


class CodebookHeads(nn.Module):
    """One linear layer per codebook.

    Shape: x [batch, frames, width] -> [batch, frames, codebooks, codebook_size].
    """

    def __init__(self, codebooks: int, codebook_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(codebooks, codebook_size, width))
        self.bias = nn.Parameter(torch.empty(codebooks, codebook_size))
        for parameter in (self.weight, self.bias):
            nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)  # as nn.Linear starts

    def forward(self, x: Tensor, codebooks: int) -> Tensor:
        weight, bias = self.weight[:codebooks], self.bias[:codebooks]
        y = F.linear(x, weight.flatten(0, 1), bias.flatten())
        return y.unflatten(-1, (codebooks, -1))


class EntropyCore(Model, ABC):
    """A transformer over frames, between the embedding and the heads of a kind of entropy model."""

    config: Any

    def __init__(self, config: Any, embedding: nn.Module, heads: nn.Module) -> None:
        super().__init__(config)
        self.embedding = embedding
        self.norm_in = nn.LayerNorm(config.transformer.width) if config.norm_in else nn.Identity()
        self.transformer = Transformer(config.transformer, ZeroStartAttention)
        self.heads = heads

    @property
    def streams(self) -> bool:
        return True

    def hidden(
        self, previous: Tensor, state: State | None = None, first_position: int = 0
    ) -> Tensor:
        """What the frames before say of each frame: [batch, frames, width].

        first_position: where an offline sequence begins; in training, not to learn from positions
        near 0 alone (section 3.3).
        Raises: ShapeError for more codebooks than the model has.
        """
        codebooks = previous.shape[1]
        if not 1 <= codebooks <= self.config.codebooks:
            raise ShapeError(
                f"this entropy model knows 1 to {self.config.codebooks} codebooks, not {codebooks}"
            )
        x = self.norm_in(self.embedding(previous))
        if first_position:
            x = x + self._moved(x, first_position)
        return self.transformer(x, state)

    @abstractmethod
    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Logits [batch, codebook_size, codebooks, frames] of the tokens of each frame.

        Shape: hidden [batch, frames, width], as `hidden` gives it; tokens int64 [batch, codebooks,
        frames], of which a token's own logits see at most the coarser ones of its frame.
        """

    def _moved(self, x: Tensor, first_position: int) -> Tensor:
        """What turns the positions from 0 that the transformer adds into those from another."""
        positions = torch.arange(x.shape[1], device=x.device)[None]
        add, nothing = self.transformer.positions.add, torch.zeros_like(x[:1])
        return add(nothing, positions + first_position) - add(nothing, positions)


class EntropyModel(EntropyCore):
    """Distributions of the next frame's tokens, given the frames before.

    Shape: previous int64 [batch, codebooks, frames], the frame before each (see `previous_tokens`)
    -> logits [batch, codebook_size, codebooks, frames].
    State: that of the transformer. Live, one frame or more at a time; equal to one offline call up
    to rounding. A coder and a decoder must both go frame by frame to round alike.
    Raises: ShapeError for more codebooks than the model has.
    """

    system: ClassVar[str] = "encodec_entropy"
    config_type: ClassVar[type[msgspec.Struct]] = EntropyConfig
    config: EntropyConfig
    embedding: CodebookEmbedding
    heads: CodebookHeads

    def __init__(self, config: EntropyConfig) -> None:
        size, width = config.codebook_size, config.transformer.width
        super().__init__(
            config,
            CodebookEmbedding(config.codebooks, size + 1, width),
            CodebookHeads(config.codebooks, size, width),
        )

    def forward(self, previous: Tensor, state: State | None = None) -> Tensor:
        return self.logits(self.hidden(previous, state), previous)

    def logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Logits [batch, codebook_size, codebooks, frames]; of `tokens` only the number counts."""
        return self.heads(hidden, tokens.shape[1]).permute(0, 3, 2, 1)

    def probabilities(self, previous: Tensor, state: State | None = None) -> Tensor:
        """The same as probabilities, which sum to 1 over `codebook_size`."""
        return self(previous, state).softmax(dim=1)


def previous_tokens(tokens: Tensor) -> Tensor:
    """What the model reads to predict `tokens` [batch, codebooks, frames]: 0, then 1 + token.

    >>> previous_tokens(torch.tensor([[[5, 6, 7]]])).tolist()
    [[[0, 6, 7]]]
    """
    return F.pad(tokens[..., :-1] + 1, (1, 0))
