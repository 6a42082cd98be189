"""The recipes of DiffQ's tables: they fit their tasks, and so does every command in their heads."""

import importlib
import shlex
from pathlib import Path

import pytest

from sonorant.cli.train import SHORT_NAMES
from sonorant.studies.image_classification import ImageSettings
from sonorant.studies.language_model import LanguageSettings
from sonorant.studies.resnet import RESNET_18, WIDE_RESNET_28_10
from sonorant.studies.word_transformer import WordTransformerConfig
from sonorant.training.recipe import Recipe, convert_section, load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = ("diffq-cifar10", "diffq-wikitext103")


def commands(name: str) -> list[list[str]]:
    """The overrides of each command in a recipe's head."""
    found = []
    for line in (RECIPES / f"{name}.yaml").read_text().splitlines():
        if line.startswith("#     sonorant train "):
            words = shlex.split(line.removeprefix("#     sonorant train "))
            assert words.pop(0) == f"recipes/{name}.yaml"
            found.append(words[: words.index("--out")] if "--out" in words else words)
    return found


def settings(recipe: Recipe) -> object:
    module, _, task = SHORT_NAMES[recipe.task].partition(":")
    kind = getattr(importlib.import_module(module), task).Settings
    return convert_section(recipe.settings, kind, "settings")


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_a_recipe(name: str) -> None:
    for overrides in [[], *commands(name)]:
        settings(load_recipe(RECIPES / f"{name}.yaml", overrides))
    assert len(commands(name)) >= 5


def test_the_models_are_the_published_ones() -> None:
    models = []
    for overrides in commands("diffq-cifar10"):
        made = settings(load_recipe(RECIPES / "diffq-cifar10.yaml", overrides))
        assert isinstance(made, ImageSettings)
        models.append(made.model)
    assert RESNET_18 in models
    assert WIDE_RESNET_28_10 in models
    language = settings(load_recipe(RECIPES / "diffq-wikitext103.yaml"))
    assert isinstance(language, LanguageSettings)
    assert language.model == WordTransformerConfig()
