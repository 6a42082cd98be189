"""The entropy model computed operation by operation as the encodec package computes it.

An `.ecdc` file coded with the entropy model opens only where every bit of every probability is the
writer's. `EntropyModel` itself is equal to the published one up to rounding, which is not enough:
it keeps keys and values, where the package keeps the inputs of each layer and projects all of them
again at every frame, and products of other sizes round differently. So this is slow on purpose, and
serves `.ecdc` files alone; our own container has `entropy_exact.py`.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sonorant.codec.entropy_coding import EntropyModel, is_published_kind
from sonorant.errors import ConfigError
from sonorant.nn.positions import sinusoidal
from sonorant.nn.transformer import PreNormLayer


class PublishedProbabilities:
    """Probabilities frame by frame, from a fresh start.

    Raises: ConfigError for a model of another kind than the published ones.
    """

    def __init__(self, model: EntropyModel) -> None:
        config = model.config.transformer
        if not is_published_kind(config):
            raise ConfigError("only entropy models of the published kind can code .ecdc files")
        self._model = model
        self._position = 0
        start = torch.zeros(1, 1, config.width)
        self._pasts = [start] * config.layers

    @torch.no_grad()
    def step(self, previous: Tensor) -> Tensor:
        """Probabilities float32 [codebooks, codebook_size] of the next frame.

        previous: int64 [codebooks], 0 at the start, then 1 + the tokens of the frame before.
        """
        model, config = self._model, self._model.config.transformer
        tables, heads = model.embedding.tables, model.heads
        x = torch.zeros(1, 1, config.width)
        for table, row in zip(tables, previous, strict=False):
            x = x + F.embedding(row[None, None], table)
        position = torch.tensor([[self._position]])
        x = model.norm_in(x) + sinusoidal(position, config.width, config.max_period)
        for index, layer in enumerate(model.transformer.layers):
            x, self._pasts[index] = self._layer(cast(PreNormLayer, layer), x, self._pasts[index])
        self._position += 1
        logits = [
            F.linear(x, weight, bias)
            for weight, bias, _ in zip(heads.weight, heads.bias, previous, strict=False)
        ]
        stacked = torch.stack(logits, dim=1).permute(0, 3, 1, 2)
        return stacked.softmax(dim=1)[0, :, :, 0].t()

    def _layer(self, layer: PreNormLayer, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """One layer's output, and what it remembers of its inputs."""
        context = self._model.config.transformer.context or 1
        seen = torch.cat([past, x], dim=1)
        y = layer.attention_norm(x + self._attend(layer, x, seen[:, -context:]))
        return layer.feed_forward_norm(y + layer.feed_forward(y)), seen[:, 1 - context :]

    def _attend(self, layer: PreNormLayer, x: Tensor, seen: Tensor) -> Tensor:
        attention = layer.attention
        query, memory = x.transpose(0, 1), seen.transpose(0, 1)
        y, _ = F.multi_head_attention_forward(
            query,
            memory,
            memory,
            attention.heads * attention.head_dim,
            attention.heads,
            attention.in_proj.weight,
            attention.in_proj.bias,
            None,
            None,
            False,
            0.0,
            attention.out_proj.weight,
            attention.out_proj.bias,
            training=False,
            need_weights=False,
        )
        return y.transpose(0, 1)
