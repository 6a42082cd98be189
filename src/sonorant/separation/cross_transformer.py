"""The transformer at the bottom of HTDemucs: two sequences that take turns to attend to
themselves and to each other.

Source: "Hybrid Transformers for Music Source Separation" (arXiv 2211.08553), section 3, and the
published package (demucs 4.1.0), whose names and order the attributes have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.errors import ConfigError
from sonorant.nn.attention import OfflineSteps
from sonorant.nn.conv import uses_matrix_form
from sonorant.nn.norm import residual_sum
from sonorant.nn.positions import sinusoidal
from sonorant.separation.blocks import ScaledEmbedding, gelu_of, sinusoidal_grid
from sonorant.separation.sparse_attention import SparseConfig

LAYER_SCALE = 1e-4  # of the residual branches, at first (arXiv 2211.08553, section 4.2)
LEARNED_SPREAD = 0.2  # deviation of learned positions, at first, before they are boosted
LEARNED_BOOST = 3.0
MANY_STEPS = 1024  # fewer are as quick in a matrix product (measured)

PositionName = Literal["sin", "cape", "scaled"]


class CrossTransformerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The transformer of HTDemucs. The defaults are those of the published package.

    hidden_scale: width between the products of the feed-forward parts, as a multiple.
    cross_first: begin with attention to each other.
    layer_scale: learn a factor per channel of each branch. gelu: or ReLU.
    norm_first: normalise what goes into a branch; otherwise the sums. norm_out_groups: with
        norm_first, also what a layer gives, in so many groups, over all steps; 0 for not.
    norm_in: normalise every step of what comes in; otherwise norm_in_groups as for norm_out.
    group_norm_groups: such norms in place of those within the layers; 0 for layer norms.
    position: of the sound's steps: `sin`; `cape`, sines that training shifts and stretches; or
        `scaled`, learned. Those of the spectrum are always sines.
    position_weight: factor of the positions. max_steps: of learned ones. random_shift: the sines
        begin up to so many steps later.
    cape_centred, cape_augment: `cape` counts from the middle; training changes it by up to
        cape_ranges: a shift of all steps, one of each, and a factor.
    """

    layers: int = 5
    heads: int = 8
    hidden_scale: float = 4.0
    dropout: float = 0.0
    cross_first: bool = False
    layer_scale: bool = True
    gelu: bool = True
    norm_first: bool = True
    norm_in: bool = True
    norm_in_groups: int = 0
    group_norm_groups: int = 0
    norm_out_groups: int = 1
    position: PositionName = "sin"
    max_period: float = 10000.0
    position_weight: float = 1.0
    max_steps: int = 10000
    random_shift: int = 0
    cape_centred: bool = True
    cape_augment: bool = True
    cape_ranges: tuple[float, float, float] = (5000.0, 1.0, 1.4)
    sparse: SparseConfig = SparseConfig()


