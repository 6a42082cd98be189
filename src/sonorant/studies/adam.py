"""How far from stationary Adam stays on the toy problem, as one setting after another grows.

Source: A Simple Convergence Proof of Adam and Adagrad (arXiv 2003.02395), the toy experiment: the
mean of |grad F|^2 over a million steps against alpha, 1 - beta1 and 1 - beta2, each with the others
fixed, from a start that is nearly stationary. The theorems predict slopes of 1, -1 and 0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sonorant.errors import ConfigError
from sonorant.studies.report import COLOURS, Picture, Report
from sonorant.studies.toy import Array, Outcome, Settings, full_gradient, run

STEPS, SEEDS, VALUES = 1_000_000, 3, 13
_VALUES: Array = np.logspace(-6, 0, VALUES)
_SLOW = 1 - 1e-6  # beta2 where it does not change
_WARM_UP = (1e-4, 1e-5)  # step sizes, one after the other


@dataclass(frozen=True)
class Sweep:
    """One setting over its values, the others fixed.

    settings: of all values. published, predicted: log-log slopes by experiment and by the theorem.
    """

    name: str
    settings: Settings
    published: float
    predicted: float


@dataclass(frozen=True)
class SweepResult:
    """gradient_squares: [values], means over the seeds. by_seed: [values, seeds]."""

    name: str
    values: Array
    gradient_squares: Array
    by_seed: Array
    slope: float
    published: float
    predicted: float


def _sweeps() -> list[Sweep]:
    """The fixed values are the paper's for 1 - beta2; for the others they are like them."""
    one, slow = np.ones(VALUES), np.full(VALUES, _SLOW)
    return [
        Sweep("alpha", Settings(_VALUES, 0 * one, slow), 0.87, 1.0),
        Sweep("1 - beta1", Settings(1e-5 * one, 1 - _VALUES, slow), -0.16, -1.0),
        # beta2 = 0 would be no average at all; the largest value stays just below 1
        Sweep("1 - beta2", Settings(1e-6 * one, 0 * one, 1 - _VALUES * _SLOW), 0.56, 0.5),
    ]


def study_adam(
    steps: int = STEPS,
    seeds: int = SEEDS,
    seed: int = 0,
    progress: Callable[[int], object] = lambda steps: None,
) -> Report:
    """Run the experiment. progress: called with numbers of steps; there are 3 * `steps` in all.

    Raises: ConfigError if there are no steps or seeds.
    """
    if steps < 10 or seeds < 1:
        raise ConfigError(f"the study needs 10 steps and 1 seed or more, got {steps} and {seeds}")
    x = np.zeros((1, seeds, 6))
    for part, lr in enumerate(_WARM_UP):
        settings = Settings(np.array([lr]), np.zeros(1), np.array([_SLOW]))
        x = run(settings, x, steps, 2 * seed + part, progress).iterates
    sweeps = _sweeps()
    together = Settings(
        *(
            np.concatenate([getattr(sweep.settings, name) for sweep in sweeps])
            for name in ("lr", "beta1", "beta2")
        )
    )
    outcome = run(together, x, steps, 1_000_003 + seed, progress)
    results = [_result(sweep, outcome, i * VALUES) for i, sweep in enumerate(sweeps)]
    start = float(np.square(full_gradient(x)).sum(-1).mean())
    return _report(results, start, steps, seeds)


def _result(sweep: Sweep, outcome: Outcome, first: int) -> SweepResult:
    by_seed = outcome.gradient_squares[first : first + VALUES]
    means = by_seed.mean(-1)
    slope = float(np.polyfit(np.log(_VALUES), np.log(means), 1)[0])
    return SweepResult(sweep.name, _VALUES, means, by_seed, slope, sweep.published, sweep.predicted)


def _report(results: list[SweepResult], start: float, steps: int, seeds: int) -> Report:
    rows = [["setting", "slope measured", "slope published", "slope of the bound"]]
    for result in results:
        rows.append(
            [
                result.name,
                f"{result.slope:.2f}",
                f"{result.published:.2f}",
                f"{result.predicted:.1f}",
            ]
        )
    words = [
        "The mean of |grad F|^2 over a run of Adam without correction of m, on six coordinates "
        f"whose gradients are rare and large in different degrees; {steps:,} steps for each of "
        f"{VALUES} values and {seeds} seeds, batch size 1.",
        f"Every run begins where a warm-up of {len(_WARM_UP)} times {steps:,} steps ended, with "
        f"|grad F|^2 = {start:.2g}. Slopes are of straight lines through all points, log over log.",
    ]
    panels = [partial(_draw, result, index) for index, result in enumerate(results)]
    caption = "Mean |grad F|^2: dots are seeds, the line is their mean, dashes the bound's slope."
    return Report(
        "Adam on the toy problem",
        words,
        rows,
        {"steps": steps, "seeds": seeds, "start": start, "sweeps": results},
        [Picture("slopes", caption, panels)],
    )


def _draw(result: SweepResult, index: int, axes: Any) -> None:
    colour = COLOURS[index]
    axes.loglog(result.values, result.by_seed, ".", color=colour, alpha=0.35)
    axes.loglog(
        result.values, result.gradient_squares, color=colour, label=f"slope {result.slope:.2f}"
    )
    middle = len(result.values) // 2
    scale = result.gradient_squares[middle] / result.values[middle] ** result.predicted
    line = scale * result.values**result.predicted
    low, high = result.gradient_squares.min() / 3, result.gradient_squares.max() * 3
    shown = (line > low) & (line < high)
    axes.loglog(
        result.values[shown], line[shown], "--", color=COLOURS[4], label="slope of the bound"
    )
    axes.set_xlabel(result.name, fontsize=9)
    axes.set_title("mean |grad F|²", fontsize=9)
