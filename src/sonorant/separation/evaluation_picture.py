"""An evaluation of separation as one picture: a panel for each metric, a dot for each song."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from sonorant.errors import ConfigError
from sonorant.reports import require_plots, write_whole
from sonorant.separation.evaluation import METRICS, Evaluation

PANEL_INCHES = (3.4, 2.8)
COLUMNS = 3
DOTS_PER_INCH = 150
FORMATS = (".png", ".pdf", ".svg")
DOTS, MEDIANS, MEANS = "#8b93a1", "#3d8bfd", "#f08c2e"
TITLES = {
    "sdr": "SDR: all that is wrong",
    "isr": "ISR: space and colour",
    "sir": "SIR: other sources",
    "sar": "SAR: artefacts",
    "global_sdr": "SDR of the whole song",
}


def check_picture_path(path: Path) -> None:
    """Raises: ConfigError for a format that is not drawn, DependencyError without matplotlib."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: a picture's name ends in {', '.join(FORMATS)}")
    require_plots()


def write_picture(evaluation: Evaluation, path: Path) -> None:
    """Draw to a PNG, PDF or SVG file, whole or not at all; errors as of `check_picture_path`."""
    check_picture_path(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = [name for name in METRICS if any(name in of for of in evaluation.totals.values())]
    columns = min(COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * columns, height * rows), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, metric in zip(panels, metrics, strict=False):
        _draw(axes, evaluation, metric)
    for axes in panels[len(metrics) :]:
        axes.set_visible(False)
    songs = len(evaluation.songs)
    title = f"{evaluation.name} on {songs} song{'s' if songs > 1 else ''}, dB, higher is better"
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    drawn = BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower())
    write_whole(path, drawn.getvalue())


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
