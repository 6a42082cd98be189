import math

import pytest
import torch

from sonorant.dsp.stft import hann_window, istft, stft
from sonorant.errors import ShapeError


def test_a_sine_shows_in_its_bin_with_half_the_window_sum() -> None:
    time = torch.arange(2048)
    x = torch.cos(2 * math.pi * 8 / 256 * time)
    magnitude = stft(x, 256, 64, center=False).abs()
    assert magnitude.argmax(dim=0).unique().tolist() == [8]
    torch.testing.assert_close(
        magnitude[8], torch.full((29,), 64.0), rtol=1e-4, atol=0
    )  # the window sums to 128


@pytest.mark.parametrize("win_length", [None, 40])
def test_equals_the_definition(win_length: int | None) -> None:
    x = torch.randn(3, 200, dtype=torch.float64)
    window = torch.zeros(64, dtype=torch.float64)
    length = win_length or 64
    start = (64 - length) // 2
    angle = 2 * math.pi * torch.arange(length).double() / length
    window[start : start + length] = 0.5 - 0.5 * torch.cos(angle)
    expected = torch.fft.rfft(x.unfold(-1, 64, 16) * window).transpose(-1, -2)
    actual = stft(x, 64, 16, win_length, center=False, normalized=True)
    torch.testing.assert_close(actual, expected / window.square().sum().sqrt())


def test_leading_dimensions_are_kept() -> None:
    x = torch.randn(2, 3, 500)
    together = stft(x, 64, 16)
    assert together.shape == (2, 3, 33, 500 // 16 + 1)
    torch.testing.assert_close(together[1, 2], stft(x[1, 2], 64, 16))


@pytest.mark.parametrize("normalized", [False, True])
def test_the_inverse_returns_the_sound(normalized: bool) -> None:
    x = torch.randn(2, 2, 1003)
    spectrum = stft(x, 128, 32, win_length=100, normalized=normalized)
    back = istft(spectrum, 128, 32, win_length=100, normalized=normalized, length=1003)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("n_fft", "hop", "window", "length"),
    [(64, 16, 64, 300), (64, 16, 64, 311), (64, 20, 50, None), (60, 7, 60, 250), (31, 9, 30, 200)],
)
def test_the_inverse_of_any_spectrogram_is_torchs(
    n_fft: int, hop: int, window: int, length: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sonorant.dsp.stft.AT_ONCE", 5000)  # in several groups
    frames = (length or 300) // hop + 1
    spectrum = torch.randn(2, 3, n_fft // 2 + 1, frames, dtype=torch.complex128)
    expected = torch.istft(
        spectrum.flatten(0, 1),
        n_fft,
        hop,
        win_length=window,
        window=torch.hann_window(window, dtype=torch.float64),
        length=length,
    )
    actual = istft(spectrum, n_fft, hop, win_length=window, length=length)
    torch.testing.assert_close(actual, expected.unflatten(0, (2, 3)))


def test_gradients_flow_through_the_inverse() -> None:
    spectrum = torch.randn(9, 5, dtype=torch.complex128, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: istft(z, 16, 4), spectrum)


def test_samples_that_no_frame_holds_have_no_inverse() -> None:
    with pytest.raises(ShapeError, match="leave samples out"):
        istft(torch.zeros(9, 5, dtype=torch.complex64), 16, 20)


def test_a_spectrogram_without_frames_has_no_inverse() -> None:
    with pytest.raises(ShapeError, match="9 in 0"):
        istft(torch.zeros(9, 0, dtype=torch.complex64), 16, 4)


def test_gradients_flow_after_a_call_in_inference_mode() -> None:
    hann_window.cache_clear()
    with torch.inference_mode():
        stft(torch.zeros(300), 48, 12)
    x = torch.randn(300, requires_grad=True)
    stft(x, 48, 12).abs().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(("samples", "center"), [(32, True), (63, False)])
def test_a_sound_too_short_is_refused(samples: int, center: bool) -> None:
    with pytest.raises(ShapeError, match=f"got {samples}"):
        stft(torch.zeros(samples), 64, 16, center=center)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match="window must have"):
        stft(torch.zeros(100), 64, 16, win_length=65)
    with pytest.raises(ShapeError, match="33 frequencies"):
        istft(torch.zeros(32, 4, dtype=torch.complex64), 64, 16)
