"""Every form of a convolution on time-major memory gives what the built-in one gives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sonorant.nn.matrix_conv import (
    FEW_FRAMES,
    LARGE_TAP,
    PackedWeight,
    add_pointwise,
    conv_time_major,
    conv_transpose_time_major,
    pointwise_sum,
    two_convs,
)

MANY = 101
LARGE = (192, 176)  # channels of which one tap alone counts as large


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("frames", [1, FEW_FRAMES, MANY])
@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "dilation"),
    [
        ((1, 4), 7, 1, 1),
        ((3, 4), 7, 1, 1),
        ((3, 4), 3, 1, 2),
        ((3, 4), 4, 2, 1),
        (LARGE, 1, 1, 1),
        (LARGE, 3, 1, 1),
        (LARGE, 3, 1, 2),
        (LARGE, 4, 2, 1),
        (LARGE, 6, 2, 1),
        (LARGE, 5, 2, 1),
    ],
)
@torch.no_grad()
def test_convolutions(
    channels: tuple[int, int], kernel: int, stride: int, dilation: int, frames: int, batch: int
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(*channels, kernel, stride, dilation=dilation)
    time = (frames - 1) * stride + (kernel - 1) * dilation + 1
    x = torch.randn(batch, time + stride - 1, channels[0])
    y = conv_time_major(x, conv, PackedWeight())
    torch.testing.assert_close(y, conv(x.transpose(1, 2)).transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [(3, 4), LARGE])
@pytest.mark.parametrize("frames", [1, MANY])
@torch.no_grad()
def test_transposed_convolutions(channels: tuple[int, int], frames: int) -> None:
    torch.manual_seed(0)
    conv = nn.ConvTranspose1d(*channels, kernel_size=6, stride=3)
    x = torch.randn(2, frames, channels[0])
    y = conv_transpose_time_major(F.pad(x, (0, 0, 1, 1)), conv, PackedWeight())
    expected = conv(x.transpose(1, 2))
    torch.testing.assert_close(y, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_bias", [True, False])
@torch.no_grad()
def test_a_sum_of_pointwise_convolutions(with_bias: bool) -> None:
    narrow, wide = (nn.Conv1d(channels, 5, 1, bias=with_bias) for channels in (2, 3))
    x, z = torch.randn(2, 9, 2), torch.randn(2, 9, 3)
    y = pointwise_sum([(narrow, PackedWeight(), x), (wide, PackedWeight(), z)])
    expected = narrow(x.transpose(1, 2)) + wide(z.transpose(1, 2))
    torch.testing.assert_close(y, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_bias", [True, False])
@torch.no_grad()
def test_two_convolutions_in_one(with_bias: bool) -> None:
    before = nn.Conv1d(1, 4, 7, bias=with_bias)
    after, last = (nn.Conv1d(4, 5, 1, bias=with_bias) for _ in range(2))
    x, z = torch.randn(2, MANY, 1), torch.randn(2, MANY - 6, 4)
    y = two_convs(x, before, after)
    expected = after(before(x.transpose(1, 2))).transpose(1, 2)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    add_pointwise(y, z, last, PackedWeight())
    expected = expected + last(z.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_packed_weights_follow_the_layer() -> None:
    conv, packed = nn.Conv1d(*LARGE, 3), PackedWeight()
    assert conv.weight[..., 0].numel() >= LARGE_TAP
    x = torch.randn(1, 50, LARGE[0])
    conv_time_major(x, conv, packed)
    for change in (conv.weight.mul_(2), nn.Parameter(conv.weight.flip(0))):
        conv.weight = change
        expected = conv(x.transpose(1, 2)).transpose(1, 2)
        y = conv_time_major(x, conv, packed)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
