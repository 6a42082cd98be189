"""Filters with fewer products give what the plain sum gives."""

import pytest
import torch

from sonorant.nn.minimal_filtering import FAST_FILTER_FRAMES, MinimalFilter

FRAMES = [1, 2, FAST_FILTER_FRAMES, FAST_FILTER_FRAMES + 1, FAST_FILTER_FRAMES + 2, 100]


@pytest.mark.parametrize("taps", [2, 3])
@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_the_plain_sum(taps: int, frames: int, with_bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, frames + taps - 1, 5)
    weights = torch.randn(taps, 5, 7)
    bias = torch.randn(7) if with_bias else None
    plain = sum(x[:, k : k + frames] @ weight for k, weight in enumerate(weights))
    y = MinimalFilter(list(weights))(x, bias)
    assert y.shape == (2, frames, 7)
    torch.testing.assert_close(y, plain if bias is None else plain + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("taps", [2, 3])
def test_rounding_errors_stay_those_of_the_plain_sum(taps: int) -> None:
    """Within twice: no factor of this algorithm amplifies them."""
    torch.manual_seed(0)
    x = torch.randn(1, 600 + taps - 1, 256)
    weights = torch.randn(taps, 256, 64)
    exact = sum(x[:, k : k + 600].double() @ w.double() for k, w in enumerate(weights))
    plain = sum(x[:, k : k + 600] @ w for k, w in enumerate(weights))
    fast = MinimalFilter(list(weights))(x, None)
    assert (fast - exact).square().mean() < 4 * (plain - exact).square().mean()
