"""The entropy model in whole numbers: the same counts on every machine, by any number of threads.

A range coder needs the writer's and the reader's probabilities to be equal to the last bit, and
floating-point sums are not: they depend on the number of threads, the processor and the size of the
product. Quantising the probabilities at the end makes a difference rare, not impossible. So here
everything is quantised before it is summed. Weights and activations are whole numbers of small
steps, held in float64, so that a matrix product of any library adds whole numbers below 2^53 and is
exact in any order; what stands between the products is made of operations that IEEE 754 leaves no
choice in (`exact_functions.py`). One call for many frames therefore equals many calls for one.

Steps: activations 2^-12 within +-256, weights 2^-14 within +-64, logits 2^-10, counts 2^-24. What
lies outside is cut off, for writer and reader alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sonorant.codec.bits import Tokens
from sonorant.codec.entropy_coding import EntropyCore, EntropyModel, is_published_kind
from sonorant.codec.entropy_compact import CompactEntropyModel
from sonorant.codec.exact_functions import (
    Floats,
    exact_cosine,
    exact_frequencies,
    exp_table,
    gelu_table,
)
from sonorant.codec.range_coder import ONE, Counts, RangeDecoder
from sonorant.errors import ConfigError

ACTIVATION = 2.0**12  # steps per unit
WEIGHT = 2.0**14
LARGEST = 2.0**20  # of a quantised activation or weight: 4096 products of two stay below 2^53
CENTRED = 2.0**14
LARGEST_CENTRED = 2.0**22  # 512 squares of these stay below 2^53
LOGIT = 1024
COUNT = 2.0**22
ATTENTION = 2.0**16
GELU_REACH = 8  # beyond it GELU is 0, or its input, to a step of 2^-12
WIDEST, MOST_INPUTS = 512, 4096


@dataclass
class ExactState:
    """What the model remembers of a stream: its position, and keys and values of every layer.

    keys, values: per layer [heads, steps, head_dim].
    """

    position: int = 0
    keys: list[Floats] = field(default_factory=list)
    values: list[Floats] = field(default_factory=list)


class ExactLinear:
    """A linear layer on whole numbers: x [..., inputs] -> [..., outputs], in steps of 2^-26."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = np.ascontiguousarray(_steps(weight, WEIGHT).T)
        self.bias = 0.0 if bias is None else _steps(bias, WEIGHT * ACTIVATION)

    def __call__(self, x: Floats) -> Floats:
        return x @ self.weight + self.bias

    def activations(self, x: Floats) -> Floats:
        """The same, in steps of 2^-12."""
        return _cut(self(x) / WEIGHT)


class ExactNorm:
    """Layer normalisation of whole numbers [..., width]."""

    def __init__(self, norm: Any) -> None:
        self.weight, self.bias = _floats(norm.weight), _floats(norm.bias)
        self.epsilon = norm.eps * CENTRED * CENTRED

    def __call__(self, x: Floats) -> Floats:
        width = x.shape[-1]
        mean = x.sum(axis=-1, keepdims=True) / width
        centred = _cut((x - mean) * (CENTRED / ACTIVATION), LARGEST_CENTRED)
        variance = (centred * centred).sum(axis=-1, keepdims=True) / width
        normal = centred / np.sqrt(variance + self.epsilon)
        normal = normal * self.weight
        return _cut((normal + self.bias) * ACTIVATION)


class ExactLayer:
    """A post-norm layer: attention, then the feed-forward part."""

    def __init__(self, layer: Any) -> None:
        attention, feed_forward = layer.attention, layer.feed_forward
        self.heads, self.head_dim = attention.heads, attention.head_dim
        self.in_proj = ExactLinear(attention.in_proj.weight, attention.in_proj.bias)
        self.out_proj = ExactLinear(attention.out_proj.weight, attention.out_proj.bias)
        self.linear_in = ExactLinear(feed_forward.linear_in.weight, feed_forward.linear_in.bias)
        self.linear_out = ExactLinear(feed_forward.linear_out.weight, feed_forward.linear_out.bias)
        self.attention_norm = ExactNorm(layer.attention_norm)
        self.feed_forward_norm = ExactNorm(layer.feed_forward_norm)

    def project(self, x: Floats) -> Floats:
        """Queries, keys and values [3, heads, steps, head_dim]."""
        projected = self.in_proj.activations(x).reshape(len(x), 3, self.heads, self.head_dim)
        return projected.transpose(1, 2, 0, 3)

    def finish(self, x: Floats, attended: Floats) -> Floats:
        """Everything after attention; attended [heads, steps, head_dim]."""
        joined = attended.transpose(1, 0, 2).reshape(x.shape)
        x = self.attention_norm(x + self.out_proj.activations(joined))
        hidden = _gelu(self.linear_in.activations(x))
        return self.feed_forward_norm(x + self.linear_out.activations(hidden))


