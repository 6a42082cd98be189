"""Losses of a generator and its discriminators, as pure functions of what the latter return.

Every function takes lists over sub-discriminators and averages over them, so that their number
does not change a loss's scale. Real feature maps may be computed without gradients.

Sources: hinge losses of Lim and Ye (arXiv 1705.02894); feature matching of MelGAN
(arXiv 1910.06711); the forms of EnCodec (arXiv 2210.13438, section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sonorant.errors import ShapeError

SILENT_MAP = 1e-8
"""Floor of the mean size of a real feature map, below which it counts as silent."""


def discriminator_loss(real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor]) -> Tensor:
    """Hinge loss of the discriminators: mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake))."""
    return _mean(lambda real, fake: hinge(real) + hinge(-fake), real_logits, fake_logits)


def generator_loss(fake_logits: Sequence[Tensor]) -> Tensor:
    """Linear loss of the generator, - mean D(fake): the published training code's default."""
    return _mean(lambda fake: -fake.mean(), fake_logits)


def hinge_generator_loss(fake_logits: Sequence[Tensor]) -> Tensor:
    """Hinge loss of the generator, mean max(0, 1 - D(fake)): the EnCodec paper's form.

    It leaves alone what already deceives the discriminators.
    """
    return _mean(hinge, fake_logits)


def feature_matching_loss(
    real_features: Sequence[Sequence[Tensor]], fake_features: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Mean |real - fake| of each feature map, averaged over maps."""
    return _mean(lambda real, fake: _mean(F.l1_loss, fake, real), real_features, fake_features)


def relative_feature_matching_loss(
    real_features: Sequence[Sequence[Tensor]], fake_features: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Mean |real - fake| / mean |real| of each feature map: the EnCodec paper's form.

    Loud and quiet maps count alike.
    """
    return _mean(lambda real, fake: _mean(_relative_l1, real, fake), real_features, fake_features)


def hinge(logits: Tensor) -> Tensor:
    """Mean max(0, 1 - logits): how far the logits are from being surely positive."""
    return F.relu(1 - logits).mean()


def _relative_l1(real: Tensor, fake: Tensor) -> Tensor:
    return F.l1_loss(fake, real) / real.detach().abs().mean().clamp(min=SILENT_MAP)


def _mean(loss: Callable[..., Tensor], *lists: Sequence) -> Tensor:
    """Mean of `loss` over corresponding entries of the lists."""
    lengths = {len(entries) for entries in lists}
    if len(lengths) != 1 or 0 in lengths:
        raise ShapeError(
            "real and fake must come from the same sub-discriminators, at least one; "
            f"got lists of {sorted(lengths)} entries"
        )
    return torch.stack([loss(*entries) for entries in zip(*lists, strict=True)]).mean()
