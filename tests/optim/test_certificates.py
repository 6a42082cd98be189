"""The theorems' bounds: their relations, and measured runs below them; recorded values are a
parity case."""

import math

import pytest
import torch
from torch import nn

from sonorant.errors import ConfigError
from sonorant.optim.adam import Adagrad, Adam
from sonorant.optim.certificates import (
    Problem,
    adagrad_bound,
    adagrad_momentum_bound,
    adam_bound,
    adam_momentum_bound,
    finite_horizon,
    iterate_probabilities,
)

PROBLEM = Problem(dimension=5, gradient_bound=1.0, smoothness=0.5, gap=2.0)


def test_a_finite_horizon_gives_adagrads_bound_with_little_more() -> None:
    steps, lr, eps = 1000, 0.1, 1e-8
    step_size, beta2 = finite_horizon(steps, lr)
    bound = adam_bound(PROBLEM, steps, step_size, beta2, eps)
    noise = (4 * 5 + lr * 5 * 0.5) / math.sqrt(steps)
    adagrad = adagrad_bound(PROBLEM, steps, lr, eps)
    assert adagrad < bound <= adagrad + noise * steps / (steps - 1)


def test_measured_gradients_lie_below_every_bound() -> None:
    generator = torch.Generator().manual_seed(1)
    rows, steps, eps = 50, 300, 1e-8
    x = torch.rand(rows, 5, generator=generator, dtype=torch.float64) * 2 - 1
    y = torch.sign(x @ torch.ones(5, dtype=torch.float64))
    problem = Problem(
        dimension=5,
        gradient_bound=float(x.abs().max()) + math.sqrt(eps),
        smoothness=float(torch.linalg.eigvalsh(x.T @ x)[-1]) / (4 * rows),
        gap=math.log(2),
    )

    def measured(optimiser: torch.optim.Optimizer, w: nn.Parameter, beta1: float) -> float:
        norms = []
        for _ in range(steps):
            slopes = -y * torch.sigmoid(-y * (x @ w.detach()))
            norms.append((x.T @ slopes / rows).square().sum())
            row = int(torch.randint(rows, (), generator=generator))
            w.grad = slopes[row] * x[row]
            optimiser.step()
        return float(torch.stack(norms) @ iterate_probabilities(steps, beta1))

    def fresh() -> nn.Parameter:
        return nn.Parameter(torch.zeros(5, dtype=torch.float64))

    w = fresh()
    assert 0 < measured(Adagrad([w], 0.1), w, 0) < adagrad_bound(problem, steps, 0.1)
    w = fresh()
    bound = adam_bound(problem, steps, 0.01, 0.99)
    assert 0 < measured(Adam([w], 0.01, (0.0, 0.99)), w, 0) < bound
    w = fresh()
    bound = adagrad_momentum_bound(problem, steps, 0.1, 0.9)
    assert 0 < measured(Adagrad([w], 0.1, momentum=0.9), w, 0.9) < bound
    w = fresh()
    bound = adam_momentum_bound(problem, steps, 0.01, (0.9, 0.999))
    assert 0 < measured(Adam([w], 0.01, (0.9, 0.999)), w, 0.9) < bound


def test_refuses_what_the_theorems_do_not_cover() -> None:
    with pytest.raises(ConfigError, match="more than 9 steps"):
        adagrad_momentum_bound(PROBLEM, 9, 0.1, 0.9)
    with pytest.raises(ConfigError, match="beta1 < beta2"):
        adam_momentum_bound(PROBLEM, 100, 0.1, (0.99, 0.9))
    with pytest.raises(ConfigError, match="beta2 < 1"):
        adam_bound(PROBLEM, 100, 0.1, 1.0)
    with pytest.raises(ConfigError, match="sqrt"):
        adagrad_bound(PROBLEM, 100, 0.1, eps=4.0)
    with pytest.raises(ConfigError, match="gap"):
        Problem(1, 1.0, 1.0, float("nan"))
    with pytest.raises(ConfigError, match="steps"):
        iterate_probabilities(0)