class ExactEnds(Protocol):
    """The two ends of an entropy model: what goes into the transformer, what comes of it."""

    def embed(self, previous: Tokens) -> Floats:
        """[frames, codebooks] -> activations [frames, width]."""

    def counts(self, hidden: Floats, tokens: Tokens) -> Counts:
        """Cumulative counts [frames, codebooks, codebook_size] of the tokens of whole frames."""

    def pull(self, hidden: Floats, codebooks: int, decoder: RangeDecoder) -> Tokens:
        """The tokens [codebooks] of one frame, of which `hidden` is [1, width]."""


class ExactPublishedEnds:
    """Those of an `EntropyModel`: all tokens of a frame at once."""

    def __init__(self, model: EntropyModel) -> None:
        self.tables = _steps(model.embedding.tables, ACTIVATION)
        self.weight = _steps(model.heads.weight, WEIGHT)
        self.bias = _steps(model.heads.bias, WEIGHT * ACTIVATION)

    def embed(self, previous: Tokens) -> Floats:
        return self.tables[np.arange(previous.shape[1]), previous].sum(axis=1)

    def counts(self, hidden: Floats, tokens: Tokens) -> Counts:
        codebooks = tokens.shape[1]
        weight = self.weight[:codebooks].reshape(-1, hidden.shape[-1])
        logits = (hidden @ weight.T).reshape(len(hidden), codebooks, -1) + self.bias[:codebooks]
        return cumulative_counts(logits)

    def pull(self, hidden: Floats, codebooks: int, decoder: RangeDecoder) -> Tokens:
        ends = self.counts(hidden, np.zeros((1, codebooks), np.int64))[0]
        return np.array([decoder.pull(row) for row in ends])


class ExactCompactEnds:
    """Those of a `CompactEntropyModel`: each token hears of the coarser ones of its frame."""

    def __init__(self, model: CompactEntropyModel) -> None:
        tables, heads = model.embedding.tables, model.heads
        self.vectors = _steps(tables, ACTIVATION)
        self.likeness = np.ascontiguousarray(_steps(tables, WEIGHT).transpose(0, 2, 1))
        self.widen = _steps(model.embedding.widen.weight, WEIGHT)
        self.from_past = ExactLinear(heads.from_past.weight, heads.from_past.bias)
        self.from_frame = _steps(heads.from_frame.weight, WEIGHT)
        self.narrow = _steps(heads.narrow.weight, WEIGHT)
        self.bias = _steps(heads.bias, WEIGHT * ACTIVATION)

    def embed(self, previous: Tokens) -> Floats:
        codebooks = previous.shape[1]
        vectors = self.vectors[np.arange(codebooks), np.maximum(previous - 1, 0)]
        vectors = vectors * (previous > 0)[..., None]
        widen = self.widen[:codebooks].reshape(-1, self.widen.shape[-1])
        return _cut(vectors.reshape(len(previous), -1) @ widen / WEIGHT)

    def counts(self, hidden: Floats, tokens: Tokens) -> Counts:
        units = self.from_past(hidden)
        parts = []
        for codebook in range(tokens.shape[1]):
            parts.append(self._counts(units, codebook))
            units = units + self._said(tokens[:, codebook], codebook)
        return np.stack(parts, axis=1)

    def pull(self, hidden: Floats, codebooks: int, decoder: RangeDecoder) -> Tokens:
        units = self.from_past(hidden)
        tokens = np.empty(codebooks, np.int64)
        for codebook in range(codebooks):
            tokens[codebook] = decoder.pull(self._counts(units, codebook)[0])
            units = units + self._said(tokens[codebook : codebook + 1], codebook)
        return tokens

    def _counts(self, units: Floats, codebook: int) -> Counts:
        narrow = _cut(_gelu(_cut(units / WEIGHT)) @ self.narrow[codebook] / WEIGHT)
        return cumulative_counts(narrow @ self.likeness[codebook] + self.bias[codebook])

    def _said(self, tokens: Tokens, codebook: int) -> Floats:
        """What these tokens [frames] add to the hidden units of the finer ones."""
        return self.vectors[codebook, tokens] @ self.from_frame[codebook]


