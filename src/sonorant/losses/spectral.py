"""Losses between two sounds: waveform, mel spectrogram, spectrogram, signal to noise.

All take (prediction, target) as `[batch, channels, time]` and return a scalar to be minimised.

Sources: EnCodec (arXiv 2210.13438, section 3.4) for the multi-scale mel loss; Parallel WaveGAN
(arXiv 1910.11480, section 2.2) for the multi-resolution STFT loss; SDR half-baked (arXiv
1811.02508) for SI-SNR.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.dsp.mel import mel_spectrogram
from sonorant.dsp.stft import stft
from sonorant.errors import ConfigError, ShapeError
from sonorant.nn.conv import pad_time

Count = Annotated[int, msgspec.Meta(ge=1)]
EPSILON = torch.finfo(torch.float32).eps
"""Guard of quotients and logarithms in the published STFT and SI-SNR losses."""
SMALLEST_POWER = 1e-7
"""Floor of |STFT|^2 in the published STFT loss."""


def l1_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean |prediction - target| of the samples."""
    check_same_shape(prediction, target)
    return F.l1_loss(prediction, target)


class MelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One mel spectrogram of the codec losses; the defaults are the published trainer's.

    normalized: divide the STFT by sqrt(sum window^2). f_max_hz: None for half the sample rate.
    floor: added before the logarithm.
    """

    mels: Count = 64
    f_min_hz: float = 64.0
    f_max_hz: float | None = None
    normalized: bool = True
    floor: float = 1e-5


PLAIN_MEL = MelConfig(normalized=False)


def loss_mel(x: Tensor, sample_rate: int, n_fft: int, hop_length: int, config: MelConfig) -> Tensor:
    """Energy mel spectrogram `[batch, channels, mels, frames]` with ceil(time / hop) frames.

    The sound is reflected (n_fft - hop) / 2 samples at both ends, and filled up with zeros to a
    whole last frame. Sound too short to be reflected is filled up with zeros first, so any length
    from one sample works. Raises: ShapeError if x is empty.
    """
    if x.shape[-1] == 0:
        raise ShapeError("cannot compare empty sounds")
    margin = (n_fft - hop_length) // 2
    x = pad_time(x, margin, margin, "reflect")
    frames = math.ceil((x.shape[-1] - n_fft) / hop_length) + 1
    x = F.pad(x, (0, (frames - 1) * hop_length + n_fft - x.shape[-1]))
    spectrum = stft(x, n_fft, hop_length, center=False, normalized=config.normalized)
    return mel_spectrogram(
        spectrum, sample_rate, config.mels, config.f_min_hz, config.f_max_hz, power=2
    )


def mel_l1_loss(
    prediction: Tensor,
    target: Tensor,
    sample_rate: int,
    n_fft: int = 1024,
    hop_length: int = 256,
    config: MelConfig = PLAIN_MEL,
) -> Tensor:
    """Mean difference of log10 mel spectrograms at one scale."""
    check_same_shape(prediction, target)
    ours, theirs = (
        (loss_mel(x, sample_rate, n_fft, hop_length, config) + config.floor).log10()
        for x in (prediction, target)
    )
    return F.l1_loss(ours, theirs)


class MultiScaleMelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Scales of the multi-scale mel loss; the defaults are the published trainer's.

    exponents: n_fft = 2^i for each i, with a hop of a quarter.
    rising_alphas: weight the logarithmic term sqrt(2^i - 1) instead of 1.
    mel.normalized: also divides the loss by the sum of its weights.
    """

    exponents: tuple[Count, ...] = (6, 7, 8, 9, 10)
    rising_alphas: bool = False
    mel: MelConfig = MelConfig()

    def __post_init__(self) -> None:
        if not self.exponents or min(self.exponents) < 3:
            raise ConfigError(f"exponents must be at least 3, got {list(self.exponents)}")


ENCODEC_PAPER_MEL = MultiScaleMelConfig(exponents=(5, 6, 7, 8, 9, 10, 11))
"""Scales of section 3.4. Its formula does not say that the second term is of logarithms; the
authors' trainer does, and so do we."""


