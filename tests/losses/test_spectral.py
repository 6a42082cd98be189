"""Spectral losses: what they measure, and that gradients stay finite. Values: tests/parity."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sonorant.errors import ConfigError, ShapeError
from sonorant.losses.relative_volume import RelativeVolumeConfig, relative_volume
from sonorant.losses.spectral import (
    ENCODEC_PAPER_MEL,
    MelConfig,
    MultiScaleMelConfig,
    MultiScaleMelLoss,
    STFTConfig,
    l1_loss,
    loss_mel,
    mel_l1_loss,
    si_snr_loss,
    stft_loss,
)

RATE = 8000
SMALL_STFT = STFTConfig(n_ffts=(64, 32), hop_lengths=(16, 8), win_lengths=(48, 32))
SMALL_VOLUME = RelativeVolumeConfig(mels=8, n_fft=64, hop_length=16)
Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES: dict[str, Loss] = {
    "l1": l1_loss,
    "mel": lambda p, t: mel_l1_loss(p, t, RATE, n_fft=64, hop_length=16),
    "multi-scale mel": MultiScaleMelLoss(RATE, ENCODEC_PAPER_MEL),
    "stft": lambda p, t: stft_loss(p, t, SMALL_STFT),
    "si_snr": si_snr_loss,
    "segmented si_snr": lambda p, t: si_snr_loss(p, t, segment_samples=100),
    "relative volume": lambda p, t: relative_volume(p, t, RATE, SMALL_VOLUME).mean,
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@each_loss
def test_a_better_prediction_has_a_lower_loss(loss: Loss) -> None:
    target, error = noise(2, 1, 600), noise(2, 1, 600, seed=1)
    values = [loss(target + gain * error, target) for gain in (0.0, 0.1, 1.0)]
    assert values[0] < values[1] < values[2]


@each_loss
def test_a_step_down_the_gradient_lowers_the_loss(loss: Loss) -> None:
    target = noise(2, 1, 600)
    prediction = noise(2, 1, 600, seed=1).requires_grad_()
    before = loss(prediction, target)
    (gradient,) = torch.autograd.grad(before, prediction)
    after = loss(prediction - 1e-3 * gradient / gradient.norm(), target)
    assert after < before


@each_loss
@pytest.mark.parametrize("loudness", [0.0, 1e-20])
def test_silence_has_finite_gradients(loss: Loss, loudness: float) -> None:
    prediction = (loudness * noise(1, 1, 600)).requires_grad_()
    for target in (torch.zeros(1, 1, 600), noise(1, 1, 600, seed=1), prediction.detach()):
        value = loss(prediction, target)
        (gradient,) = torch.autograd.grad(value, prediction)
        assert value.isfinite()
        assert gradient.isfinite().all()


@each_loss
@pytest.mark.parametrize("lengths", [(600, 599), (0, 0)])
def test_sounds_that_cannot_be_compared_are_refused(loss: Loss, lengths: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match="cannot compare"):
        loss(noise(1, 1, lengths[0]), noise(1, 1, lengths[1]))


@settings(max_examples=30, deadline=None)
@given(time=st.integers(1, 400), exponent=st.integers(3, 8))
def test_mel_of_any_length_has_a_frame_per_started_hop(time: int, exponent: int) -> None:
    n_fft, hop = 2**exponent, 2**exponent // 4
    mel = loss_mel(noise(1, 1, time), RATE, n_fft, hop, MelConfig(mels=4))
    assert mel.shape == (1, 1, 4, math.ceil(time / hop))


def test_normalised_mel_loss_is_divided_by_its_weights() -> None:
    """At one scale: with alpha 1 by 2; the mel itself is divided by the window's energy."""
    prediction, target = noise(1, 1, 300), noise(1, 1, 300, seed=1)
    config = MultiScaleMelConfig(exponents=(6,), mel=MelConfig(normalized=True, floor=1e-3))
    ours, theirs = (
        loss_mel(x, RATE, 64, 16, MelConfig(normalized=False))
        / torch.hann_window(64).square().sum()
        for x in (prediction, target)
    )
    logs = (ours + 1e-3).log10() - (theirs + 1e-3).log10()
    expected = ((ours - theirs).abs().mean() + logs.square().mean()) / 2
    torch.testing.assert_close(MultiScaleMelLoss(RATE, config)(prediction, target), expected)


def test_mels_of_a_target_serve_several_predictions() -> None:
    loss = MultiScaleMelLoss(RATE, MultiScaleMelConfig(exponents=(4, 6)))
    target = noise(1, 1, 300)
    mels = loss.mels(target)
    for seed in (1, 2):
        prediction = noise(1, 1, 300, seed=seed)
        assert loss.distance(loss.mels(prediction), mels) == loss(prediction, target)


def test_si_snr_is_the_ratio_in_decibels_whatever_the_gain() -> None:
    time = torch.arange(800) / RATE
    target = (2 * math.pi * 100 * time).sin()[None, None]
    error = 0.1 * (2 * math.pi * 200 * time).sin()[None, None]  # orthogonal over whole periods
    for prediction in (target + error, 3 * (target + error), target + error + 0.5):
        assert si_snr_loss(prediction, target).item() == pytest.approx(-20, abs=0.01)


def test_segmented_si_snr_weighs_segments_alike() -> None:
    """Two segments without overlap: the mean of what each gives alone."""
    target, prediction = noise(1, 1, 200), noise(1, 1, 200, seed=1)
    halves = [
        si_snr_loss(prediction[..., s], target[..., s]) for s in (slice(100), slice(100, 200))
    ]
    segmented = si_snr_loss(prediction, target, segment_samples=100, overlap=0.0)
    torch.testing.assert_close(segmented, (halves[0] + halves[1]) / 2)


def test_relative_volume_of_a_scaled_sound_is_the_scale_of_its_error() -> None:
    """An error of a tenth of the sound lies 20 dB below it, in every band."""
    target = noise(2, 1, 4000)
    result = relative_volume(0.9 * target, target, RATE, SMALL_VOLUME)
    torch.testing.assert_close(result.mean, torch.tensor(-20.0), atol=0.2, rtol=0)
    assert result.groups.shape == (4,)


def test_stft_loss_refuses_sound_shorter_than_its_padding() -> None:
    with pytest.raises(ShapeError, match="n_fft=64"):
        stft_loss(noise(1, 1, 32), noise(1, 1, 32), SMALL_STFT)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MultiScaleMelConfig(exponents=()),
        lambda: MultiScaleMelConfig(exponents=(2, 6)),
        lambda: STFTConfig(n_ffts=(64, 32)),
        lambda: RelativeVolumeConfig(mels=80, groups=3),
    ],
)
def test_impossible_configs_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        make()
