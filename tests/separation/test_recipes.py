"""The recipes that ship: each says only what its task has."""

from pathlib import Path

import msgspec
import pytest
import torch

from sonorant.cli.train import SHORT_NAMES
from sonorant.hub.table import known, resolve
from sonorant.model import SkipInitialization
from sonorant.training.recipe import convert_section, load_recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
SEPARATION = [
    path for path in RECIPES if load_recipe(path).task in ("separation", "silence_detector")
]
FROM_NOTHING = [
    path for path in SEPARATION if "system" in load_recipe(path).settings.get("network", {})
]
"""Those that begin with random weights, not with a model."""


@pytest.mark.parametrize("path", SEPARATION, ids=lambda path: path.stem)
def test_settings_are_those_of_the_task(path: Path) -> None:
    recipe = load_recipe(path)
    task = resolve(SHORT_NAMES[recipe.task])
    settings = convert_section(recipe.settings, task.Settings, path.name)
    group = settings.augmentation.remix_group
    assert not group or recipe.training.batch_size % group == 0


@pytest.mark.parametrize("path", FROM_NOTHING, ids=lambda path: path.stem)
def test_networks_can_be_made(path: Path) -> None:
    network = load_recipe(path).settings["network"]
    system = resolve(known().system(network["system"]).class_)
    config = msgspec.convert(network.get("config", {}), system.config_type)
    with torch.device("meta"), SkipInitialization():
        model = system(config)
    assert sum(weight.numel() for weight in model.parameters()) > 10**6


def test_every_published_model_has_one() -> None:
    names = {path.stem for path in SEPARATION}
    assert names >= {
        *("demucs-v1", "demucs-v2", "demucs-v3", "conv-tasnet"),
        *("hdemucs", "htdemucs", "htdemucs-fine-tuned", "htdemucs-sparse"),
    }