class ExactEntropyModel:
    """An entropy model in whole numbers.

    Raises: ConfigError for a kind of model that is not computed in whole numbers, or weights that
    are not finite.
    """

    def __init__(self, model: EntropyCore) -> None:
        _check(model)
        config = model.config.transformer
        self.width, self.context = config.width, config.context
        self.ends: ExactEnds
        if isinstance(model, CompactEntropyModel):
            self.ends = ExactCompactEnds(model)
        else:
            assert isinstance(model, EntropyModel)
            self.ends = ExactPublishedEnds(model)
        self.norm_in = ExactNorm(model.norm_in) if model.config.norm_in else None
        self.layers = [ExactLayer(layer) for layer in model.transformer.layers]
        self.frequencies = exact_frequencies(config.width // 2, config.max_period)

    def start(self) -> ExactState:
        """The state before the first frame: one vector of zeros stands before it."""
        state = ExactState()
        for layer in self.layers:
            _, keys, values = layer.project(np.zeros((1, self.width)))
            state.keys.append(keys)
            state.values.append(values)
        return state

    def hidden(self, previous: Tokens, state: ExactState) -> Floats:
        """What the frames before say of each frame: activations [frames, width].

        previous: int64 [frames, codebooks], the frame before each, 0 or 1 + token.
        """
        x = self.ends.embed(previous)
        if self.norm_in is not None:
            x = self.norm_in(x)
        x = x + self._positions(state.position, len(x))
        visible = self._visible(len(x), state.keys[0].shape[1])
        for index, layer in enumerate(self.layers):
            queries, keys, values = layer.project(x)
            keys = np.concatenate([state.keys[index], keys], axis=1)
            values = np.concatenate([state.values[index], values], axis=1)
            x = layer.finish(x, _attend(queries, keys, values, visible))
            first = max(0, keys.shape[1] - self.context + 1)
            state.keys[index], state.values[index] = keys[:, first:], values[:, first:]
        state.position += len(x)
        return x

    def _positions(self, first: int, count: int) -> Floats:
        turns = np.arange(first, first + count, dtype=np.float64)[:, None] * self.frequencies
        waves = np.concatenate([exact_cosine(turns), exact_cosine(turns - 0.25)], axis=1)
        return _cut(waves * ACTIVATION)

    def _visible(self, steps: int, before: int) -> Floats:
        """1 where a step sees a key, else 0: [steps, before + steps]."""
        age = np.arange(before, before + steps)[:, None] - np.arange(before + steps)
        return ((age >= 0) & (age < self.context)).astype(np.float64)


def cumulative_counts(logits: Floats) -> Counts:
    """Whole numbers that share 2^24 out as the logits say, at least 1 to each symbol.

    Shape: logits in steps of 2^-26 [..., symbols] -> int64 cumulative, the last one 2^24.
    """
    steps = np.floor(logits * (LOGIT / (WEIGHT * ACTIVATION)) + 0.5)
    table = exp_table(LOGIT, COUNT)
    below = steps.max(axis=-1, keepdims=True) - steps
    shares = table[np.minimum(below, len(table) - 1).astype(np.int64)].cumsum(axis=-1)
    symbols = shares.shape[-1]
    return shares * (ONE - symbols) // shares[..., -1:] + np.arange(1, symbols + 1)


def _attend(queries: Floats, keys: Floats, values: Floats, visible: Floats) -> Floats:
    """Softmax attention [heads, steps, head_dim], its weights in whole numbers."""
    scale = LOGIT / (ACTIVATION * ACTIVATION * math.sqrt(queries.shape[-1]))
    scores = np.floor((queries @ keys.transpose(0, 2, 1)) * scale + 0.5)
    table = exp_table(LOGIT, ATTENTION)
    highest = np.where(visible > 0, scores, -np.inf).max(axis=-1, keepdims=True)
    below = np.minimum(np.maximum(highest - scores, 0), len(table) - 1).astype(np.int64)
    weights = table[below] * visible
    return _cut((weights @ values) / weights.sum(axis=-1, keepdims=True))


def _gelu(x: Floats) -> Floats:
    reach = int(GELU_REACH * ACTIVATION)
    index = np.minimum(np.maximum(x, -reach), reach).astype(np.int64) + reach
    inside = gelu_table(int(ACTIVATION), GELU_REACH)[index]
    return np.where(x > reach, x, inside)


def _cut(x: Floats, largest: float = LARGEST) -> Floats:
    """The nearest whole numbers, within limits."""
    whole = np.floor(x + 0.5)
    np.minimum(whole, largest, out=whole)
    return np.maximum(whole, -largest, out=whole)


def _check(model: EntropyCore) -> None:
    """Whether every sum stays exact. Raises: ConfigError."""
    config = model.config.transformer
    if not is_published_kind(config):
        raise ConfigError(
            "an entropy model codes containers only if its transformer is of the published kind: "
            "post-norm, sinusoidal positions, layer norm, GELU, biases, and a context"
        )
    rank = getattr(model.config, "rank", 1)
    if config.width > WIDEST or max(config.hidden, model.config.codebooks * rank) > MOST_INPUTS:
        raise ConfigError(
            f"this entropy model is too wide to be computed exactly; at most {WIDEST} channels and "
            f"sums of {MOST_INPUTS} products are"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in model.parameters()):
        raise ConfigError("this entropy model has weights that are not finite numbers")


def _floats(tensor: Tensor) -> Floats:
    return tensor.detach().cpu().numpy().astype(np.float64)


def _steps(tensor: Tensor, per_unit: float) -> Floats:
    """A tensor in whole steps, within the limit of weights and activations or of their products."""
    return _cut(_floats(tensor) * per_unit, LARGEST * max(1.0, per_unit / WEIGHT))