class CrossTransformer(nn.Module):
    """Layers over the tokens of a spectrum and of a sound, `layers` and `layers_t`.

    Shape: x [batch, width, bins, frames] and xt [batch, width, steps] -> the same two.
    Raises: ConfigError if the width does not divide into heads or positions.
    """

    def __init__(self, width: int, config: CrossTransformerConfig) -> None:
        super().__init__()
        if width % config.heads or width % 4:
            raise ConfigError(
                f"a transformer of width {width} does not divide into {config.heads} heads "
                "and 4 parts of positions; choose other channels, bottom_channels or heads"
            )
        self.config = config
        if config.position == "scaled":
            self.position_embeddings = ScaledEmbedding(config.max_steps, width, LEARNED_BOOST)
            with torch.no_grad():
                self.position_embeddings.embedding.weight *= LEARNED_SPREAD
        self.norm_in = _norm_in(width, config)
        self.norm_in_t = _norm_in(width, config)
        self.layers, self.layers_t = nn.ModuleList(), nn.ModuleList()
        for index in range(config.layers):
            crosses = (index % 2 == 0) == config.cross_first
            for branch in (self.layers, self.layers_t):
                branch.append(TransformerLayer(width, config, crosses))

    def forward(self, x: Tensor, xt: Tensor) -> tuple[Tensor, Tensor]:
        config, (_, width, bins, frames) = self.config, x.shape
        grid = sinusoidal_grid(width, bins, frames, config.max_period).to(x)
        x = self.norm_in(_tokens(x)) + config.position_weight * _tokens(grid[None])
        xt = self.norm_in_t(xt.transpose(1, 2))
        xt = xt + config.position_weight * self._positions(xt)
        for layer, layer_t in zip(self.layers, self.layers_t, strict=True):
            x, xt = layer(x, xt), layer_t(xt, x)
        return x.transpose(1, 2).unflatten(2, (frames, bins)).transpose(2, 3), xt.transpose(1, 2)

    def _positions(self, xt: Tensor) -> Tensor:
        """Of the sound's steps [batch, steps, width]; one row where all items have the same."""
        config, (batch, steps, width) = self.config, xt.shape
        at = torch.arange(steps, device=xt.device)[None]
        if config.position == "scaled":
            learned: Tensor = self.position_embeddings(at)
            return learned
        if config.position == "cape":
            at = at.to(xt.dtype) - (steps - 1) / 2 * config.cape_centred
            if self.training and config.cape_augment:
                at = _augmented(at.expand(batch, -1), *config.cape_ranges)
        elif config.random_shift:
            at = at + torch.randint(config.random_shift + 1, (), device=xt.device)
        return sinusoidal(at, width, config.max_period).to(xt.dtype)


class TransformerLayer(nn.Module):
    """Attention and a feed-forward part, each added to its input.

    Attention goes to the own sequence, or to the other where the layer `crosses`.
    Shape: x [batch, steps, width], other [batch, other steps, width] -> like x.
    """

    def __init__(self, width: int, config: CrossTransformerConfig, crosses: bool) -> None:
        super().__init__()
        self.crosses, self.norm_first = crosses, config.norm_first
        self.activation: Callable[[Tensor], Tensor] = gelu_of if config.gelu else F.relu
        sparse = config.sparse
        is_sparse = sparse.in_cross_attention if crosses else sparse.in_self_attention
        attention = (
            SparseAttention(width, config.heads, config.dropout, sparse)
            if is_sparse
            else Attention(width, config.heads, config.dropout)
        )
        if crosses:
            self.cross_attn = attention
        else:
            self.self_attn = attention
        hidden = int(width * config.hidden_scale)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm1 = _norm(width, config.group_norm_groups)
        self.norm2 = _norm(width, config.group_norm_groups)
        if crosses:
            self.norm3 = _norm(width, config.group_norm_groups)
        self.norm_out: nn.Module = nn.Identity()
        if config.norm_first and config.norm_out_groups:
            self.norm_out = TokenGroupNorm(config.norm_out_groups, width)
        scale = LAYER_SCALE if config.layer_scale else None
        self.gamma_1 = residual_sum(width, scale)
        self.gamma_2 = residual_sum(width, scale)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        if not self.norm_first:
            x = self.norm1(self.gamma_1(x, self._attend(x, other if self.crosses else x)))
            summed: Tensor = self.norm2(self.gamma_2(x, self._feed_forward(x)))
            return summed
        own = self.norm1(x)
        x = self.gamma_1(x, self._attend(own, self.norm2(other) if self.crosses else own))
        norm = self.norm3 if self.crosses else self.norm2
        result: Tensor = self.norm_out(self.gamma_2(x, self._feed_forward(norm(x))))
        return result

    def _attend(self, x: Tensor, memory: Tensor) -> Tensor:
        attention = self.cross_attn if self.crosses else self.self_attn
        result: Tensor = self.dropout(attention(x, memory))
        return result

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.activation(_product(self.linear1, x)))
        return self.dropout(_product(self.linear2, hidden))


