import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from sonorant.dsp.fft_convolution import fft_conv1d, unfold, volume
from sonorant.errors import ShapeError


@settings(deadline=None, max_examples=60)
@given(
    kernel=st.integers(1, 40),
    extra=st.integers(0, 300),
    stride=st.integers(1, 5),
    padding=st.integers(0, 10),
    block_ratio=st.sampled_from([0.5, 1, 2.5, 5]),
    bias=st.booleans(),
)
def test_equals_the_direct_convolution(
    kernel: int, extra: int, stride: int, padding: int, block_ratio: float, bias: bool
) -> None:
    x = torch.randn(2, 3, kernel + extra, dtype=torch.float64)
    weight = torch.randn(4, 3, kernel, dtype=torch.float64)
    offsets = torch.randn(4, dtype=torch.float64) if bias else None
    actual = fft_conv1d(x, weight, offsets, stride, padding, block_ratio)
    expected = functional.conv1d(x, weight, offsets, stride, padding)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_single_precision_is_kept() -> None:
    x, weight = torch.randn(1, 1, 5000), torch.randn(1, 1, 301)
    error = fft_conv1d(x, weight) - functional.conv1d(x, weight)
    assert error.abs().max() < 1e-4  # of values around 17


def test_a_filter_longer_than_the_signal_is_refused() -> None:
    with pytest.raises(ShapeError, match="filter of 10 samples"):
        fft_conv1d(torch.zeros(1, 1, 9), torch.zeros(1, 1, 10))


@settings(deadline=None, max_examples=60)
@given(samples=st.integers(0, 60), kernel=st.integers(1, 20), stride=st.integers(1, 25))
def test_frames_start_every_stride_and_reach_the_end(
    samples: int, kernel: int, stride: int
) -> None:
    x = torch.arange(1, samples + 1)
    frames = unfold(x, kernel, stride)
    for index, frame in enumerate(frames):
        expected = x[index * stride : index * stride + kernel]
        assert torch.equal(frame[: len(expected)], expected)
        assert frame[len(expected) :].abs().sum() == 0
    last = (len(frames) - 1) * stride
    assert last + kernel >= samples
    assert last == 0 or last - stride + kernel < samples


def test_volume_is_in_decibels() -> None:
    tone = torch.sin(torch.arange(1000) * 2 * torch.pi / 100)
    assert volume(tone) == pytest.approx(-3.0103, abs=1e-3)
    assert volume(0.1 * tone) == pytest.approx(-23.0103, abs=1e-3)
    assert volume(torch.zeros(2, 10)).tolist() == [-80, -80]
