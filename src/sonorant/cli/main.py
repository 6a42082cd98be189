"""The `sonorant` command: one small file per subcommand, imported only when it is used."""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

import click

from sonorant import __version__
from sonorant.errors import SonorantError

INTERRUPTED = 130
"""Exit status of a command stopped by Ctrl-C, as shells have it: 128 + SIGINT."""


class Subcommand(NamedTuple):
    """Where a subcommand is defined, and the line that `sonorant --help` prints for it."""

    address: str
    help: str


SUBCOMMANDS = {
    "compress": Subcommand("sonorant.cli.compress:compress", "Turn a sound into a small file."),
    "decompress": Subcommand("sonorant.cli.decompress:decompress", "Turn it back into sound."),
    "separate": Subcommand("sonorant.cli.separate:separate", "Take music apart into its stems."),
    "demo": Subcommand("sonorant.cli.demo:demo", "Compress sample clips and write a report."),
    "models": Subcommand("sonorant.cli.models:models", "List the known models, or describe one."),
    "evaluate": Subcommand("sonorant.cli.evaluate:evaluate", "Measure how good a model is."),
    "quantize": Subcommand(
        "sonorant.cli.quantize:quantize", "Store a model with fewer bits per weight."
    ),
    "train": Subcommand("sonorant.cli.train:train", "Train the model that a recipe describes."),
    "data": Subcommand("sonorant.cli.data:data", "Fetch open training data."),
    "study": Subcommand("sonorant.cli.study:study", "Run an optimiser's experiment."),
}


class LazyGroup(click.Group):
    """A group that imports a subcommand's file only when that subcommand runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        module, _, name = SUBCOMMANDS[cmd_name].address.partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in SUBCOMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sonorant")
def sonorant() -> None:
    """Neural audio as streams of tokens."""


def main() -> None:
    """Run the command line; errors a user can act on are one line on stderr and exit status 2."""
    try:
        sonorant.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED)
    except (SonorantError, OSError) as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
