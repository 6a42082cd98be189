"""How loud the error of a sound is beside the sound, per mel band.

Source: Multi-Band Diffusion (arXiv 2308.02560, section 4.3), there called Mel-SNR with the opposite
sign.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec
from torch import Tensor

from sonorant.dsp.mel import mel_spectrogram
from sonorant.dsp.stft import stft
from sonorant.errors import ConfigError
from sonorant.losses.spectral import check_same_shape

Count = Annotated[int, msgspec.Meta(ge=1)]
ERROR_FLOOR_DB = -120.0
SMALLEST_ENERGY = 1e-24
"""Far below the floors in decibels; the square root has no gradient at zero."""


class RelativeVolumeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The defaults are the published ones.

    Sounds are scaled to the reference's volume, with a gain of at most `max_gain_db`. Bands of the
    reference count as at least `floor_db` loud; the result is kept from min_db to max_db.
    groups: of equally many neighbouring bands, reported apart.
    """

    mels: Count = 80
    n_fft: Count = 512
    hop_length: Count = 128
    f_min_hz: float = 0.0
    f_max_hz: float | None = None
    normalized: bool = True
    max_gain_db: float = 25.0
    floor_db: float = -25.0
    min_db: float = -25.0
    max_db: float = 25.0
    groups: Count = 4

    def __post_init__(self) -> None:
        if self.mels % self.groups:
            raise ConfigError(f"{self.mels} mel bands do not divide into {self.groups} groups")


class RelativeVolume(NamedTuple):
    """Decibels, lower is better: the mean, and the means of the groups `[groups]`, lowest first."""

    mean: Tensor
    groups: Tensor


PUBLISHED_RELATIVE_VOLUME = RelativeVolumeConfig()


def relative_volume(
    prediction: Tensor,
    target: Tensor,
    sample_rate: int,
    config: RelativeVolumeConfig = PUBLISHED_RELATIVE_VOLUME,
) -> RelativeVolume:
    """Volume of the error relative to the target, in dB, of sounds `[batch, channels, time]`.

    Raises: ShapeError for sound no longer than half an n_fft, or of different shapes.
    """
    check_same_shape(prediction, target)
    volume = target.square().mean().sqrt().clamp(min=_from_db(-config.max_gain_db))
    ours, theirs = (_mel(x / volume, sample_rate, config) for x in (prediction, target))
    error_db = _to_db((theirs - ours).abs(), ERROR_FLOOR_DB)
    relative_db = error_db - _to_db(theirs, config.floor_db)
    bands = relative_db.clamp(config.min_db, config.max_db).transpose(-2, -1)
    groups = bands.reshape(-1, config.groups, config.mels // config.groups).mean(dim=(0, 2))
    return RelativeVolume(groups.mean(), groups)


def _mel(x: Tensor, sample_rate: int, config: RelativeVolumeConfig) -> Tensor:
    """Square root of the energy mel spectrogram `[batch, channels, mels, frames]`."""
    spectrum = stft(x, config.n_fft, config.hop_length, normalized=config.normalized)
    energy = mel_spectrogram(
        spectrum, sample_rate, config.mels, config.f_min_hz, config.f_max_hz, power=2
    )
    return energy.clamp(min=SMALLEST_ENERGY).sqrt()


def _to_db(volume: Tensor, floor_db: float) -> Tensor:
    return 20 * volume.clamp(min=_from_db(floor_db)).log10()


def _from_db(decibels: float) -> float:
    return 10 ** (decibels / 20)
