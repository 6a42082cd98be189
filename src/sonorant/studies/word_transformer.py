"""A transformer language model over a large vocabulary of words.

Source: Adaptive Input Representations (arXiv 1809.10853): rare words have narrower vectors, the
same at the input and in the softmax (arXiv 1609.04309). As in its published model, positions are
sinusoidal, norms come first in each branch, and none follows the last layer; its dropout within
attention, within the feed-forward part and in the softmax is not done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, ClassVar

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.errors import ConfigError
from sonorant.model import Model
from sonorant.nn.norm import ResidualSum
from sonorant.nn.transformer import Transformer, TransformerConfig

Positive = Annotated[int, msgspec.Meta(ge=1)]


class WordTransformerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One language model; the sizes by default are those for Wikitext-103.

    vocabulary: how many words there are, numbered by falling frequency.
    cutoffs: numbers of the words with which the bands of rarer and rarer words begin.
    narrowing: how much narrower the vectors of each band are than those of the one before.
    dropout: share of the numbers that training drops from the embeddings and from what each branch
        of the transformer adds.
    """

    vocabulary: Positive = 267_735
    cutoffs: tuple[int, ...] = (20_000, 60_000)
    narrowing: Annotated[float, msgspec.Meta(ge=1)] = 4.0
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.3
    transformer: TransformerConfig = TransformerConfig(
        width=1024,
        layers=16,
        heads=8,
        hidden=4096,
        feed_forward="relu",
        position="sinusoidal",
        bias=True,
    )

    def __post_init__(self) -> None:
        edges = (0, *self.cutoffs, self.vocabulary)
        if not self.cutoffs or any(low >= high for low, high in pairwise(edges)):
            raise ConfigError(
                f"cutoffs must rise from above 0 to below the vocabulary of {self.vocabulary} "
                f"words, which {list(self.cutoffs)} do not"
            )
        if self.transformer.width < self.narrowing ** len(self.cutoffs):
            raise ConfigError(
                f"vectors of {self.transformer.width} numbers cannot become {self.narrowing:g} "
                f"times narrower {len(self.cutoffs)} times"
            )
        if not self.transformer.causal or self.transformer.memory_steps:
            raise ConfigError("a language model needs a causal transformer without cross-attention")


class DroppedSum(ResidualSum):
    """A residual sum that drops numbers of the branch in training."""

    def __init__(self, inner: ResidualSum, share: float) -> None:
        super().__init__()
        self.inner, self.dropout = inner, nn.Dropout(share)

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        return self.inner(x, self.dropout(branch))


class WordTransformer(Model):
    """The probability of each next word, given those before.

    Shape: words int64 [batch, words] -> log-probabilities [batch, words, vocabulary].
    """

    system: ClassVar[str] = "word_transformer"
    config_type: ClassVar[type[msgspec.Struct]] = WordTransformerConfig
    config: WordTransformerConfig

    def __init__(self, config: WordTransformerConfig) -> None:
        super().__init__(config)
        self.transformer = Transformer(config.transformer)
        for layer in self.transformer.layers:
            for name in ("attention_scale", "feed_forward_scale"):
                setattr(layer, name, DroppedSum(getattr(layer, name), config.dropout))
        self.dropout = nn.Dropout(config.dropout)
        width = config.transformer.width
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(
            width, config.vocabulary, config.cutoffs, config.narrowing
        )
        for weight in self.softmax.parameters():
            # Through all its layers, every word then comes in with the same variance.
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    def forward(self, words: Tensor) -> Tensor:
        hidden = self.hidden(words)
        return self.softmax.log_prob(hidden.flatten(0, 1)).unflatten(0, words.shape)

    def hidden(self, words: Tensor) -> Tensor:
        """What the words up to each one say of the next: [batch, words] -> [..., width]."""
        return self.transformer(self.dropout(self._embedded(words)))

    def nats(self, hidden: Tensor, following: Tensor) -> Tensor:
        """Negative log-likelihoods [predicted] of the words that follow, in nats, in fp32.

        Shape: hidden [batch, words, width], following int64 [batch, words], of which negative ones
        are left out.
        """
        predicted = following >= 0
        found: Tensor = self.softmax(hidden[predicted].float(), following[predicted]).output
        return -found

    def _embedded(self, words: Tensor) -> Tensor:
        flat = words.flatten()
        width = self.config.transformer.width
        vectors = torch.zeros(len(flat), width, device=words.device)
        edges = (0, *self.config.cutoffs, self.config.vocabulary)
        for (first, end), (table, widen) in zip(pairwise(edges), self._bands(), strict=True):
            places = ((flat >= first) & (flat < end)).nonzero()[:, 0]
            band = F.embedding(flat[places] - first, table)
            band = band if widen is None else band @ widen
            vectors = vectors.index_copy(0, places, band.to(vectors.dtype))
        return vectors.unflatten(0, words.shape) * math.sqrt(width)

    def _bands(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Vectors of each band's words, and the product that makes them as wide as the model."""
        yield self.softmax.head.weight[: self.softmax.shortlist_size], None
        tail: list[list[nn.Linear]] = list(self.softmax.tail)  # type: ignore[arg-type]
        for narrow, words in tail:
            yield words.weight, narrow.weight
