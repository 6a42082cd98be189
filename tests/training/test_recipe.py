from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sonorant.errors import ConfigError
from sonorant.training.recipe import build_task, load_recipe, save_recipe
from tests.training.toy import ToyTask, toy_recipe


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(toy_recipe({}, {"hidden": 3})))
    return path


def test_overrides_replace_single_fields_with_their_types(path: Path) -> None:
    overrides = ["training.steps=7", "training.max_gradient_norm=1e-3", "settings.hidden=9"]
    recipe = load_recipe(path, overrides)
    assert recipe.training.steps == 7
    assert recipe.training.max_gradient_norm == 1e-3
    task = build_task(recipe, {})
    assert isinstance(task, ToyTask)
    assert task.settings.hidden == 9


def test_override_with_null_and_list(path: Path) -> None:
    recipe = load_recipe(path, ["training.average_decay=null", "settings.x=[1, 2]"])
    assert recipe.training.average_decay is None
    assert recipe.settings["x"] == [1, 2]


def test_short_names_stand_for_tasks(path: Path) -> None:
    recipe = load_recipe(path, ["task=toy"])
    assert isinstance(build_task(recipe, {"toy": "tests.training.toy:ToyTask"}), ToyTask)


def test_saved_recipe_reads_back_the_same(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path, ["training.steps=7"])
    save_recipe(recipe, tmp_path / "used.yaml")
    assert load_recipe(tmp_path / "used.yaml") == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.stepz=1", "unknown field `stepz`"),
        ("training.steps=many", r"`int`.*\$\.training\.steps"),
        ("training.steps=0", r">= 1.*\$\.training\.steps"),
        ("training.precision=fp8", r"'fp8'.*precision"),
        ("trainig.steps=1", "unknown field `trainig`"),
        ("task.steps=1", "'task' is not a section"),
        ("training.steps", "is not an override"),
        ("training.steps=[", "not valid YAML"),
    ],
)
def test_wrong_override_names_the_field(path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(path, [override])


def test_unknown_setting_of_a_task_is_named(path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown field `hiden`"):
        build_task(load_recipe(path, ["settings.hiden=3"]), {})


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("codecs", "no task is named 'codecs'; short names: toy"),
        ("no.such.module:Task", "cannot find the task"),
        ("tests.training.toy:Missing", "cannot find the task"),
        ("tests.training.toy:Lines", "is not a sonorant.training.task.Task"),
    ],
)
def test_unknown_task_is_named(path: Path, task: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_task(load_recipe(path, [f"task={task}"]), {"toy": "tests.training.toy:ToyTask"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [", "is not valid YAML"),
        (b"", "must hold the sections"),
        (b"task: x\n", "missing required field `training`"),
        (b"\xff\xfe\x00", "cannot read the recipe"),
    ],
)
def test_wrong_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(path)
    assert "wrong.yaml" in str(caught.value)


def test_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the recipe nowhere\.yaml"):
        load_recipe("nowhere.yaml")
