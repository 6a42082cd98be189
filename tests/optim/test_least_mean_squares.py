"""Averaged least mean squares: recorded curves, limits, stability, simulation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sonorant.errors import ConfigError, ShapeError
from sonorant.optim import least_mean_squares
from sonorant.optim.least_mean_squares import (
    AveragedLeastMeanSquares,
    Design,
    largest_step,
    norm_density,
    risk_curves,
    risk_limits,
)
from tests.parity.adapters.least_mean_squares import DENSITIES, read_design
from tests.parity.runner import Case

CASE = Case.read(Path(__file__).parent.parent / "fixtures" / "code-and-theory" / "lms")
PLAIN = read_design(CASE)
START = CASE.input("delta0")


@pytest.mark.parametrize("name", DENSITIES)
def test_limits_are_the_recorded_ones(name: str) -> None:
    design = replace(PLAIN, density=DENSITIES[name](PLAIN))
    recorded = CASE.config["summary"][name]
    largest = largest_step(design)
    assert largest == pytest.approx(recorded["gamma_max"], rel=1e-9)
    limits = risk_limits(design, START, recorded["gamma"])
    assert limits.bias_times_n2 == pytest.approx(recorded["bias_limit_times_N2"], rel=1e-9)
    assert limits.variance_times_n == pytest.approx(recorded["var_limit_times_N"], rel=1e-9)
    small = risk_limits(design, START, 1e-7 * largest)
    assert small.variance_times_n == pytest.approx(recorded["var_limit_small_gamma"], rel=1e-6)


def test_sampling_by_the_norm_reaches_the_universal_limit() -> None:
    design = replace(PLAIN, density=norm_density(PLAIN))
    trace = float(PLAIN.covariance.trace())
    assert largest_step(design) == pytest.approx(2 / trace, rel=1e-12)
    assert largest_step(PLAIN) < largest_step(design)


def test_the_curves_reach_their_limits() -> None:
    step = 0.5 * largest_step(PLAIN)
    steps = int(60 / (step * float(torch.linalg.eigvalsh(PLAIN.covariance)[0])))
    curves = risk_curves(PLAIN, START, step, steps)
    limits = risk_limits(PLAIN, START, step)
    assert float(curves.bias[-1]) * steps**2 == pytest.approx(limits.bias_times_n2, rel=1e-6)
    assert float(curves.variance[-1]) * steps == pytest.approx(limits.variance_times_n, rel=0.05)


def test_the_bias_falls_below_the_largest_step_and_grows_above_it() -> None:
    largest = largest_step(PLAIN)
    below = risk_curves(PLAIN, START, 0.95 * largest, 3000).bias
    above = risk_curves(PLAIN, START, 1.05 * largest, 3000).bias
    assert below[-1] < 1e-3 * below[0]
    assert above[-1] > 1e3 * above[0]


def test_power_iteration_finds_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    direct = largest_step(PLAIN)
    monkeypatch.setattr(least_mean_squares, "_DENSE_DIMENSION", 0)
    assert largest_step(PLAIN) == pytest.approx(direct, rel=1e-9)


@pytest.mark.parametrize("density", [lambda design: None, norm_density], ids=["uniform", "norm"])
def test_simulated_chains_have_the_exact_risk(density: Callable[[Design], Tensor | None]) -> None:
    design = replace(PLAIN, density=density(PLAIN))
    step, steps, chains = 0.5 * largest_step(design), 60, 4000
    generator = torch.Generator().manual_seed(3)
    chain = AveragedLeastMeanSquares(START.expand(chains, -1), step)  # with w* = 0
    for _ in range(steps):
        drawn = torch.multinomial(design.drawn, chains, replacement=True, generator=generator)
        noise = torch.randn(chains, generator=generator, dtype=torch.float64)
        noise *= design.noise_variance[drawn].sqrt()
        if design.density is not None:
            noise /= design.density[drawn].sqrt()
        chain.update(design.scaled_points[drawn], noise)
    risks = ((chain.average @ design.covariance) * chain.average).sum(1) / 2
    curves = risk_curves(design, START, step, steps)
    exact = float(curves.bias[-1] + curves.variance[-1])
    error = float(risks.std()) / chains**0.5
    assert abs(float(risks.mean()) - exact) < 4 * error < 0.5 * exact


def test_refuses_bad_input() -> None:
    with pytest.raises(ConfigError, match="span"):
        Design(PLAIN.points[:, [0, 0]], PLAIN.probability, PLAIN.noise_variance)
    with pytest.raises(ConfigError, match="add to 1"):
        replace(PLAIN, probability=PLAIN.probability * 2)
    with pytest.raises(ConfigError, match="noise_variance"):
        replace(PLAIN, noise_variance=-PLAIN.noise_variance)
    with pytest.raises(ShapeError, match="noise_variance"):
        replace(PLAIN, noise_variance=PLAIN.noise_variance[1:])
    with pytest.raises(ConfigError, match="below"):
        risk_limits(PLAIN, START, 1.0)
    with pytest.raises(ConfigError, match="above 0"):
        risk_curves(PLAIN, START, float("nan"), 3)
    with pytest.raises(ShapeError, match="start"):
        risk_curves(PLAIN, START[1:], 0.1, 3)
    chain = AveragedLeastMeanSquares(torch.zeros(1, 2), 0.1)
    with pytest.raises(ConfigError, match="not finite"):
        chain.update(torch.full((1, 2), float("nan")), torch.zeros(1))
    with pytest.raises(ShapeError, match="inputs"):
        chain.update(torch.zeros(1, 3), torch.zeros(1))
