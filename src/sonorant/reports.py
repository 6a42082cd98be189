"""What reports of all kinds share: the need of matplotlib, tables for a terminal, whole files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sonorant.errors import DependencyError


def require_plots() -> None:
    """Raises: DependencyError without matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "the report needs matplotlib: pip install 'sonorant[plots]'"
        ) from error


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
