"""What commands that measure share: where figures go, as a table, JSON or a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from sonorant.errors import ConfigError

STANDARD_OUTPUT = Path("-")

json_option = click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every figure here; - prints them instead of the table.",
)
picture_option = click.option(
    "--picture", type=click.Path(dir_okay=False, path_type=Path), help="PNG, PDF or SVG."
)


def check_targets(*targets: Path | None) -> None:
    """Raises: ConfigError if the folder to write to is missing, before all the work."""
    for target in targets:
        if target in (None, STANDARD_OUTPUT):
            continue
        folder = target.absolute().parent
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder} to write to")


def print_figures(figures: Any, json_path: Path | None, lines: Callable[[], Sequence[str]]) -> None:
    """Print the lines, and write the figures where they are wanted; or print them instead."""
    import msgspec

    from sonorant.reports import write_whole

    if json_path is not None:
        data = msgspec.json.format(msgspec.json.encode(figures), indent=2)
        if json_path == STANDARD_OUTPUT:
            click.echo(data)
            return
        write_whole(json_path, data + b"\n")
    click.echo("\n".join(lines()))
