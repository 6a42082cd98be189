"""AdaBatch on sparse logistic regression: batch sizes, passes, wall time and workers.

Source: AdaBatch (arXiv 1711.01761): with its rule batches can grow at the same step size and give
the same loss or a better one after as many samples, where plain batches lose; and its parallel
version keeps up with Hogwild!.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from sonorant.errors import ConfigError
from sonorant.studies.report import COLOURS, Picture, Report
from sonorant.studies.sparse_rows import SparseRows
from sonorant.studies.sparse_training import (
    METHODS,
    PassResult,
    Plan,
    objective,
    train_alone,
    train_with_workers,
)

BATCH_SIZES = (1, 8, 64, 512)
STEP_SIZES = tuple(2.0**power for power in range(-1, 5))
PASSES = 4
SEQUENTIAL = ("minibatch", "adabatch")


@dataclass(frozen=True)
class GridPoint:
    """Test objective after one pass. method: of `METHODS`."""

    method: str
    batch_size: int
    lr: float
    objective: float


@dataclass(frozen=True)
class WorkersResult:
    """A run with some workers, pass by pass."""

    plan: Plan
    passes: list[PassResult]

    @property
    def seconds(self) -> float:
        """Of the fastest pass, which other work on the machine disturbs least."""
        return min(each.seconds for each in self.passes)


def split_half(rows: SparseRows, seed: int = 0) -> tuple[SparseRows, SparseRows]:
    """A random half to train on, and the other one."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows.take(order[: len(rows) // 2]), rows.take(order[len(rows) // 2 :])


def study_adabatch(
    train: SparseRows,
    test: SparseRows,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    workers: Sequence[int] = (1, 2),
    passes: int = PASSES,
    seed: int = 0,
    progress: Callable[[int], object] = lambda runs: None,
) -> Report:
    """Run the experiment. progress: called after each of `count_runs` runs.

    batch_sizes: compared after one pass each, at the best of `STEP_SIZES`; the largest is also that
        of the runs with workers.
    Raises: ConfigError for numbers below 1, or data of different widths.
    """
    if not batch_sizes or not workers or min(*batch_sizes, *workers, passes) < 1:
        raise ConfigError("batch sizes, workers and passes must be 1 or more")
    if train.dimension != test.dimension:
        raise ConfigError(
            f"training and test data differ in width: {train.dimension} and {test.dimension}"
        )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers have; the work of a batch is too little for more
    try:
        grid = _grid(train, test, batch_sizes, seed, progress)
    finally:
        torch.set_num_threads(threads)
    best = _best(grid)
    found = []
    for method in METHODS:
        size = 1 if METHODS[method].single else max(batch_sizes)
        rule = "minibatch" if METHODS[method].average else "adabatch"
        lr = best[rule, min(batch_sizes) if METHODS[method].single else size].lr
        for count in workers:
            plan = Plan(method, size, lr, passes, count, seed)
            found.append(WorkersResult(plan, train_with_workers(train, test, plan)))
            progress(1)
    return _report(train, grid, found)


def count_runs(batch_sizes: Sequence[int], workers: Sequence[int]) -> int:
    """How many times `study_adabatch` calls `progress`."""
    return len(batch_sizes) * len(STEP_SIZES) * len(SEQUENTIAL) + len(METHODS) * len(workers)


def _grid(
    train: SparseRows,
    test: SparseRows,
    batch_sizes: Sequence[int],
    seed: int,
    progress: Callable[[int], object],
) -> list[GridPoint]:
    points: list[GridPoint] = []
    for method in SEQUENTIAL:
        for size in batch_sizes:
            for lr in STEP_SIZES:
                same = [p for p in points if size == 1 and (p.batch_size, p.lr) == (1, lr)]
                if same:  # of single samples the mean is the same by both rules
                    points.append(replace(same[0], method=method))
                else:
                    weight = train_alone(train, Plan(method, size, lr, seed=seed))
                    points.append(GridPoint(method, size, lr, objective(test, weight)))
                progress(1)
    return points


