"""Solving block-Toeplitz systems: like any other solver, and sound where the matrix is singular."""

import pytest
import torch
from torch import Tensor

from sonorant.separation import block_toeplitz


def blocks_of(signals: Tensor, lags: int) -> Tensor:
    """Correlations `[1, lags, channels, channels]` of signals `[channels, time]` in silence."""
    time = signals.shape[-1]
    delayed = torch.stack(
        [torch.nn.functional.pad(signals, (lag, lags - lag)) for lag in range(lags)]
    )
    assert delayed.shape[-1] == time + lags
    return (delayed @ delayed[0].T)[None]


def normal_matrix(signals: Tensor, lags: int) -> Tensor:
    delayed = torch.cat(
        [torch.nn.functional.pad(signals, (lag, lags - lag)) for lag in range(lags)]
    )
    return delayed @ delayed.T


@pytest.mark.parametrize(("channels", "lags"), [(1, 7), (2, 16), (3, 12), (8, 6)])
def test_the_solution_is_that_of_the_whole_matrix(channels: int, lags: int) -> None:
    torch.manual_seed(0)
    signals = torch.randn(channels, 300, dtype=torch.float64).cumsum(-1)
    blocks = blocks_of(signals, lags)
    matrix = normal_matrix(signals, lags)
    assert torch.allclose(block_toeplitz.dense(blocks[0]), matrix)
    right = torch.randn(1, lags, channels, 3, dtype=torch.float64)
    x = block_toeplitz.solve(blocks, right)
    expected = torch.linalg.solve(matrix, right.reshape(lags * channels, 3))
    assert torch.allclose(x.reshape(lags * channels, 3), expected, rtol=1e-9, atol=1e-12)


def test_the_factor_is_that_of_the_matrix() -> None:
    torch.manual_seed(1)
    signals = torch.randn(2, 200, dtype=torch.float64)
    factor = block_toeplitz.factorize(blocks_of(signals, 32))
    assert factor is not None
    assert len(factor.rows) == 4, "lags go in groups"
    size = factor.rows[0].shape[1]
    upper = torch.zeros(64, 64, dtype=torch.float64)
    for index, row in enumerate(factor.rows):
        upper[index * size : (index + 1) * size, index * size :] = row[0]
    assert torch.allclose(upper.T @ upper, normal_matrix(signals, 32), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("gain", [0.0, 1.0, -0.3], ids=["silent", "mono", "panned"])
def test_a_channel_that_depends_on_another_is_left_out(gain: float) -> None:
    torch.manual_seed(2)
    signals = torch.randn(3, 400, dtype=torch.float64)
    signals[1] = gain * signals[0]
    right = blocks_of(signals, 8) @ torch.randn(3, 2, dtype=torch.float64)
    x = block_toeplitz.solve(blocks_of(signals, 8), right)
    kept = [0, 2]
    alone = block_toeplitz.solve(blocks_of(signals[kept], 8), right[:, :, kept])
    assert x[:, :, 1].abs().max() == 0
    assert torch.allclose(x[:, :, kept], alone, atol=1e-12)


def test_a_singular_matrix_still_fits_what_can_be_fitted() -> None:
    torch.manual_seed(3)
    signals = torch.randn(2, 400, dtype=torch.float64)
    signals[0, :4] = signals[0, -4:] = 0
    signals[1] = signals[0].roll(2)
    blocks = blocks_of(signals, 8)
    matrix = normal_matrix(signals, 8)
    right = matrix @ torch.randn(16, 1, dtype=torch.float64)
    assert torch.allclose(
        block_toeplitz.multiply(blocks, right.reshape(1, 8, 2, 1)).flatten(),
        (matrix @ right).flatten(),
    )
    x = block_toeplitz.solve(blocks, right.reshape(1, 8, 2, 1)).reshape(16, 1)
    assert torch.allclose(matrix @ x, right, rtol=1e-7)
