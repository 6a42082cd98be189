"""Residual vector quantizer with codebooks learned by moving averages.

Source: EnCodec (arXiv 2210.13438, section 3.3), after SoundStream. Every level replaces what the
levels before left over by the nearest of its codewords. Codewords are moving averages of the
vectors assigned to them; codewords that nothing uses are replaced by vectors of the batch.

Three published trainings differ in details, each a field of `QuantizerConfig`. In the EnCodec and
AudioCraft packages the replaced codewords are overwritten again within the same step, so that the
replacement has no effect; here it takes effect, as in Mimi.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.errors import ConfigError


class QuantizerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes and training rules of a residual quantizer.

    decay, epsilon: of the moving averages (EnCodec section 3.3: 0.99).
    smoothing: `laplace` adds epsilon to every usage (EnCodec), `clamp` only bounds it (Mimi).
    commitment: which levels pull the encoder towards their codewords; the EnCodec package lets only
        the first do so, the others all.
    dead_code_share: a codeword used less than this share of the mean usage is replaced
        (Mimi: 0.1, arXiv 2410.00037 section 3.3.1); 0 replaces none.
    """

    dimension: int = 128
    codebooks: int = 32
    codebook_size: int = 1024
    decay: float = 0.99
    epsilon: float = 1e-5
    smoothing: Literal["laplace", "clamp"] = "laplace"
    commitment: Literal["every_level", "first_level"] = "every_level"
    dead_code_share: float = 0.1
    kmeans_iterations: int = 50


