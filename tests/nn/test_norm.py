"""One-group normalisation is PyTorch's own, however the sound lies in memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonorant.nn.norm import BLOCK_NUMBERS, TimeGroupNorm


def norms(channels: int, dtype: torch.dtype) -> tuple[TimeGroupNorm, torch.nn.GroupNorm]:
    """Ours and PyTorch's, of the same random weights."""
    torch.manual_seed(channels)
    ours, builtin = TimeGroupNorm(channels, 1e-5), torch.nn.GroupNorm(1, channels, eps=1e-5)
    torch.nn.init.normal_(ours.weight)
    torch.nn.init.normal_(ours.bias)
    builtin.load_state_dict(ours.state_dict())
    return ours.to(dtype), builtin.to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 9),
    time=st.integers(2, 3 * BLOCK_NUMBERS),
    loudness=st.sampled_from([1e-3, 1.0, 30.0]),
    offset=st.sampled_from([0.0, 0.5, 20.0]),
    by_time=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@torch.no_grad()
def test_it_is_the_built_in_norm_in_either_layout(
    batch: int,
    channels: int,
    time: int,
    loudness: float,
    offset: float,
    by_time: bool,
    dtype: torch.dtype,
) -> None:
    ours, builtin = norms(channels, dtype)
    generator = torch.Generator().manual_seed(time)
    noise = torch.randn(batch, channels, time, generator=generator, dtype=dtype)
    x = loudness * (noise + offset)
    expected = builtin(x)
    if by_time:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    found = ours(x)
    near = 2e-4 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(found, expected, rtol=near, atol=near)
    if by_time:
        assert found.transpose(1, 2).is_contiguous()


@torch.no_grad()
def test_long_sounds_keep_their_digits() -> None:
    ours, _ = norms(8, torch.float32)
    _, exact = norms(8, torch.float64)
    x = torch.randn(1, 200_003, 8, generator=torch.Generator().manual_seed(0)) + 0.7
    expected = exact(x.double().transpose(1, 2))
    torch.testing.assert_close(ours(x.transpose(1, 2)).double(), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_silence_and_constants_stay_finite() -> None:
    ours, builtin = norms(2, torch.float32)
    for level in (0.0, 3.0):
        x = torch.full((1, 5000, 2), level).transpose(1, 2)
        assert ours(x).isfinite().all()
    torch.testing.assert_close(ours(torch.zeros_like(x)), builtin(torch.zeros_like(x)))


def test_gradients_are_the_built_in_ones() -> None:
    ours, builtin = norms(3, torch.float64)
    x = torch.randn(2, 7, 3, dtype=torch.float64).transpose(1, 2).requires_grad_()
    (found,) = torch.autograd.grad(ours(x).square().sum(), x)
    (expected,) = torch.autograd.grad(builtin(x).square().sum(), x)
    torch.testing.assert_close(found, expected)
    with pytest.raises(RuntimeError):
        ours(torch.zeros(1, 4, 5, dtype=torch.float64))  # another number of channels
