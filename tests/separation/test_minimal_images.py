"""Convolutions of 3 x 3 with fewer products give what direct ones give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sonorant.separation import minimal_images
from sonorant.separation.hybrid_layers import DecoderLayer, LayerPlan


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 5),
    rows=st.integers(1, 17),
    columns=st.integers(1, 19),
    seed=st.integers(0, 1000),
)
def test_any_size_agrees(batch: int, channels: int, rows: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(batch, channels, rows, columns, dtype=torch.float64)
    weight = torch.randn(4, channels, 3, 3, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    expected = F.glu(F.conv2d(x, weight, bias, padding=1), dim=1)
    found = minimal_images.convolve(x, weight, bias, lambda y: F.glu(y, dim=0))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_images_larger_than_the_cache_are_worked_off_in_groups(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 3, 23, 10), torch.randn(4, 3, 3, 3), torch.randn(4)
    whole = minimal_images.convolve(x, weight, bias, lambda y: y)
    monkeypatch.setattr(minimal_images, "GROUP", 20)
    torch.testing.assert_close(minimal_images.convolve(x, weight, bias, lambda y: y), whole)


def test_wide_decoder_layers_use_them_without_gradients() -> None:
    torch.manual_seed(0)
    plan = LayerPlan(kernel_size=8, stride=4, over_bins=True)
    layer = DecoderLayer(minimal_images.FEWEST_CHANNELS, 4, plan, None)
    x = torch.randn(1, minimal_images.FEWEST_CHANNELS, 9, 21)
    assert layer.rewrite is not None
    assert not minimal_images.pays(x, layer.rewrite)
    direct = layer.mix(x, x)
    with torch.no_grad():
        assert minimal_images.pays(x, layer.rewrite)
        minimal = layer.mix(x, x)
    torch.testing.assert_close(minimal, direct, rtol=1e-4, atol=1e-5)
    assert not torch.equal(minimal, direct)  # the direct sums round differently


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(48, 8, 1),
        nn.Conv2d(48, 8, 3),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Conv1d(48, 8, 3),
        nn.Conv2d(48, 8, 3, stride=2, padding=1),
        nn.Conv2d(48, 8, 3, padding=1, groups=2),
        nn.Conv2d(48, 8, 3, padding=1, bias=False),
    ],
    ids=["1x1", "unpadded", "narrow", "over_time", "strided", "grouped", "without_bias"],
)
def test_other_layers_do_not(conv: nn.Module) -> None:
    with torch.no_grad():
        assert not minimal_images.pays(torch.zeros(1, 48, 9, 9), conv)
