"""Transformer layers as flat rows of operations, for live steps on CPU.

Between two layers of a live step their weights pass through the caches and push everything else out
of them, so that every object that Python looks up comes from memory again: modules within modules
took a third of Mimi's steps. Here one function holds what a layer needs, taken from the layer once.
It computes the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.nn.attention import LiveSteps
from sonorant.nn.linear import PackedLinear
from sonorant.nn.norm import LayerScale
from sonorant.nn.state import State

if TYPE_CHECKING:
    from sonorant.nn.transformer import PreNormLayer

LiveLayer = Callable[[Tensor, LiveSteps], Tensor]


def live_layer(layer: PreNormLayer, state: State) -> LiveLayer:
    """The live form of a `PreNormLayer` without cross-attention, writing to this state's rings."""
    attention = layer.attention
    heads, kv_heads, head_dim = attention.heads, attention.key_value_heads, attention.head_dim
    parts, turning = [heads, kv_heads, kv_heads], heads + kv_heads
    keys, values = state[attention].keys, state[attention].values
    attention_norm, in_proj = bare(layer.attention_norm), bare(attention.in_proj)
    out_proj, attention_sum = bare(attention.out_proj), bare(layer.attention_scale)
    feed_forward = layer.feed_forward
    hidden_norm, linear_in = bare(layer.feed_forward_norm), bare(feed_forward.linear_in)
    linear_out, hidden_sum = bare(feed_forward.linear_out), bare(layer.feed_forward_scale)
    activation = feed_forward.activation

    def step(x: Tensor, steps: LiveSteps) -> Tensor:
        batch, length, width = x.shape
        projected = in_proj(attention_norm(x)).view(batch, length, -1, head_dim)
        if steps.rotation is not None:
            steps.rotation.turn_in_place(projected.narrow(2, 0, turning))
        q, k, v = projected.transpose(1, 2).split(parts, 1)
        write = steps.view.write
        y = steps.attend(q, write(keys, k), write(values, v))
        x = attention_sum(x, out_proj(y.transpose(1, 2).reshape(batch, length, width)))
        return hidden_sum(x, linear_out(activation(linear_in(hidden_norm(x)))))

    return step


def bare(module: nn.Module) -> Callable[..., Tensor]:
    """What a module computes, without the module; the module itself where that is unknown."""
    if isinstance(module, PackedLinear):
        return module.forward
    if type(module) is nn.Linear:
        return partial(F.linear, weight=module.weight, bias=module.bias)
    if isinstance(module, nn.LayerNorm):
        norm = partial(F.layer_norm, normalized_shape=list(module.normalized_shape))
        return partial(norm, weight=module.weight, bias=module.bias, eps=module.eps)
    if isinstance(module, LayerScale):
        scale = module.scale
        return lambda x, branch: torch.addcmul(x, branch, scale)
    return module
