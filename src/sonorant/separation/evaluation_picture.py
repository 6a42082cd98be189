"""An evaluation of separation as one picture: a panel for each metric, a dot for each song."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sonorant.reports import check_picture_path, panels, write_figure
from sonorant.separation.evaluation import METRICS, Evaluation

COLUMNS = 3
DOTS, MEDIANS, MEANS = "#8b93a1", "#3d8bfd", "#f08c2e"
TITLES = {
    "sdr": "SDR: all that is wrong",
    "isr": "ISR: space and colour",
    "sir": "SIR: other sources",
    "sar": "SAR: artefacts",
    "global_sdr": "SDR of the whole song",
}


def write_picture(evaluation: Evaluation, path: Path) -> None:
    """Draw to a PNG, PDF or SVG file, whole or not at all; errors as of `check_picture_path`."""
    check_picture_path(path)
    metrics = [name for name in METRICS if any(name in of for of in evaluation.totals.values())]
    figure, axes = panels(len(metrics), min(COLUMNS, len(metrics)))
    for each, metric in zip(axes, metrics, strict=True):
        _draw(each, evaluation, metric)
    songs = len(evaluation.songs)
    title = f"{evaluation.name} on {songs} song{'s' if songs > 1 else ''}, dB, higher is better"
    write_figure(figure, title, path)


def _draw(axes: Any, evaluation: Evaluation, metric: str) -> None:
    sources = [source for source in evaluation.totals if source != "all"]
    for place, source in enumerate(sources):
        found = [song.sources[source].of(metric) for song in evaluation.songs]
        values = [value for value in found if value is not None]
        axes.plot([place] * len(values), values, "o", color=DOTS, alpha=0.4, markersize=3)
        total = evaluation.totals[source].get(metric)
        if total is not None:
            axes.plot(place - 0.15, total.median, ">", color=MEDIANS)
            axes.plot(place + 0.15, total.mean, "<", color=MEANS)
    axes.set_title(TITLES[metric] + " (blue: median, orange: mean)", fontsize=7)
    axes.set_xticks(range(len(sources)), sources)
    axes.tick_params(labelsize=7)
