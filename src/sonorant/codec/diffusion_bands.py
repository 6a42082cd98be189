"""Levels of frequency bands: towards noise for diffusion, back again, and as in another sound.

Source: Multi-Band Diffusion (arXiv 2308.02560, sections 3.4 and 4.1). Sound has far less energy in
high bands than the white noise that diffusion adds, so noise drowns them first. The equaliser
brings the bands of sound nearer to those of noise before, and takes it back after.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import torch
from torch import Tensor, nn

from sonorant.dsp.filters import lowpass_filters, mel_cutoffs, split_bands
from sonorant.errors import ConfigError

SMALLEST_STD = 1e-12
MATCHED_BANDS = 32


class EqualizerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The defaults are the paper's (section 4.1).

    bands: equally wide in mels.
    power: how far bands go towards those of noise, 0 for not at all, 1 for all the way; one for all
        or one for each.
    sounds: training sounds that the levels are measured of.
    """

    bands: Annotated[int, msgspec.Meta(ge=1)] = 8
    power: float | tuple[float, ...] = 0.4
    sounds: Annotated[int, msgspec.Meta(ge=1)] = 10_000

    def __post_init__(self) -> None:
        if isinstance(self.power, tuple) and len(self.power) != self.bands:
            raise ConfigError(f"{len(self.power)} powers for {self.bands} bands; give one for each")


class BandEqualizer(nn.Module):
    """Scales the bands of sound by what it has learned of their levels.

    Buffers: `sounds` [1], how many it has heard; `sum`, `sum_square` and `noise_sum_square`
    [bands], of each sound's mean and mean square, and of white noise.

    The published equaliser compares the standard deviation of sound with the variance of noise;
    its models were trained so, and so it stays.
    """

    sounds: Tensor
    sum: Tensor
    sum_square: Tensor
    noise_sum_square: Tensor

    def __init__(self, config: EqualizerConfig, sample_rate: int) -> None:
        super().__init__()
        self.config = config
        self.sample_rate = sample_rate
        self.register_buffer("sounds", torch.zeros(1))
        for name in ("sum", "sum_square", "noise_sum_square"):
            self.register_buffer(name, torch.zeros(config.bands))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Learn from sounds `[batch, channels, time]`, until it has heard enough."""
        if bool(self.sounds >= self.config.sounds):
            return
        bands, noise = self._split(x), self._split(torch.randn_like(x))
        self.sounds += len(x)
        self.sum += bands.mean(dim=(2, 3)).sum(dim=1)
        self.sum_square += bands.square().mean(dim=(2, 3)).sum(dim=1)
        self.noise_sum_square += noise.square().mean(dim=(2, 3)).sum(dim=1)

    def to_diffusion(self, x: Tensor) -> Tensor:
        """Sound `[batch, channels, time]` with its bands nearer to those of noise."""
        mean, std, target = self._levels()
        scale = (target / std.clamp(min=SMALLEST_STD)) ** self._power(x)
        return ((self._split(x) - mean) * scale).sum(dim=0)

    def to_sound(self, x: Tensor) -> Tensor:
        """The inverse, as far as bands do not overlap."""
        mean, std, target = self._levels()
        scale = (std / target) ** self._power(x)
        return (self._split(x) * scale + mean).sum(dim=0)

    def filters(self) -> Tensor:
        """Its low-pass filters `[bands - 1, 1, taps]`."""
        cutoffs = mel_cutoffs(self.config.bands, self.sample_rate)
        return lowpass_filters(tuple(hz / self.sample_rate for hz in cutoffs))[:, None].clone()

    def _levels(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, standard deviation and target, each `[bands, 1, 1, 1]`."""
        if not bool(self.sounds):
            raise ConfigError("the equaliser has heard no sound yet; let it observe some first")
        mean = self.sum / self.sounds
        variance = self.sum_square / self.sounds - mean.square()
        target = self.noise_sum_square / self.sounds
        std = variance.clamp(min=0).sqrt()
        levels = (values.view(-1, 1, 1, 1) for values in (mean, std, target))
        mean, std, target = levels
        return mean, std, target

    def _power(self, x: Tensor) -> Tensor:
        return x.new_tensor(self.config.power).reshape(-1, 1, 1, 1)

    def _split(self, x: Tensor) -> Tensor:
        return split_bands(x, self.sample_rate, n_bands=self.config.bands)


def match_bands(
    x: Tensor,
    reference: Tensor,
    sample_rate: int,
    bands: int = MATCHED_BANDS,
    strictness: float = 1.0,
    together: bool = False,
) -> Tensor:
    """x `[batch, channels, time]` with the level of the reference in every band.

    bands: equally wide in mels. strictness: 0 changes nothing, 1 takes over the level. together:
    one level for the whole batch, as published, so that sounds change with what stands beside them.
    """
    ours = split_bands(x, sample_rate, n_bands=bands)
    theirs = split_bands(reference, sample_rate, n_bands=bands)
    dims = (1, 2, 3) if together else (2, 3)
    ratio = _std(theirs, dims) / _std(ours, dims).clamp(min=SMALLEST_STD)
    return (ours * ratio**strictness).sum(dim=0)


def _std(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.std(dim=dims, keepdim=True)
