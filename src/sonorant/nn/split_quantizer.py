"""Two residual quantizers side by side on the same latent: one for meaning, one for sound.

Source: Mimi (arXiv 2410.00037, section 3.3.2). The semantic part is trained to agree with a speech
model. The acoustic part quantises the latent itself, not what the semantic part left of it, so that
the first token need not serve two masters. Each part works in a space of its own; their outputs are
added.
"""

from __future__ import annotations

import msgspec
import torch
from torch import Tensor, nn

from sonorant.errors import ConfigError
from sonorant.nn.quantizer import QuantizerConfig, ResidualQuantizer


class ProjectedQuantizer(nn.Module):
    """A residual quantizer in a space of its own, with a projection into it and one back.

    Shape: latents [batch, width, frames] outside, [batch, config.dimension, frames] inside.
    """

    def __init__(self, width: int, config: QuantizerConfig) -> None:
        super().__init__()
        self.input_proj = nn.Linear(width, config.dimension, bias=False)
        self.levels = ResidualQuantizer(config)
        self.output_proj = nn.Linear(config.dimension, width, bias=False)

    def encode(self, latent: Tensor, codebooks: int) -> Tensor:
        """Tokens int64 `[batch, codebooks, frames]`."""
        return self.levels.encode(_project(self.input_proj, latent), codebooks)

    def decode(self, tokens: Tensor) -> Tensor:
        """The latent that tokens stand for."""
        return _project(self.output_proj, self.levels.decode(tokens))

    def residuals(self, latent: Tensor, tokens: Tensor) -> Tensor:
        """What each level is given to quantise `[batch, codebooks, config.dimension, frames]`."""
        return self.levels.residuals(_project(self.input_proj, latent), tokens)

    def forward(
        self, latent: Tensor, codebooks: int, bypass: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise with gradients, and learn the codebooks in training mode.

        bypass: rows (bool `[batch]`) that are only projected into the space and back.
        Returns the decoded latent with that bypass, without it, and the commitment penalty.
        """
        inside = _project(self.input_proj, latent)
        quantized, _, penalty = self.levels(inside, codebooks)
        decoded = _project(self.output_proj, quantized)
        if bypass is None:
            return decoded, decoded, penalty
        passed = _project(self.output_proj, inside)
        return torch.where(bypass[:, None, None], passed, decoded), decoded, penalty


class SplitQuantizer(nn.Module):
    """The semantic and the acoustic part.

    Shape: latents [batch, width, frames]; tokens int64 [batch, codebooks, frames], semantic first.
    """

    def __init__(self, width: int, config: QuantizerConfig, semantic_codebooks: int) -> None:
        super().__init__()
        self.codebooks = config.codebooks
        self.semantic_codebooks = semantic_codebooks
        acoustic_codebooks = config.codebooks - semantic_codebooks
        replace = msgspec.structs.replace
        self.semantic = ProjectedQuantizer(width, replace(config, codebooks=semantic_codebooks))
        self.acoustic = ProjectedQuantizer(width, replace(config, codebooks=acoustic_codebooks))

    def encode(self, latent: Tensor, codebooks: int | None = None) -> Tensor:
        """Tokens of the first `codebooks` codebooks, all for None."""
        semantic, acoustic = self._shares(codebooks)
        tokens = self.semantic.encode(latent, semantic)
        if not acoustic:
            return tokens
        return torch.cat([tokens, self.acoustic.encode(latent, acoustic)], dim=1)

    def decode(self, tokens: Tensor) -> Tensor:
        """The latent that tokens of any number of codebooks stand for."""
        semantic, acoustic = self._shares(tokens.shape[1])
        latent = self.semantic.decode(tokens[:, :semantic])
        return latent + self.acoustic.decode(tokens[:, semantic:]) if acoustic else latent

    def forward(
        self, latent: Tensor, codebooks: int | None = None, bypass: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise with gradients, and learn the codebooks in training mode.

        Returns the decoded latent, the semantic part's share of it without any bypass, and the
        commitment penalty, the mean over all levels in use.
        """
        semantic_levels, acoustic_levels = self._shares(codebooks)
        decoded, semantic, penalty = self.semantic(latent, semantic_levels, bypass)
        if not acoustic_levels:
            return decoded, semantic, penalty
        acoustic, _, acoustic_penalty = self.acoustic(latent, acoustic_levels, bypass)
        levels = semantic_levels + acoustic_levels
        penalty = (penalty * semantic_levels + acoustic_penalty * acoustic_levels) / levels
        return decoded + acoustic, semantic, penalty

    def residuals(self, latent: Tensor, tokens: Tensor) -> Tensor:
        """What each level is given to quantise, in the space of its part; see `ResidualQuantizer`.

        Shape: latent [batch, width, frames], tokens [batch, codebooks, frames] -> [batch,
        codebooks, config.dimension, frames].
        """
        semantic, acoustic = self._shares(tokens.shape[1])
        parts = [self.semantic.residuals(latent, tokens[:, :semantic])]
        if acoustic:
            parts.append(self.acoustic.residuals(latent, tokens[:, semantic:]))
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def initialize(self, latents: Tensor, vectors_per_step: int) -> None:
        """Start both parts from k-means over many latents; see `ResidualQuantizer`."""
        for part in (self.semantic, self.acoustic):
            part.levels.initialize(_project(part.input_proj, latents), vectors_per_step)

    def _shares(self, codebooks: int | None) -> tuple[int, int]:
        """How many of the first `codebooks` are semantic, and how many acoustic.

        Raises: ConfigError for none, or more than there are.
        """
        wanted = self.codebooks if codebooks is None else codebooks
        if not 1 <= wanted <= self.codebooks:
            raise ConfigError(f"{wanted} codebooks asked, but this model has 1 to {self.codebooks}")
        semantic = min(wanted, self.semantic_codebooks)
        return semantic, wanted - semantic


def _project(linear: nn.Linear, latent: Tensor) -> Tensor:
    return linear(latent.transpose(1, 2)).transpose(1, 2)
