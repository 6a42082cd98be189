"""Augmentations of stems, from which a step's mixtures are then summed.

Stems are `[batch, sources, channels, time]`. Every function draws anew for each item and source
unless it says otherwise, from `generator` (on the CPU; torch's own where it is None).
Source: Demucs (arXiv 1911.13254, section 5.2) for shift, flips, scale and remix; Hybrid Demucs
(arXiv 2111.03600, section 4) for their order.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import torch
from torch import Tensor

from sonorant.errors import ConfigError, ShapeError

Natural = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Augmentation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is done to a batch of stems in training, in the order of Demucs v3 and v4.

    shift_samples: each stem begins up to that much later, and all lose that much length.
    shift_together: the stems of an item begin together.
    flip_channels, flip_signs: on or off.
    scale: lowest and highest gain; None for no scaling. scale_probability: of scaling a batch.
    remix_group: stems trade places within that many items; 0 for no remix, which leaves songs
        whole. remix_probability: of remixing a batch.
    signs_before_channels: the order of Demucs v2.
    Raises: ConfigError for a range of gains that is none.
    """

    shift_samples: Natural = 44_100
    shift_together: bool = False
    flip_channels: bool = True
    flip_signs: bool = True
    scale: tuple[float, float] | None = (0.25, 1.25)
    scale_probability: Share = 1.0
    remix_group: Natural = 4
    remix_probability: Share = 1.0
    signs_before_channels: bool = False

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 <= self.scale[0] <= self.scale[1]:
            raise ConfigError(f"scale goes from low to high gains, not {self.scale}")


def augment(
    stems: Tensor, config: Augmentation, generator: torch.Generator | None = None
) -> Tensor:
    """Augmented stems `[batch, sources, channels, time - shift_samples]`; their sum is the mixture.

    Raises: ShapeError if the batch cannot be shifted or remixed so.
    """
    stems = shift(stems, config.shift_samples, config.shift_together, generator)
    flips = [flip_channels] * config.flip_channels + [flip_signs] * config.flip_signs
    for flip in reversed(flips) if config.signs_before_channels else flips:
        stems = flip(stems, generator)
    if config.scale is not None and _happens(config.scale_probability, generator):
        stems = scale(stems, *config.scale, generator)
    if config.remix_group and _happens(config.remix_probability, generator):
        stems = remix(stems, config.remix_group, generator)
    return stems


def shift(
    stems: Tensor, samples: int, together: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """Drop 0 to `samples` - 1 samples at the start, and the rest of `samples` at the end.

    together: one draw for all sources of an item. Raises: ShapeError if no sample would be left.
    """
    batch, sources, channels, time = stems.shape
    if not samples:
        return stems
    if samples >= time:
        raise ShapeError(f"stems of {time} samples cannot be shifted by up to {samples}")
    size = (batch, 1 if together else sources, 1, 1)
    offsets = torch.randint(samples, size, generator=generator).to(stems.device)
    positions = offsets + torch.arange(time - samples, device=stems.device)
    return stems.gather(3, positions.expand(-1, sources, channels, -1))


def flip_channels(stems: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Swap left and right of every second stem, by chance; what is not stereo stays as it is."""
    batch, sources, channels, time = stems.shape
    if channels != 2:
        return stems
    left = torch.randint(2, (batch, sources, 1, 1), generator=generator).to(stems.device)
    return stems.gather(2, torch.cat([left, 1 - left], 2).expand(-1, -1, -1, time))


def flip_signs(stems: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Turn every second stem upside down, by chance."""
    size = (*stems.shape[:2], 1, 1)
    signs = torch.randint(2, size, generator=generator, dtype=torch.float32).to(stems.device)
    return stems * (2 * signs - 1)


def scale(
    stems: Tensor, low: float, high: float, generator: torch.Generator | None = None
) -> Tensor:
    """Give each stem a gain, uniform from `low` to `high`."""
    gains = torch.empty(*stems.shape[:2], 1, 1).uniform_(low, high, generator=generator)
    return stems * gains.to(stems.device)


def remix(stems: Tensor, group: int, generator: torch.Generator | None = None) -> Tensor:
    """Trade stems between the items of each group of `group`: one permutation for each source.

    Raises: ShapeError if the batch is not made of such groups.
    """
    batch, sources, _, _ = stems.shape
    if batch % group:
        raise ShapeError(
            f"a batch of {batch} cannot be remixed in groups of {group}; "
            "choose a batch size that is a multiple of the group"
        )
    draws = torch.rand(batch // group, group, sources, 1, 1, generator=generator)
    order = draws.argsort(dim=1).to(stems.device)
    groups = stems.unflatten(0, (-1, group))
    return groups.gather(1, order.expand_as(groups)).flatten(0, 1)


def without_chance(stems: Tensor, config: Augmentation) -> Tensor:
    """Stems as `augment` cuts them, but not changed otherwise: for evaluation."""
    return stems[..., : stems.shape[-1] - config.shift_samples]


def _happens(probability: float, generator: torch.Generator | None) -> bool:
    """A draw, which certainty does without."""
    return probability >= 1 or float(torch.rand((), generator=generator)) < probability
