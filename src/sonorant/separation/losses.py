"""How far estimated stems are from the true ones, for each source, and as one loss.

Source: Demucs (arXiv 1911.13254, section 5.2: L1, and MSE in its ablation) and its package for
weights of sources. Estimates and stems are `[batch, sources, channels, time]`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import torch
from torch import Tensor

from sonorant.errors import ConfigError
from sonorant.losses.spectral import stft_loss

Weight = Annotated[float, msgspec.Meta(ge=0)]


class SeparationLoss(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Weights of the parts of the loss; a part of weight 0 is left out.

    l1, mse: of samples. stft: of spectra at several resolutions (`losses.spectral.stft_loss`), for
        all sources together.
    sources: weight of each source in l1 and mse, which are weighted means; None for equal ones.
    """

    l1: Weight = 1.0
    mse: Weight = 0.0
    stft: Weight = 0.0
    sources: tuple[Weight, ...] | None = None

    def __post_init__(self) -> None:
        if not self.l1 + self.mse + self.stft > 0:
            raise ConfigError("the loss is nothing: one of l1, mse and stft needs a weight above 0")
        if self.sources is not None and not sum(self.sources) > 0:
            raise ConfigError("loss.sources: one source or more needs a weight above 0")


def separation_loss(
    estimates: Tensor, stems: Tensor, config: SeparationLoss
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, [], and its parts for the log, detached."""
    weights = source_weights(config, stems.shape[1])
    parts: dict[str, Tensor] = {}
    if config.l1:
        parts["l1"] = config.l1 * weighted(l1_per_source(estimates, stems), weights)
    if config.mse:
        parts["mse"] = config.mse * weighted(mse_per_source(estimates, stems), weights)
    if config.stft:
        parts["stft"] = config.stft * stft_loss(estimates.flatten(1, 2), stems.flatten(1, 2))
    loss = sum(parts.values(), torch.zeros((), device=stems.device))
    return loss, {name: part.detach() for name, part in parts.items()}


def source_weights(config: SeparationLoss, sources: int) -> Tensor:
    """The weight of each source, `[sources]`."""
    return torch.ones(sources) if config.sources is None else torch.tensor(config.sources)


def l1_per_source(estimates: Tensor, stems: Tensor) -> Tensor:
    """Mean absolute difference, `[sources]`."""
    return (estimates - stems).abs().mean(dim=(2, 3)).mean(dim=0)


def mse_per_source(estimates: Tensor, stems: Tensor) -> Tensor:
    """Mean squared difference, `[sources]`."""
    return (estimates - stems).square().mean(dim=(2, 3)).mean(dim=0)


def rms_per_source(estimates: Tensor, stems: Tensor) -> Tensor:
    """Root mean square of the difference, the mean of it over items, `[sources]`."""
    return (estimates - stems).square().mean(dim=(2, 3)).sqrt().mean(dim=0)


def weighted(per_source: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean over sources, []."""
    weights = weights.to(per_source)
    return (per_source * weights).sum() / weights.sum()
