"""What reports of all kinds share: pictures of panels, tables for a terminal, whole files."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from sonorant.errors import ConfigError, DependencyError

PANEL_INCHES = (3.4, 2.8)
DOTS_PER_INCH = 150
FORMATS = (".png", ".pdf", ".svg")


def require_plots() -> None:
    """Raises: DependencyError without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "the report needs matplotlib: pip install 'sonorant[plots]'"
        ) from error


def check_picture_path(path: Path) -> None:
    """Raises: ConfigError for a format that is not drawn, DependencyError without matplotlib."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: a picture's name ends in {', '.join(FORMATS)}")
    require_plots()


def panels(count: int, columns: int) -> tuple[Any, list[Any]]:
    """A matplotlib figure, and `count` axes in rows of `columns`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * columns, height * rows), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def write_figure(figure: Any, title: str, path: Path) -> None:
    """Write a figure of panels to a PNG, PDF or SVG file, whole or not at all."""
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    drawn = BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower())
    write_whole(path, drawn.getvalue())


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the head first, in columns for a terminal: the first to the left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