class Attention(nn.Module):
    """Multi-head attention, its projections of queries, keys and values in one matrix.

    Shape: x [batch, steps, width], memory [batch, memory_steps, width] -> like x.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if memory is x:
            q, k, v = linear_of_many(x, weight, bias).chunk(3, dim=-1)
        else:
            width = x.shape[-1]
            q = linear_of_many(x, weight[:width], bias[:width])
            k, v = linear_of_many(memory, weight[width:], bias[width:]).chunk(2, dim=-1)
        return _product(self.out_proj, attend(q, k, v, self.heads, self._dropout()))

    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0


class SparseAttention(nn.Module):
    """The same with a matrix for each projection, and only a part of the pairs seen."""

    def __init__(self, width: int, heads: int, dropout: float, sparse: SparseConfig) -> None:
        super().__init__()
        self.heads, self.dropout, self.sparse = heads, dropout, sparse
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(memory), self.v(memory)
        dropout = self.dropout if self.training else 0.0
        result: Tensor = self.proj(attend(q, k, v, self.heads, dropout, self.sparse))
        return result


def linear_of_many(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer over many steps, quicker on several processor cores where no gradient is due.

    PyTorch's convolutions share their products out to the cores better than its matrix products do
    (up to 1.3 times the speed on two cores), and x is an image of one row with its channels last.
    Shape: x [batch, steps, in] -> [batch, steps, out].
    """
    steps = x.shape[:-1].numel()
    if steps < MANY_STEPS or x.dtype != torch.float32 or not uses_matrix_form(x):
        return F.linear(x, weight, bias)
    image = x.transpose(1, 2).unsqueeze(2)
    return F.conv2d(image, weight[..., None, None], bias).squeeze(2).transpose(1, 2)


def _product(layer: nn.Module, x: Tensor) -> Tensor:
    """The linear layer, or what has been put in its place, of x."""
    if type(layer) is nn.Linear:
        return linear_of_many(x, layer.weight, layer.bias)
    result: Tensor = layer(x)
    return result


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    dropout: float,
    sparse: SparseConfig | None = None,
) -> Tensor:
    """Attention of q [batch, steps, width] to k and v [batch, memory_steps, width], per head."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    visible = None if sparse is None else sparse.visible(q, k)
    steps = OfflineSteps(visible=visible, dropout=dropout)
    return steps.attend(q, k, v).transpose(1, 2).flatten(2)


class TokenGroupNorm(nn.GroupNorm):
    """Group normalisation over all steps of an item. Shape: [batch, steps, width] -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        if self.num_groups > 1:
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        variance, mean = torch.var_mean(x, dim=(1, 2), correction=0, keepdim=True)
        factor = self.weight * (variance + self.eps).rsqrt()
        return torch.addcmul(self.bias - mean * factor, x, factor)


def _norm(width: int, groups: int) -> nn.Module:
    return TokenGroupNorm(groups, width) if groups else nn.LayerNorm(width)


def _norm_in(width: int, config: CrossTransformerConfig) -> nn.Module:
    if config.norm_in or config.norm_in_groups:
        return _norm(width, 0 if config.norm_in else config.norm_in_groups)
    return nn.Identity()


def _tokens(x: Tensor) -> Tensor:
    """[batch, width, bins, frames] -> [batch, frames * bins, width], bins of a frame together."""
    return x.permute(0, 3, 2, 1).flatten(1, 2)


def _augmented(at: Tensor, shift: float, jitter: float, factor: float) -> Tensor:
    """Positions [batch, steps] shifted and stretched by chance: CAPE (arXiv 2106.03143)."""
    whole, each = torch.empty_like(at[:, :1]), torch.empty_like(at)
    stretch = torch.empty_like(whole).uniform_(-math.log(factor), math.log(factor)).exp()
    return (at + whole.uniform_(-shift, shift) + each.uniform_(-jitter, jitter)) * stretch