class Codebook(nn.Module):
    """One level: `size` codewords and how much each is used.

    Buffers: `embed` [size, dimension], the codewords; `embed_sum` and `usage` [size], the moving
    averages they come from; `initialized` [1]. A checkpoint may hold `embed` alone.
    """

    training_buffers: ClassVar[tuple[str, ...]] = ("embed_sum", "usage", "initialized")
    """Training goes on from these; no token or sound depends on them."""
    embed: Tensor
    embed_sum: Tensor
    usage: Tensor
    initialized: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        size, dimension = config.codebook_size, config.dimension
        self.register_buffer("embed", torch.zeros(size, dimension))
        self.register_buffer("embed_sum", torch.zeros(size, dimension))
        self.register_buffer("usage", torch.zeros(size))
        self.register_buffer("initialized", torch.zeros(1))
        self._offsets: tuple[Tensor, int, Tensor] | None = None

    def encode(self, x: Tensor) -> Tensor:
        """Index of the nearest codeword, the first of equals.

        Shape: x [vectors, dimension] -> int64 [vectors].
        """
        embed = self.embed
        likeness = torch.addmm(self._search_offsets(embed), x, embed.t())
        return likeness.max(dim=-1).indices  # quicker on CPU than argmax

    def decode(self, tokens: Tensor) -> Tensor:
        """Codewords `[..., dimension]` of tokens `[...]`."""
        return F.embedding(tokens, self.embed)

    def lay_out_for_search(self) -> None:
        """Store the codewords dimension by dimension, on CPU; values and shape stay.

        The product with a single vector, of which live steps search the codewords, then takes half
        the time.
        """
        if self.embed.device.type == "cpu" and self.embed.is_contiguous():
            self.embed.data = self.embed.data.t().contiguous().t()

    def _search_offsets(self, embed: Tensor) -> Tensor:
        """Minus half the square norms of the codewords; kept while these stay the same."""
        if embed.is_inference():  # has no version to tell changes by
            return -0.5 * embed.pow(2).sum(dim=-1)
        kept = self._offsets
        if kept is None or kept[0] is not embed or kept[1] != embed._version:
            kept = (embed, embed._version, -0.5 * embed.pow(2).sum(dim=-1))
            self._offsets = kept
        return kept[2]

    @torch.no_grad()
    def initialize(self, x: Tensor, vectors_per_step: int | None = None) -> None:
        """Start the codewords from k-means over `x` [vectors, dimension], unless they have a start.

        Every rank takes the first's. `vectors_per_step` says how many a training step brings, where
        that differs from `x`, so that the moving averages begin at their usual level.

        The published packages start the running sum at the means, not at means times counts, which
        throws the first update off; here sum and usage agree from the start.
        """
        if bool(self.initialized):
            return
        means, counts = kmeans(x, self.config.codebook_size, self.config.kmeans_iterations)
        if vectors_per_step is not None:
            counts *= vectors_per_step / len(x)
        elif dist.is_initialized():
            counts *= dist.get_world_size()  # a training step counts the vectors of all ranks
        if dist.is_initialized():
            dist.broadcast(means, 0)
            dist.broadcast(counts, 0)
        self.embed.copy_(means)
        self.embed_sum.copy_(means * counts[:, None])
        self.usage.copy_(counts)
        self.initialized.fill_(1)

    @torch.no_grad()
    def learn(self, x: Tensor, tokens: Tensor) -> None:
        """Move the codewords towards the vectors `[vectors, dimension]` assigned to them."""
        counts = torch.bincount(tokens, minlength=len(self.embed)).to(x.dtype)
        sums = torch.zeros_like(self.embed).index_add_(0, tokens, x)
        if dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.usage.lerp_(counts, 1 - self.config.decay)
        self.embed_sum.lerp_(sums, 1 - self.config.decay)
        self.embed.copy_(self.embed_sum / self._smoothed_usage()[:, None])
        self._replace_dead_codes(x)

    def _smoothed_usage(self) -> Tensor:
        epsilon = self.config.epsilon
        if self.config.smoothing == "clamp":
            return self.usage.clamp(min=epsilon)
        total = self.usage.sum()
        return (self.usage + epsilon) / (total + len(self.usage) * epsilon) * total

    def _replace_dead_codes(self, x: Tensor) -> None:
        mean_usage = self.usage.mean()
        dead = self.usage < self.config.dead_code_share * mean_usage
        vectors = draw_vectors(x, len(self.embed))
        if dist.is_initialized():
            dist.broadcast(vectors, 0)
        self.embed.copy_(torch.where(dead[:, None], vectors, self.embed))
        self.embed_sum.copy_(torch.where(dead[:, None], vectors * mean_usage, self.embed_sum))
        self.usage.copy_(torch.where(dead, mean_usage, self.usage))

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Complete a checkpoint that holds the codewords only, as shipped models do."""
        embed = state_dict.get(prefix + "embed")
        if embed is not None and not any(
            prefix + name in state_dict for name in self.training_buffers
        ):
            state_dict[prefix + "embed_sum"] = embed.clone()
            state_dict[prefix + "usage"] = torch.ones_like(embed[:, 0])
            state_dict[prefix + "initialized"] = torch.ones_like(embed[0, :1])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class ResidualQuantizer(nn.Module):
    """Latents to tokens and back, level by level.

    In training mode `forward` also learns the codebooks; its random draws (k-means start,
    replacement vectors) come from torch's global generator.
    """

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Codebook(config) for _ in range(config.codebooks))

    def encode(self, latent: Tensor, codebooks: int | None = None) -> Tensor:
        """Shape: latent [batch, dimension, frames] -> tokens int64 [batch, codebooks, frames]."""
        batch, _, frames = latent.shape
        residual = latent.transpose(1, 2).flatten(0, 1)
        tokens = []
        for layer in self._levels(codebooks):
            nearest = layer.encode(residual)
            residual = residual - layer.decode(nearest)
            tokens.append(nearest.view(batch, frames))
        return torch.stack(tokens, dim=1)

    def decode(self, tokens: Tensor) -> Tensor:
        """Shape: tokens [batch, codebooks, frames] -> latent [batch, dimension, frames]."""
        levels = self._levels(tokens.shape[1])
        latent = levels[0].decode(tokens[:, 0])
        for level, layer in enumerate(levels[1:], start=1):
            latent = latent + layer.decode(tokens[:, level])
        return latent.transpose(1, 2)

    def forward(
        self, latent: Tensor, codebooks: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise with gradients, and learn the codebooks in training mode.

        Returns the quantised latent `[batch, dimension, frames]`, whose gradient passes to the
        latent unchanged (straight through), the tokens `[batch, codebooks, frames]`, and the
        commitment penalty: the mean over levels of the squared distance to the codewords.
        """
        batch, _, frames = latent.shape
        vectors = latent.transpose(1, 2).flatten(0, 1)
        residual = vectors
        quantized = torch.zeros_like(vectors)
        tokens, penalties = [], []
        for layer in self._levels(codebooks):
            if self.training:
                layer.initialize(residual.detach())
            nearest = layer.encode(residual.detach())
            codewords = layer.decode(nearest).detach()
            penalties.append(F.mse_loss(residual, codewords))
            if self.training:
                layer.learn(residual.detach(), nearest)
            quantized = quantized + codewords
            residual = residual - codewords
            if self.config.commitment == "first_level":
                residual = residual.detach()
            tokens.append(nearest.view(batch, frames))
        through = vectors + (quantized - vectors).detach()
        return (
            through.view(batch, frames, -1).transpose(1, 2),
            torch.stack(tokens, dim=1),
            torch.stack(penalties).mean(),
        )

    def residuals(self, latent: Tensor, tokens: Tensor) -> Tensor:
        """What each level is given to quantise: the latent less the codewords of the levels before.

        Shape: latent [batch, dimension, frames], tokens [batch, codebooks, frames] -> [batch,
        codebooks, dimension, frames]. Gradients reach the latent, not the codewords.
        """
        residuals = [latent]
        for level, layer in enumerate(self._levels(tokens.shape[1])[:-1]):
            codewords = layer.decode(tokens[:, level]).detach().transpose(1, 2)
            residuals.append(residuals[-1] - codewords)
        return torch.stack(residuals, dim=1)

    @torch.no_grad()
    def initialize(self, latents: Tensor, vectors_per_step: int) -> None:
        """Start every level from k-means over what the levels before leave of many latents.

        Shape: latents [batch, dimension, frames].
        """
        residual = latents.transpose(1, 2).flatten(0, 1)
        for layer in self._levels(None):
            layer.initialize(residual, vectors_per_step)
            residual = residual - layer.decode(layer.encode(residual))

    def _levels(self, codebooks: int | None) -> list[Codebook]:
        """The first levels, all when None. Raises: ConfigError beyond what the model has."""
        levels: list[Codebook] = list(self.layers)  # type: ignore[arg-type]
        if codebooks is None:
            return levels
        if not 1 <= codebooks <= len(levels):
            raise ConfigError(f"{codebooks} codebooks asked, but this model has 1 to {len(levels)}")
        return levels[:codebooks]


