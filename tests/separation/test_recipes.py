"""The recipes that ship: each says only what its task has."""

from pathlib import Path

import pytest

from sonorant.cli.train import SHORT_NAMES
from sonorant.hub.table import resolve
from sonorant.training.recipe import convert_section, load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
SEPARATION = [
    path for path in RECIPES if load_recipe(path).task in ("separation", "silence_detector")
]


@pytest.mark.parametrize("path", SEPARATION, ids=lambda path: path.stem)
def test_settings_are_those_of_the_task(path: Path) -> None:
    recipe = load_recipe(path)
    task = resolve(SHORT_NAMES[recipe.task])
    settings = convert_section(recipe.settings, task.Settings, path.name)
    group = settings.augmentation.remix_group
    assert not group or recipe.training.batch_size % group == 0


def test_every_published_model_has_one() -> None:
    names = {path.stem for path in SEPARATION}
    assert names >= {"demucs-v1", "demucs-v2", "conv-tasnet", "hdemucs", "htdemucs"}
