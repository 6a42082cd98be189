"""An evaluation as one picture: each metric over the rates, file by file, and use of codebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sonorant.codec.evaluation import Evaluation, Totals
from sonorant.codec.metrics import METRICS
from sonorant.reports import check_picture_path, panels, write_figure

COLUMNS = 3
DOTS, MEANS = "#8b93a1", "#3d8bfd"


def write_picture(evaluation: Evaluation, path: Path) -> None:
    """Draw to a PNG, PDF or SVG file, whole or not at all; errors as of `check_picture_path`."""
    check_picture_path(path)
    names = [name for name in METRICS if any(name in total.metrics for total in evaluation.totals)]
    figure, (*axes, last) = panels(len(names) + 1, COLUMNS)
    for each, name in zip(axes, names, strict=True):
        _draw_metric(each, evaluation, name)
    _draw_codebooks(last, max(evaluation.totals, key=lambda total: len(total.codebooks)))
    files = evaluation.totals[0].files
    write_figure(figure, f"{evaluation.model} on {files} file{'s' if files > 1 else ''}", path)


def _draw_metric(axes: Any, evaluation: Evaluation, name: str) -> None:
    metric = METRICS[name]
    for total in evaluation.totals:
        if name not in total.metrics:
            continue
        values = [
            file.scores[name]
            for file in evaluation.files
            if file.bandwidth_kbps == total.bandwidth_kbps and name in file.scores
        ]
        axes.plot([total.kbps] * len(values), values, "o", color=DOTS, alpha=0.4, markersize=3)
    shown = [total for total in evaluation.totals if name in total.metrics]
    shown.sort(key=lambda total: total.kbps)
    rates = [total.kbps for total in shown]
    axes.plot(rates, [total.metrics[name].mean for total in shown], "o-", color=MEANS)
    better = "higher" if metric.higher_is_better else "lower"
    unit = f" in {metric.unit}" if metric.unit else ""
    axes.set_title(f"{metric.title}{unit}, {better} is better", fontsize=8)
    axes.set_xlabel("kb/s", fontsize=7)
    axes.tick_params(labelsize=7)


def _draw_codebooks(axes: Any, total: Totals) -> None:
    numbers = range(1, len(total.codebooks) + 1)
    axes.bar(numbers, [book.perplexity for book in total.codebooks], color=MEANS)
    axes.set_title("codewords used in effect (perplexity)", fontsize=8)
    axes.set_xlabel("codebook", fontsize=7)
    axes.tick_params(labelsize=7)
