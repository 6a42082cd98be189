"""`sonorant train recipe.yaml [section.field=value ...]`: run or resume a training recipe."""

from __future__ import annotations

from pathlib import Path

import click

SHORT_NAMES = {
    "codec": "sonorant.codec.training:CodecTask",
    "entropy": "sonorant.codec.entropy_training:EntropyTask",
    "image_classification": "sonorant.studies.image_classification:ImageTask",
    "language_model": "sonorant.studies.language_model:LanguageTask",
    "mimi": "sonorant.codec.mimi_training:MimiTask",
    "separation": "sonorant.separation.training:SeparationTask",
    "silence_detector": "sonorant.separation.silence_detector:DetectorTask",
    "multiband_diffusion": "sonorant.codec.diffusion_training:DiffusionTask",
}
"""Tasks that a recipe may name in short."""


@click.command()
@click.argument("recipe", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[SECTION.FIELD=VALUE]...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the run; default runs/NAME, after the recipe's file name.",
)
@click.option("--resume", is_flag=True, help="Continue the run in the folder, if there is one.")
def train(recipe: Path, overrides: tuple[str, ...], out: Path | None, resume: bool) -> None:
    """Train the model that RECIPE describes.

    Runs on a GPU where there is one. For many processes put `accelerate launch -m
    sonorant.cli.main` in place of `sonorant`. SIGTERM or Ctrl-C saves a checkpoint and stops.
    """
    from sonorant.training.engine import train as run
    from sonorant.training.recipe import load_recipe

    folder = out or Path("runs") / recipe.stem
    finished = run(load_recipe(recipe, overrides), folder, resume, SHORT_NAMES)
    if finished:
        click.echo(f"done: the model is in {folder / 'model'}")
