"""A study's result as a folder: one page with pictures, the pictures, and every figure as JSON."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

from sonorant.errors import ConfigError
from sonorant.reports import require_plots, write_whole

PAGE, FIGURES = "report.html", "results.json"
PANEL_INCHES = (4.6, 3.6)
DOTS_PER_INCH = 130
COLOURS = ("#3d8bfd", "#e8710a", "#12805c", "#9334e6", "#8b93a1", "#c5221f")

_TEMPLATE = Template("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 16px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
img { max-width: 100%; background: white }
td, th { padding: .2rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left }
figure { margin: 2rem 0 }
@media (prefers-color-scheme: dark) { body { background: #16181d; color: #e6e6e6 } }
</style>
<h1>$title</h1>
$words
$table
$pictures
</html>
""")


@dataclass(frozen=True)
class Picture:
    """name: of the file, without ending. panels: drawn side by side, each on its own axes."""

    name: str
    caption: str
    panels: Sequence[Any]


@dataclass(frozen=True)
class Report:
    """What a study found.

    words: paragraphs. rows: a table, its head first. results: what goes into the JSON.
    """

    title: str
    words: Sequence[str]
    rows: Sequence[Sequence[str]]
    results: Any
    pictures: Sequence[Picture] = field(default=())


def check_folder(folder: Path) -> None:
    """Raises: ConfigError if the folder cannot be written; DependencyError without matplotlib."""
    require_plots()
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, and the report needs a folder")


def write_report(folder: Path, report: Report) -> None:
    """Write page, pictures and figures; files of an earlier report are replaced."""
    import msgspec

    folder.mkdir(parents=True, exist_ok=True)
    figures = []
    for picture in report.pictures:
        drawn = _draw(picture)
        write_whole(folder / f"{picture.name}.png", drawn)
        data = base64.b64encode(drawn).decode("ascii")
        figures.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{html.escape(picture.caption)}">'
            f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
        )
    page = _TEMPLATE.substitute(
        title=html.escape(report.title),
        words="\n".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in report.words),
        table=_html_table(report.rows),
        pictures="\n".join(figures),
    )
    write_whole(folder / PAGE, page.encode("utf-8"))
    encoded = msgspec.json.encode(report.results, enc_hook=lambda value: value.tolist())
    write_whole(folder / FIGURES, msgspec.json.format(encoded, indent=2) + b"\n")


def _html_table(rows: Sequence[Sequence[str]]) -> str:
    lines = []
    for index, row in enumerate(rows):
        tag = "td" if index else "th"
        cells = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        lines.append(f"<tr>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _draw(picture: Picture) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * len(picture.panels), height), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(picture.panels), squeeze=False)[0]
    for axes, draw in zip(panels, picture.panels, strict=True):
        draw(axes)
        axes.tick_params(labelsize=8)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    figure.tight_layout()
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()