class MultiScaleMelLoss(nn.Module):
    """Sum over scales of mean |mel - mel'| + alpha * mean (log10 mel - log10 mel')^2.

    Shape: prediction, target [batch, channels, time] -> scalar; any length from one sample.

    >>> loss = MultiScaleMelLoss(sample_rate=24000)
    >>> loss(torch.zeros(1, 1, 100), torch.zeros(1, 1, 100))
    tensor(0.)
    """

    def __init__(self, sample_rate: int, config: MultiScaleMelConfig | None = None) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.config = config or MultiScaleMelConfig()
        self.alphas = [
            math.sqrt(2**exponent - 1) if self.config.rising_alphas else 1.0
            for exponent in self.config.exponents
        ]

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        check_same_shape(prediction, target)
        return self.distance(self.mels(prediction), self.mels(target))

    def mels(self, x: Tensor) -> list[Tensor]:
        """Mel spectrograms of all scales, to compare several predictions with one target."""
        return [
            loss_mel(x, self.sample_rate, 2**exponent, 2**exponent // 4, self.config.mel)
            for exponent in self.config.exponents
        ]

    def distance(self, prediction: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
        """The loss between two results of `mels`."""
        floor = self.config.mel.floor
        total = prediction[0].new_zeros(())
        for ours, theirs, alpha in zip(prediction, target, self.alphas, strict=True):
            logarithmic = F.mse_loss((ours + floor).log10(), (theirs + floor).log10())
            total = total + F.l1_loss(ours, theirs) + alpha * logarithmic
        return (
            total / sum(alpha + 1 for alpha in self.alphas) if self.config.mel.normalized else total
        )


class STFTConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Resolutions of the STFT loss; the defaults are Parallel WaveGAN's (table 1).

    convergence_weight, magnitude_weight: of the two terms. normalized: divide the STFT by
    sqrt(n_fft).
    """

    n_ffts: tuple[Count, ...] = (1024, 2048, 512)
    hop_lengths: tuple[Count, ...] = (120, 240, 50)
    win_lengths: tuple[Count, ...] = (600, 1200, 240)
    convergence_weight: float = 0.1
    magnitude_weight: float = 0.1
    normalized: bool = False
    epsilon: float = EPSILON

    def __post_init__(self) -> None:
        lengths = {len(self.n_ffts), len(self.hop_lengths), len(self.win_lengths)}
        if len(lengths) != 1 or 0 in lengths:
            raise ConfigError("n_ffts, hop_lengths and win_lengths need one entry per resolution")


WAVEGAN_STFT = STFTConfig()
SINGLE_STFT = STFTConfig(n_ffts=(1024,), hop_lengths=(120,), win_lengths=(600,))


def stft_loss(prediction: Tensor, target: Tensor, config: STFTConfig = WAVEGAN_STFT) -> Tensor:
    """Mean over resolutions of spectral convergence and log-magnitude distance.

    Spectral convergence: ||Y - X|| / ||Y||, Frobenius norms over the whole batch, Y the target's
    magnitudes; distance: mean |ln Y - ln X|.
    Raises: ShapeError for sound no longer than half an n_fft.
    """
    check_same_shape(prediction, target)
    losses = []
    for size in zip(config.n_ffts, config.hop_lengths, config.win_lengths, strict=True):
        ours, theirs = (_magnitudes(x, *size, config) for x in (prediction, target))
        convergence = (theirs - ours).norm() / (theirs.norm() + config.epsilon)
        distance = F.l1_loss((config.epsilon + ours).log(), (config.epsilon + theirs).log())
        losses.append(config.convergence_weight * convergence + config.magnitude_weight * distance)
    return torch.stack(losses).mean()


def _magnitudes(
    x: Tensor, n_fft: int, hop_length: int, win_length: int, config: STFTConfig
) -> Tensor:
    spectrum = stft(x, n_fft, hop_length, win_length)
    power = spectrum.real.square() + spectrum.imag.square()
    if config.normalized:
        power = power / n_fft
    return power.clamp(min=SMALLEST_POWER).sqrt()


def si_snr_loss(
    prediction: Tensor, target: Tensor, segment_samples: int | None = None, overlap: float = 0.5
) -> Tensor:
    """Minus the scale-invariant signal-to-noise ratio, in dB, mean over batch and channels.

    segment_samples: mean over segments of this length instead of the whole sound. One starts every
    segment * (1 - overlap) samples up to the end of the sound, which is filled up with zeros; as
    published, the last may hold little sound and counts like the others. Each segment is taken
    without its mean.
    """
    check_same_shape(prediction, target)
    length = target.shape[-1] if segment_samples is None else segment_samples
    step = length if segment_samples is None else int(length * (1 - overlap))
    if length < 1 or step < 1:
        raise ShapeError(f"no segments of {length} samples every {step} samples")
    estimate, reference = (_centred_segments(x, length, step) for x in (prediction, target))
    epsilon = EPSILON * length
    energy = reference.square().sum(-1, keepdim=True)
    share = (estimate * reference).sum(-1, keepdim=True) / (energy + epsilon)
    signal = share * reference
    noise = estimate - signal
    ratio = (epsilon + signal.square().sum(-1)).log10() - (epsilon + noise.square().sum(-1)).log10()
    return -10 * ratio.mean()


def _centred_segments(x: Tensor, length: int, step: int) -> Tensor:
    """Segments `[batch, channels, segments, length]` without their mean."""
    count = math.ceil(x.shape[-1] / step)
    x = F.pad(x, (0, (count - 1) * step + length - x.shape[-1]))
    segments = x.unfold(-1, length, step)
    return segments - segments.mean(-1, keepdim=True)


def check_same_shape(prediction: Tensor, target: Tensor) -> None:
    """Raises: ShapeError if two sounds cannot be compared."""
    if prediction.shape != target.shape:
        raise ShapeError(
            f"cannot compare sounds of shapes {list(prediction.shape)} and {list(target.shape)}"
        )
    if prediction.numel() == 0:
        raise ShapeError("cannot compare empty sounds")