@torch.no_grad()
def draw_vectors(x: Tensor, count: int) -> Tensor:
    """`count` random rows of `x` [vectors, dimension]: without repeats when there are enough."""
    if len(x) >= count:
        rows = torch.randperm(len(x), device=x.device)[:count]
    else:
        rows = torch.randint(len(x), (count,), device=x.device)
    return x[rows]


@torch.no_grad()
def kmeans(x: Tensor, clusters: int, iterations: int) -> tuple[Tensor, Tensor]:
    """Means `[clusters, dimension]` and counts `[clusters]` of `x` [vectors, dimension].

    Starts from random vectors; a cluster that nothing chooses keeps its mean.
    """
    means = draw_vectors(x, clusters).clone()
    counts = torch.zeros(clusters, dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        nearest = torch.addmm(-0.5 * means.pow(2).sum(dim=-1), x, means.t()).argmax(dim=-1)
        counts = torch.bincount(nearest, minlength=clusters).to(x.dtype)
        sums = torch.zeros_like(means).index_add_(0, nearest, x)
        means = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), means)
    return means, counts


def codebook_perplexity(tokens: Tensor, codebook_size: int) -> Tensor:
    """How many codewords each level uses in effect, `[codebooks]`, between 1 and `codebook_size`.

    exp of the entropy of the token frequencies. Shape: tokens [batch, codebooks, frames].
    """
    entropies = []
    for level in range(tokens.shape[1]):
        counts = torch.bincount(tokens[:, level].flatten(), minlength=codebook_size)
        shares = counts / counts.sum().clamp(min=1)
        entropies.append(-(shares * shares.clamp(min=1e-12).log()).sum())
    return torch.stack(entropies).exp()
