from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sonorant.errors import ShapeError
from sonorant.losses import independence
from sonorant.losses.independence import (
    IndependenceConfig,
    delay_streams,
    independence_loss,
    kernel_sums,
)

PLAIN = IndependenceConfig(delayed=False)


def streams(dependence: float, lag: int = 0, frames: int = 40) -> Tensor:
    """Two levels `[8, 2, 3, frames]`; the second follows the first, `lag` frames later."""
    torch.manual_seed(0)
    first, own = torch.randn(2, 8, 3, frames)
    second = dependence * first.roll(lag, dims=-1) + (1 - dependence**2) ** 0.5 * own
    return torch.stack([first, second], dim=1)


def loss_of(x: Tensor, config: IndependenceConfig = PLAIN) -> float:
    torch.manual_seed(1)
    return float(independence_loss(x, config))


def excess(x: Tensor, config: IndependenceConfig = PLAIN) -> float:
    """Above the loss of independent streams, which is not 0."""
    return loss_of(x, config) - loss_of(streams(0.0), config)


def test_the_more_dependent_the_levels_the_larger_the_loss() -> None:
    weak, strong = excess(streams(0.5)), excess(streams(0.9))
    assert 0 < weak < strong / 3


def test_the_delayed_form_compares_what_the_delay_pattern_predicts_together() -> None:
    """Level 1 is predicted one frame late: beside the frame after its own."""
    delayed = IndependenceConfig(delayed=True)
    together, apart = streams(0.9, lag=-1), streams(0.9, lag=0)
    assert excess(together, delayed) > 5 * abs(excess(apart, delayed))
    assert excess(apart) > 5 * abs(excess(together))


def test_delays_shift_each_level_by_its_index() -> None:
    x = torch.arange(6.0).expand(1, 3, 1, 6)
    assert delay_streams(x).squeeze().tolist() == [[3, 4, 5], [2, 3, 4], [1, 2, 3]]


def test_following_the_gradient_makes_levels_independent() -> None:
    """A mixing of two sources is undone."""
    torch.manual_seed(2)
    sources = torch.rand(16, 2, 1, 20) - 0.5
    mixing = torch.tensor([[1.0, 0.8], [0.0, 1.0]], requires_grad=True)
    optimizer = torch.optim.Adam([mixing], 0.02)
    losses = []
    for _ in range(60):
        mixed = torch.einsum("kj,bjdt->bkdt", mixing, sources)
        loss = independence_loss(mixed, PLAIN)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    correlation = torch.corrcoef(mixing.detach() @ sources.transpose(0, 1).reshape(2, -1))[0, 1]
    assert abs(correlation) < 0.1  # 0.62 at the start
    assert sum(losses[-5:]) < sum(losses[:5])


def test_kernel_sums_agree_with_all_pairs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(11, 4).double(), torch.randn(7, 4).double()
    monkeypatch.setattr(independence, "BLOCK_ROWS", 3)
    pairs = (x[:, None] - y[None]).square().sum(dim=-1)
    for a, total in zip((0.5, 9.0), kernel_sums(x, y, (0.5, 9.0)), strict=True):
        torch.testing.assert_close(total, (-pairs / (2 * a)).exp().sum())


def test_too_little_to_compare_is_an_error() -> None:
    with pytest.raises(ShapeError, match="got 1 of 40 frames"):
        independence_loss(torch.randn(1, 2, 3, 40), PLAIN)
    with pytest.raises(ShapeError, match="after delays of up to 2"):
        independence_loss(torch.randn(4, 2, 3, 2))
