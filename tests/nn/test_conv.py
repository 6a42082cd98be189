"""Convolutions: published padding, both computing forms, live equals offline."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sonorant.errors import ShapeError
from sonorant.nn.conv import (
    ConvStyle,
    PadMode,
    StreamingConv1d,
    StreamingConvTranspose1d,
    pad_time,
)
from sonorant.nn.state import init_state

MODES: list[PadMode] = ["reflect", "zero", "replicate"]


def style(mode: PadMode, causal: bool = True) -> ConvStyle:
    return ConvStyle(causal=causal, pad_mode=mode, norm="none")


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_padding_equals_the_built_in_one(mode: PadMode, dim: int) -> None:
    x = torch.randn(2, 3, 9)
    builtin = F.pad(x, (4, 2), {"zero": "constant"}.get(mode, mode))
    ours = pad_time(x.transpose(1, 2) if dim == 1 else x, 4, 2, mode, dim)
    assert torch.equal(ours.transpose(1, 2) if dim == 1 else ours, builtin)


def test_a_short_input_is_reflected_over_appended_zeros() -> None:
    """One sample, padded by three on the left: the published rule gives zeros, then the sample."""
    assert pad_time(torch.ones(1, 1, 1), 3, 0, "reflect").tolist() == [[[0.0, 0.0, 0.0, 1.0]]]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(7, 1, 1), (3, 1, 4), (8, 4, 1), (5, 2, 1), (1, 1, 1)]
)
@pytest.mark.parametrize("time", [1, 3, 40, 203])
def test_both_forms_agree(
    mode: PadMode, causal: bool, kernel: int, stride: int, dilation: int, time: int
) -> None:
    torch.manual_seed(0)
    conv = StreamingConv1d(3, 5, kernel, stride, dilation, style(mode, causal))
    x = torch.randn(2, 3, time)
    direct = conv(x)
    assert direct.shape == (2, 5, math.ceil(time / stride))
    with torch.no_grad():
        torch.testing.assert_close(conv(x), direct.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("kernel", "stride"), [(8, 4), (16, 8), (5, 2), (7, 3)])
@pytest.mark.parametrize("frames", [1, 2, 30, 31])
def test_both_transposed_forms_agree(causal: bool, kernel: int, stride: int, frames: int) -> None:
    torch.manual_seed(0)
    conv = StreamingConvTranspose1d(4, 3, kernel, stride, style("zero", causal))
    x = torch.randn(2, 4, frames)
    direct = conv(x)
    assert direct.shape == (2, 3, frames * stride)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), direct.detach(), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_changed_weight_is_used_at_once() -> None:
    conv = StreamingConv1d(2, 2, kernel_size=3, style=style("zero"))
    x = torch.randn(1, 2, 50)
    before = conv(x)
    conv.conv.weight.mul_(2)
    conv.conv.bias.mul_(2)
    torch.testing.assert_close(conv(x), 2 * before)


def chunked(total: int, unit: int, sizes: list[int]) -> list[int]:
    """Cut `total` into multiples of `unit`, as drawn, and a rest of any length."""
    cuts, left = [], total
    for size in sizes:
        if size * unit > left:
            break
        cuts.append(size * unit)
        left -= size * unit
    return [*cuts, left] if left else cuts


@settings(max_examples=60, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    shape=st.sampled_from([(7, 1, 1), (3, 1, 2), (8, 4, 1), (4, 2, 1)]),
    sizes=st.lists(st.integers(1, 9), max_size=8),
    extra=st.integers(0, 120),
)
@torch.no_grad()
def test_live_equals_offline_for_any_chunking(
    mode: PadMode, shape: tuple[int, int, int], sizes: list[int], extra: int
) -> None:
    kernel, stride, dilation = shape
    conv = StreamingConv1d(2, 3, kernel, stride, dilation, style(mode))
    first = conv.padding + stride  # a reflected start needs more than the padding at once
    first += -first % stride
    x = torch.randn(1, 2, first + sum(sizes) * stride + extra)
    state = init_state(conv)
    lengths = [first, *chunked(x.shape[-1] - first, stride, sizes)]
    live = torch.cat([conv(part, state) for part in x.split(lengths, dim=-1)], dim=-1)
    torch.testing.assert_close(live, conv(x), rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.sampled_from([(8, 4), (16, 8), (4, 2), (5, 2)]),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
)
@torch.no_grad()
def test_live_transposed_equals_offline_for_any_chunking(
    shape: tuple[int, int], sizes: list[int]
) -> None:
    conv = StreamingConvTranspose1d(3, 2, *shape, style("zero"))
    x = torch.randn(2, 3, sum(sizes))
    state = init_state(conv, batch_size=2)
    live = torch.cat([conv(part, state) for part in x.split(sizes, dim=-1)], dim=-1)
    torch.testing.assert_close(live, conv(x), rtol=1e-5, atol=1e-5)


def test_what_looks_ahead_cannot_run_live() -> None:
    centred = StreamingConv1d(1, 1, kernel_size=3, style=style("zero", causal=False))
    with pytest.raises(ShapeError, match="looks ahead"):
        centred(torch.ones(1, 1, 4), init_state(centred))
    early = StreamingConvTranspose1d(1, 1, 4, 2, style("zero"), trim_right_ratio=0.5)
    with pytest.raises(ShapeError, match="trims on the left"):
        early(torch.ones(1, 1, 4), init_state(early))
    with pytest.raises(ShapeError, match="cannot be causal"):
        StreamingConv1d(1, 1, 3, style=ConvStyle(True, "zero", "time_group_norm"))


@torch.no_grad()
@pytest.mark.parametrize(("kernel_size", "stride"), [(7, 1), (8, 4), (6, 2), (3, 1)])
def test_the_live_product_of_few_frames_is_the_convolution(kernel_size: int, stride: int) -> None:
    torch.manual_seed(0)
    plain = StreamingConv1d(3, 5, kernel_size, stride, style=style("zero"))
    with_product = copy.deepcopy(plain)
    with_product.add_live_product()
    one, other = init_state(plain), init_state(with_product)
    for frames in (1, 2, 5, 40):  # the last are too many for it
        x = torch.randn(1, 3, frames * stride)
        torch.testing.assert_close(with_product(x, other), plain(x, one))
        torch.testing.assert_close(with_product(x), plain(x))


@torch.no_grad()
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_the_live_product_of_few_frames_is_the_transposed_convolution(stride: int) -> None:
    torch.manual_seed(0)
    plain = StreamingConvTranspose1d(3, 5, 2 * stride, stride, style("zero"))
    with_product = copy.deepcopy(plain)
    with_product.add_live_product()
    one, other = init_state(plain), init_state(with_product)
    for frames in (1, 2, 5, 40):
        x = torch.randn(2, 3, frames)
        torch.testing.assert_close(with_product(x[:1], other), plain(x[:1], one))
        torch.testing.assert_close(with_product(x), plain(x))
