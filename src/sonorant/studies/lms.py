"""Averaged least mean squares: measured risks on the exact curves, and samplings compared.

Source: Averaged Least-Mean-Squares (arXiv 1412.0156). The bias falls as 1 / N^2 and the variance as
1 / N; the second moment grows just above the largest step; sampling by the norm allows the largest
step of all, sampling by noise and leverage the least variance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonorant.errors import ConfigError
from sonorant.optim.least_mean_squares import (
    AveragedLeastMeanSquares,
    Design,
    RiskLimits,
    largest_step,
    leverage_density,
    norm_density,
    risk_curves,
    risk_limits,
    variance_density,
)
from sonorant.studies.report import COLOURS, Picture, Report

DIMENSION, POINTS, CHAINS = 8, 100, 1000
SAMPLINGS: dict[str, Callable[[Design], Tensor] | None] = {
    "uniform": None,
    "norm": norm_density,
    "leverage": leverage_density,
    "variance": variance_density,
}
_SLOPE_FROM = 20  # the asymptotic slope is that from 20 / (step * smallest eigenvalue) on
_STABILITY_STEPS = 1500


@dataclass(frozen=True)
class SamplingResult:
    """One way to draw samples, at half of its largest step.

    counts: N of each measurement. measured, error: mean excess risk over the chains and its
    standard error. bias, variance: [steps], exact. slopes are log-log, of the exact curves.
    """

    name: str
    largest_step: float
    step: float
    counts: list[int]
    measured: list[float]
    error: list[float]
    bias: Tensor
    variance: Tensor
    limits: RiskLimits
    bias_slope: float
    variance_slope: float

    @property
    def worst(self) -> float:
        """The largest distance from the exact curve, in standard errors."""
        exact = self.bias + self.variance
        return max(
            abs(measured - float(exact[count - 1])) / error
            for count, measured, error in zip(self.counts, self.measured, self.error, strict=True)
        )


def study_design(seed: int = 0) -> tuple[Design, Tensor]:
    """A problem made here, and where runs start.

    Gaussian points with variances 1 / i, of lengths that differ (a point in ten is twice as
    long), and noise that is larger where the points are long.
    """
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, DIMENSION + 1, dtype=torch.float64).rsqrt()
    points = torch.randn(POINTS, DIMENSION, generator=generator, dtype=torch.float64) * scales
    points[: POINTS // 10] *= 2
    noise = 0.05 + 0.05 * points.square().mean(1)
    chance = torch.full((POINTS,), 1 / POINTS, dtype=torch.float64)
    start = torch.randn(DIMENSION, generator=generator, dtype=torch.float64) * scales
    return Design(points, chance, noise), start


def study_lms(
    chains: int = CHAINS,
    steps: int | None = None,
    seed: int = 0,
    progress: Callable[[int], object] = lambda samplings: None,
) -> Report:
    """Run the experiment. progress: called after each of the samplings.

    steps: N; by default to four times where the slopes begin to hold.
    Raises: ConfigError for fewer than 2 chains or 4 steps.
    """
    if chains < 2 or (steps is not None and steps < 4):
        raise ConfigError(f"the study needs 2 chains and 4 steps or more, got {chains}, {steps}")
    plain, start = study_design(seed)
    results = []
    for name, density in SAMPLINGS.items():
        design = plain if density is None else replace(plain, density=density(plain))
        results.append(_measure(name, design, start, chains, steps, seed))
        progress(1)
    step = largest_step(plain)
    stability = {
        share: risk_curves(plain, start, share * step, _STABILITY_STEPS).bias
        for share in (0.95, 1.05)
    }
    return _report(results, stability, float(plain.covariance.trace()), chains)


def _measure(
    name: str, design: Design, start: Tensor, chains: int, steps: int | None, seed: int
) -> SamplingResult:
    largest = largest_step(design)
    step = largest / 2
    smallest = float(torch.linalg.eigvalsh(design.covariance)[0])
    steps = steps or int(4 * _SLOPE_FROM / (step * smallest))
    # From 2 on: the average of one iterate is the start, without any spread.
    counts = sorted({int(n) for n in np.geomspace(2, steps, 25)})
    curves = risk_curves(design, start, step, steps)
    measured, error = _simulate(design, start, step, counts, chains, seed)
    return SamplingResult(
        name=name,
        largest_step=largest,
        step=step,
        counts=counts,
        measured=measured,
        error=error,
        bias=curves.bias,
        variance=curves.variance,
        limits=risk_limits(design, start, step),
        bias_slope=_slope(curves.bias),
        variance_slope=_slope(curves.variance),
    )


def _slope(curve: Tensor) -> float:
    """Between a quarter and the end of the curve, log over log."""
    first = len(curve) // 4
    return float((curve[-1] / curve[first - 1]).log() / np.log(len(curve) / first))


def _simulate(
    design: Design, start: Tensor, step: float, counts: list[int], chains: int, seed: int
) -> tuple[list[float], list[float]]:
    """Mean excess risk and its standard error after each of the counts; w* is 0."""
    generator = torch.Generator().manual_seed(seed + 1)
    chain = AveragedLeastMeanSquares(start.expand(chains, -1), step)
    deviation = (design.noise_variance * design.probability / design.drawn).sqrt()
    means, errors = [], []
    for count in range(1, counts[-1] + 1):
        drawn = torch.multinomial(design.drawn, chains, replacement=True, generator=generator)
        noise = torch.randn(chains, generator=generator, dtype=torch.float64) * deviation[drawn]
        chain.update(design.scaled_points[drawn], noise)
        if count in counts:
            risks = ((chain.average @ design.covariance) * chain.average).sum(1) / 2
            means.append(float(risks.mean()))
            errors.append(float(risks.std()) / chains**0.5)
    return means, errors


def _report(
    results: list[SamplingResult], stability: dict[float, Tensor], trace: float, chains: int
) -> Report:
    rows = [
        [
            "sampling",
            "largest step",
            "of 2 / tr(H)",
            "N² bias",
            "N variance",
            "slope of bias",
            "of variance",
            "worst measured",
        ]
    ]
    for result in results:
        rows.append(
            [
                result.name,
                f"{result.largest_step:.4f}",
                f"{result.largest_step * trace / 2:.3f}",
                f"{result.limits.bias_times_n2:.4g}",
                f"{result.limits.variance_times_n:.4g}",
                f"{result.bias_slope:.3f}",
                f"{result.variance_slope:.3f}",
                f"{result.worst:.1f} errors",
            ]
        )
    words = [
        f"A least-squares problem of {DIMENSION} dimensions on {POINTS} points, each sampling at "
        f"half of its largest step; {chains:,} chains are simulated, and the curves are exact. "
        "N² bias and N variance are their limits.",
        "The last column is the largest distance of a measured mean from the exact curve, in "
        "standard errors of the mean.",
    ]
    caption = "Excess risk of the average of N iterates: lines are exact, dots are measured."
    pictures = [
        Picture("curves", caption, [partial(_draw_curves, r) for r in results[:2]]),
        Picture(
            "samplings",
            "Left: bias (lines) and variance (dashes) of each sampling. Right: the bias just below "
            "and just above the largest step.",
            [partial(_draw_samplings, results), partial(_draw_stability, stability)],
        ),
    ]
    found = {"chains": chains, "samplings": results, "stability": stability}
    return Report("Averaged least mean squares", words, rows, found, pictures)


def _draw_curves(result: SamplingResult, axes: Any) -> None:
    n = np.arange(1, len(result.bias) + 1)
    axes.loglog(n, result.bias + result.variance, color=COLOURS[4], label="exact")
    axes.loglog(n, result.bias, "--", color=COLOURS[0], label="bias")
    axes.loglog(n, result.variance, "--", color=COLOURS[1], label="variance")
    axes.loglog(result.counts, result.measured, "o", color=COLOURS[2], ms=4, label="measured")
    axes.set_xlabel("N", fontsize=9)
    axes.set_title(f"{result.name} sampling: excess risk", fontsize=9)


def _draw_samplings(results: list[SamplingResult], axes: Any) -> None:
    for colour, result in zip(COLOURS, results, strict=False):
        n = np.arange(1, len(result.bias) + 1)
        axes.loglog(n, result.bias, color=colour, label=result.name)
        axes.loglog(n, result.variance, "--", color=colour)
    axes.set_xlabel("N", fontsize=9)
    axes.set_title("bias and variance", fontsize=9)


def _draw_stability(stability: dict[float, Tensor], axes: Any) -> None:
    for colour, (share, bias) in zip(COLOURS, stability.items(), strict=False):
        axes.loglog(np.arange(1, len(bias) + 1), bias, color=colour, label=f"{share} of largest")
    axes.set_xlabel("N", fontsize=9)
    axes.set_title("bias of the average", fontsize=9)