def _best(grid: list[GridPoint]) -> dict[tuple[str, int], GridPoint]:
    """For each method and batch size, the point of the lowest objective."""
    best: dict[tuple[str, int], GridPoint] = {}
    for point in sorted(grid, key=lambda point: -point.objective):
        best[point.method, point.batch_size] = point
    return best


def _report(train: SparseRows, grid: list[GridPoint], found: list[WorkersResult]) -> Report:
    best = _best(grid)
    rows = [["batch size", *(METHODS[name].title for name in SEQUENTIAL)]]
    for size in dict.fromkeys(point.batch_size for point in grid):
        points = [best[name, size] for name in SEQUENTIAL]
        cells = (f"{point.objective:.4f} (step {point.lr:g})" for point in points)
        rows.append([str(size), *cells])
    for result in found:
        plan = result.plan
        title = f"{METHODS[plan.method].title}, batch {plan.batch_size}, {plan.workers} workers"
        last = result.passes[-1].objective
        rows.append([title, f"{result.seconds:.2f} s a pass", f"{last:.4f}"])
    words = [
        f"Logistic regression on {len(train):,} rows of {train.dimension:,} columns with "
        f"{len(train.columns) / len(train):.0f} non-zeros each. The objective is the mean loss on "
        f"rows not trained on; {math.log(2):.4f} without training.",
        "Above: after one pass, at the best step size. Below: time of the fastest pass, and the "
        f"objective after {len(found[0].passes)} passes.",
    ]
    pictures = [
        Picture(
            "batch-sizes",
            "Test objective after one pass: at the best step size (left), and at each (right; "
            "lines are AdaBatch, dashes plain batches).",
            [partial(_draw_best, best), partial(_draw_grid, grid)],
        ),
        Picture(
            "workers",
            "Test objective against passes and against wall time, by method and workers.",
            [partial(_draw_workers, found, False), partial(_draw_workers, found, True)],
        ),
    ]
    results = {"grid": grid, "workers": found, "rows": len(train), "dimension": train.dimension}
    return Report("AdaBatch on sparse logistic regression", words, rows, results, pictures)


def _draw_best(best: dict[tuple[str, int], GridPoint], axes: Any) -> None:
    for colour, name in zip(COLOURS, SEQUENTIAL, strict=False):
        points = sorted((p for (method, _), p in best.items() if method == name), key=_size)
        sizes, losses = [p.batch_size for p in points], [p.objective for p in points]
        axes.plot(sizes, losses, "o-", color=colour, label=METHODS[name].title)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("batch size", fontsize=9)


def _size(point: GridPoint) -> int:
    return point.batch_size


def _draw_grid(grid: list[GridPoint], axes: Any) -> None:
    sizes = sorted({point.batch_size for point in grid})
    for colour, size in zip(COLOURS, sizes, strict=False):
        for name, line in zip(SEQUENTIAL, ("--", "-"), strict=True):
            points = [p for p in grid if (p.method, p.batch_size) == (name, size)]
            label = f"batch {size}" if line == "-" else None
            losses = [p.objective for p in points]
            axes.plot([p.lr for p in points], losses, line, color=colour, label=label)
    axes.set_xscale("log", base=2)
    axes.set_ylim(top=math.log(2) + 0.02)
    axes.set_xlabel("step size", fontsize=9)


def _draw_workers(found: list[WorkersResult], over_time: bool, axes: Any) -> None:
    colours = dict(zip(METHODS, COLOURS, strict=False))
    for result in found:
        plan, seconds, across = result.plan, 0.0, []
        for number, each in enumerate(result.passes, 1):
            seconds += each.seconds
            across.append(seconds if over_time else number)
        axes.plot(
            across,
            [each.objective for each in result.passes],
            "o--" if plan.workers > 1 else "o-",
            markersize=3,
            color=colours[plan.method],
            label=f"{METHODS[plan.method].title}, {plan.workers}",
        )
    axes.set_xlabel("seconds" if over_time else "passes", fontsize=9)
    if over_time:
        axes.set_xscale("log")
