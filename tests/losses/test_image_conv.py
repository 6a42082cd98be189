"""Both rearranged forms of the image convolution give the plain one's values and gradients."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sonorant.losses.image_conv import ImageConv


def assert_equals_the_plain_form(conv: ImageConv, image: Tensor) -> None:
    results = []
    for forward in (conv.forward, lambda x: nn.Conv2d.forward(conv, x)):
        x = image.clone().requires_grad_()
        out = forward(x)
        weights = torch.linspace(-1, 1, out.numel()).view_as(out)
        gradients = torch.autograd.grad((out * weights).sum(), [x, *conv.parameters()])
        results.append([out, *gradients])
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)


@settings(max_examples=25, deadline=None)
@given(
    time=st.integers(1, 9),
    frequencies=st.integers(1, 20),
    # Not 1x1: torch 2.13's gradient of a strided 1x1 convolution with channels last can overrun its
    # buffers on a CPU, and no discriminator has one.
    kernel=st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([3, 9])),
    stride=st.integers(1, 2),
    dilation=st.integers(2, 4),
)
def test_dilated_convolution_equals_the_plain_form(
    time: int, frequencies: int, kernel: tuple[int, int], stride: int, dilation: int
) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, time, frequencies)
    assert_equals_the_plain_form(ImageConv(3, 4, kernel, (1, stride), dilation), image)


@settings(max_examples=25, deadline=None)
@given(
    time=st.integers(1, 5),
    frequencies=st.integers(1, 20),
    kernel=st.tuples(st.sampled_from([1, 3]), st.sampled_from([3, 5, 7, 9])),
    channels=st.integers(1, 9),
)
def test_convolution_of_few_channels_equals_the_plain_form(
    time: int, frequencies: int, kernel: tuple[int, int], channels: int
) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, channels, time, frequencies)
    assert_equals_the_plain_form(ImageConv(channels, 4, kernel), image)


def test_no_frames_are_lost_in_any_memory_layout() -> None:
    conv = ImageConv(2, 4, (3, 9), time_dilation=2)
    image = torch.randn(1, 2, 7, 12)
    last = conv(image.contiguous(memory_format=torch.channels_last))
    first = conv(image.contiguous(memory_format=torch.contiguous_format))
    torch.testing.assert_close(first, last)
    assert first.shape == (1, 4, 7, 12)
