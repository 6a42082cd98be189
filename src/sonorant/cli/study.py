"""`sonorant study adam|adabatch|lms`: what a paper says of an optimiser, tried, with pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sonorant.errors import ConfigError

if TYPE_CHECKING:
    from sonorant.studies.report import Report
    from sonorant.studies.sparse_rows import SparseRows

SHAPES = ("small", "news20", "webspam", "url")
"""Those of `sonorant.studies.sparse_rows`, which is not imported for help."""

out_option = click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to write; default study-NAME. Files of an earlier report are replaced.",
)
seed_option = click.option("--seed", default=0, show_default=True, type=click.IntRange(0))


@click.group()
def study() -> None:
    """Run an optimiser's experiment, print its figures, and write a report with pictures."""


@study.command()
@click.option(
    "--steps",
    default=1_000_000,
    show_default=True,
    type=click.IntRange(10),
    help="Of each run; the slopes need a million.",
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1))
@out_option
@seed_option
def adam(steps: int, seeds: int, out: Path | None, seed: int) -> None:
    """Adam on its toy problem: how the gradient norm grows with alpha, 1 - beta1 and 1 - beta2."""

    def run(progress: Callable[[int], object]) -> Report:
        from sonorant.studies.adam import study_adam

        return study_adam(steps, seeds, seed, progress)

    _study(out or Path("study-adam"), 3 * steps, "step", run)


@study.command()
@click.option(
    "--train", type=click.Path(dir_okay=False, path_type=Path), help="A file in libsvm's format."
)
@click.option(
    "--test",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Another; by default half of the training file.",
)
@click.option(
    "--shape",
    default="small",
    show_default=True,
    type=click.Choice(SHAPES),
    help="Without --train: what the data that is made here is like.",
)
@click.option("--batch-size", "batch_sizes", multiple=True, type=click.IntRange(1))
@click.option("--workers", multiple=True, type=click.IntRange(1), help="By default 1 and 2.")
@click.option("--passes", default=4, show_default=True, type=click.IntRange(1))
@out_option
@seed_option
def adabatch(
    train: Path | None,
    test: Path | None,
    shape: str,
    batch_sizes: tuple[int, ...],
    workers: tuple[int, ...],
    passes: int,
    out: Path | None,
    seed: int,
) -> None:
    """AdaBatch on sparse logistic regression, beside plain batches and Hogwild.

    --batch-size and --workers may be given more than once.
    """
    from sonorant.studies.adabatch import BATCH_SIZES, count_runs, study_adabatch

    sizes, counts = batch_sizes or BATCH_SIZES, workers or (1, 2)

    def run(progress: Callable[[int], object]) -> Report:
        rows = _rows(train, test, shape, seed)
        return study_adabatch(
            *rows, batch_sizes=sizes, workers=counts, passes=passes, seed=seed, progress=progress
        )

    _study(out or Path("study-adabatch"), count_runs(sizes, counts), "run", run)


@study.command()
@click.option("--chains", default=1000, show_default=True, type=click.IntRange(2))
@click.option(
    "--steps", type=click.IntRange(4), help="By default until the slopes hold, several thousand."
)
@out_option
@seed_option
def lms(chains: int, steps: int | None, out: Path | None, seed: int) -> None:
    """Averaged least mean squares: measured risks on the exact curves, and samplings compared."""

    def run(progress: Callable[[int], object]) -> Report:
        from sonorant.studies.lms import study_lms

        return study_lms(chains, steps, seed, progress)

    _study(out or Path("study-lms"), 4, "sampling", run)


def _rows(
    train: Path | None, test: Path | None, shape: str, seed: int
) -> tuple[SparseRows, SparseRows]:
    """What to train on, and what to measure on."""
    from sonorant.studies.adabatch import split_half
    from sonorant.studies.sparse_rows import SHAPES, make_rows, read_libsvm

    if train is None:
        if test is not None:
            raise ConfigError("--test needs --train: data that is made here has a test half")
        return split_half(make_rows(SHAPES[shape], seed), seed)
    rows = read_libsvm(train)
    if test is None:
        return split_half(rows, seed)
    others = read_libsvm(test)
    dimension = max(rows.dimension, others.dimension)
    return replace(rows, dimension=dimension), replace(others, dimension=dimension)


def _study(
    folder: Path, total: int, unit: str, run: Callable[[Callable[[int], Any]], Report]
) -> None:
    """Run with a progress bar, print the table, and write the report."""
    from tqdm import tqdm

    from sonorant.reports import text_table
    from sonorant.studies.report import PAGE, check_folder, write_report

    check_folder(folder)
    with tqdm(total=total, desc="studying", unit=unit, disable=None) as bar:
        report = run(bar.update)
    click.echo(text_table(report.rows))
    write_report(folder, report)
    click.echo(f"\nOpen {folder / PAGE} in a browser to see it.")
