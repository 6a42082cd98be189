"""`sonorant models list` and `sonorant models info NAME`."""

from __future__ import annotations

from pathlib import Path

import click

from sonorant.hub.fetch import is_cached
from sonorant.hub.table import ModelEntry, known

CARD_FILE = "README.md"


@click.group()
def models() -> None:
    """List the known models, or describe one."""


@models.command("list")
def list_models() -> None:
    """Name every model that can be loaded by name, and where its files are."""
    width = max(len(name) for name in known().models)
    for name, entry in known().models.items():
        click.echo(f"{name:{width}}  {_place(entry):8}  {entry.title}")


@models.command()
@click.argument("name")
def info(name: str) -> None:
    """Describe the model NAME: a known name, a folder or a file. Fetches it where necessary."""
    from sonorant.model import load

    entry = known().models.get(name)
    facts = load(name).info()
    lines = {
        "name": facts.name or name,
        "title": entry.title if entry else None,
        "system": facts.system,
        "parameters": f"{facts.parameters:,}",
        "size in memory": megabytes(facts.bytes),
        "per live session": None if facts.state_bytes is None else megabytes(facts.state_bytes),
        "licence": entry.licence if entry else None,
    }
    for label, value in lines.items():
        if value is not None:
            click.echo(f"{label + ':':18}{value}")
    card = _card(name, entry)
    if card is not None:
        click.echo("\n" + card.read_text(encoding="utf-8").rstrip())


def megabytes(count: int) -> str:
    """A number of bytes in megabytes (10^6 bytes)."""
    return f"{count / 1e6:.2f} MB"


def _place(entry: ModelEntry) -> str:
    if entry.package:
        return "shipped"
    return "cached" if is_cached(entry) else "remote"


def _card(name: str, entry: ModelEntry | None) -> Path | None:
    """The model card beside the weights, if there is one."""
    folder = entry.package_folder if entry else Path(name)
    card = folder / CARD_FILE if folder else None
    return card if card and card.is_file() else None
