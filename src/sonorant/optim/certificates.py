"""Convergence certificates: how far from stationary Adam and Adagrad can be after N steps.

Source: A Simple Convergence Proof of Adam and Adagrad (arXiv 2003.02395), theorems 1 to 4. Each
bounds the expected squared norm of the gradient of F at a random iterate x_tau, tau in 0..N-1 drawn
from `iterate_probabilities`. They hold for any smooth F, convex or not, with bounded gradients, and
are loose: what is measured lies far below.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sonorant.errors import ConfigError


@dataclass(frozen=True)
class Problem:
    """The constants of a problem that the theorems need.

    dimension: d, the number of coordinates.
    gradient_bound: R; no coordinate of a stochastic gradient exceeds R - sqrt(eps).
    smoothness: L, the Lipschitz constant of the gradient of F in the Euclidean norm.
    gap: F(x_0) - F*, how far above the lower bound the run starts.
    Raises: ConfigError if a constant is out of range.
    """

    dimension: int
    gradient_bound: float
    smoothness: float
    gap: float

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise ConfigError(f"the dimension must be at least 1, got {self.dimension}")
        for name in ("gradient_bound", "smoothness", "gap"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"{name} must be finite and not negative, got {getattr(self, name)}"
                )


def adagrad_bound(problem: Problem, steps: int, lr: float, eps: float = 1e-8) -> float:
    """Theorem 1: Adagrad without momentum. Raises: ConfigError for values out of range."""
    _check(problem, steps, lr, 0.0, 1.0, eps)
    d, r, smoothness = problem.dimension, problem.gradient_bound, problem.smoothness
    start = 2 * r * problem.gap / (lr * math.sqrt(steps))
    noise = (4 * d * r**2 + lr * d * r * smoothness) / math.sqrt(steps)
    return start + noise * math.log1p(steps * r**2 / eps)


def adam_bound(problem: Problem, steps: int, lr: float, beta2: float, eps: float = 1e-8) -> float:
    """Theorem 2: Adam without momentum. Raises: ConfigError for values out of range."""
    _check(problem, steps, lr, 0.0, beta2, eps, adam=True)
    d, r, smoothness = problem.dimension, problem.gradient_bound, problem.smoothness
    noise = 4 * d * r**2 / math.sqrt(1 - beta2) + lr * d * r * smoothness / (1 - beta2)
    logarithm = math.log1p(r**2 / ((1 - beta2) * eps)) / steps - math.log(beta2)
    return 2 * r * problem.gap / (lr * steps) + noise * logarithm


def adagrad_momentum_bound(
    problem: Problem, steps: int, lr: float, momentum: float, eps: float = 1e-8
) -> float:
    """Theorem 3: Adagrad with heavy-ball momentum.

    At momentum 0 it is looser than theorem 1. Raises: ConfigError for values out of range, or
    fewer steps than the momentum needs.
    """
    _check(problem, steps, lr, momentum, 1.0, eps)
    d, r, smoothness = problem.dimension, problem.gradient_bound, problem.smoothness
    noise = (
        lr * d * r * smoothness
        + 12 * d * r**2 / (1 - momentum)
        + 2 * lr**2 * d * smoothness**2 * momentum / (1 - momentum)
    )
    scale = math.sqrt(steps) / effective_steps(steps, momentum)
    return scale * (2 * r * problem.gap / lr + noise * math.log1p(steps * r**2 / eps))


def adam_momentum_bound(
    problem: Problem, steps: int, lr: float, betas: tuple[float, float], eps: float = 1e-8
) -> float:
    """Theorem 4: Adam with heavy-ball momentum, corrected for v only (the default `Adam`).

    At beta1 = 0 it is looser than theorem 2. Raises: as `adagrad_momentum_bound`.
    """
    beta1, beta2 = betas
    _check(problem, steps, lr, beta1, beta2, eps, adam=True)
    d, r, smoothness = problem.dimension, problem.gradient_bound, problem.smoothness
    apart, forget = 1 - beta1 / beta2, 1 - beta2
    noise = (
        lr * d * r * smoothness * (1 - beta1) / (apart * forget)
        + 12 * d * r**2 * math.sqrt(1 - beta1) / (apart**1.5 * math.sqrt(forget))
        + 2 * lr**2 * d * smoothness**2 * beta1 / (apart * forget**1.5)
    )
    effective = effective_steps(steps, beta1)
    logarithm = math.log1p(r**2 / (forget * eps)) / effective - steps / effective * math.log(beta2)
    return 2 * r * problem.gap / (lr * effective) + noise * logarithm


def effective_steps(steps: int, beta1: float) -> float:
    """N - beta1 / (1 - beta1). Raises: ConfigError if that is not above 0."""
    effective = steps - beta1 / (1 - beta1)
    if effective <= 0:
        raise ConfigError(
            f"with momentum {beta1} the theorems need more than {beta1 / (1 - beta1):.6g} steps, "
            f"got {steps}"
        )
    return effective


def iterate_probabilities(steps: int, beta1: float = 0.0) -> Tensor:
    """P(tau = j) for the iterates x_0 .. x_{N-1}: proportional to 1 - beta1^(N - j).

    Iterates whose gradient later steps still had time to follow; uniform without momentum.
    Returns: [steps], float64. Raises: ConfigError for values out of range.
    """
    if steps < 1 or not 0 <= beta1 < 1:
        raise ConfigError(f"need steps >= 1 and 0 <= beta1 < 1, got {steps} and {beta1}")
    left = torch.arange(steps, 0, -1, dtype=torch.float64)
    weights = 1 - beta1**left
    return weights / weights.sum()


def finite_horizon(steps: int, lr: float) -> tuple[float, float]:
    """The step size and beta2 for a run of a known length: lr / sqrt(N) and 1 - 1 / N.

    With them theorem 2 is Adagrad's bound at `lr`, plus N / (N - 1) beside its logarithm.
    """
    if steps < 2:
        raise ConfigError(f"a finite horizon needs at least 2 steps, got {steps}")
    return lr / math.sqrt(steps), 1 - 1 / steps


def _check(
    problem: Problem,
    steps: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    *,
    adam: bool = False,
) -> None:
    if steps < 1:
        raise ConfigError(f"the number of steps must be at least 1, got {steps}")
    if not 0 < lr < math.inf:
        raise ConfigError(f"the learning rate must be finite and above 0, got {lr}")
    if not 0 <= beta1 < beta2 <= 1 or (adam and beta2 == 1):
        raise ConfigError(
            f"the theorem needs 0 <= beta1 < beta2, and beta2 < 1 for Adam; got {beta1} and {beta2}"
        )
    if not 0 < eps < math.inf or problem.gradient_bound < math.sqrt(eps):
        raise ConfigError(
            f"eps must be above 0 and sqrt(eps) at most the gradient bound, got eps {eps} and "
            f"bound {problem.gradient_bound}"
        )
