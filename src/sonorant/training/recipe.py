"""Recipes: one YAML file per experiment, read into frozen structs that refuse unknown fields.

task: codec                      # a short name, or package.module:Class
training: {steps: 100000, ...}   # numbers of the engine
settings: {...}                  # numbers of the task, its `Settings` struct
quantization: diffq              # where weights are to learn to be few bits
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml

from sonorant.errors import ConfigError
from sonorant.training.quantization import Quantization
from sonorant.training.task import Task

Struct = TypeVar("Struct", bound=msgspec.Struct)
Positive = Annotated[int, msgspec.Meta(ge=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]


class TrainingConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Numbers of the engine.

    steps: optimiser steps in all.
    batch_size: items per process and backward pass; a step sees
        batch_size * accumulate * processes items.
    accumulate: backward passes per step.
    seed: fixes weights, data and every draw.
    device: "auto" takes a GPU where there is one.
    precision: of the forward passes a task marks for it.
    threads: torch threads of this process; null leaves torch's choice.
    workers: processes that prepare data; 0 prepares it in the training process.
    max_gradient_norm: gradients are scaled down to this norm per optimiser; null for never.
    warmup_steps: the learning rate rises linearly over these.
    decay_from_step: from here the learning rate follows half a cosine down to
        final_learning_rate (a fraction of the optimiser's own) at the last step.
    drop_every: after each so many steps the learning rate is multiplied by drop_factor; 0 for
        never.
    average_decay: decay per step of the averaged weights; null keeps none.
    log_every, evaluate_every, checkpoint_every: steps between. 0 never evaluates.
    evaluation_batches: validation batches per process; null for all.
    keep_checkpoints: older ones are deleted.
    """

    steps: Positive
    batch_size: Positive
    accumulate: Positive = 1
    seed: Natural = 0
    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: Positive | None = None
    workers: Natural = 0
    max_gradient_norm: Annotated[float, msgspec.Meta(gt=0)] | None = None
    warmup_steps: Natural = 0
    decay_from_step: Natural = 0
    final_learning_rate: Fraction = 1.0
    drop_every: Natural = 0
    drop_factor: Fraction = 0.1
    average_decay: Annotated[float, msgspec.Meta(ge=0, lt=1)] | None = None
    log_every: Positive = 50
    evaluate_every: Natural = 1000
    evaluation_batches: Positive | None = None
    checkpoint_every: Positive = 1000
    keep_checkpoints: Positive = 2


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A recipe as read; `settings` stays plain until the task's own struct is known."""

    task: str
    training: TrainingConfig
    settings: dict[str, Any] = {}
    quantization: Quantization | None = None


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe; `overrides` such as "training.steps=10" replace single fields.

    Raises: ConfigError naming the file and the field.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the recipe {path}: {error}") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold the sections task, training and settings")
    for override in overrides:
        _apply_override(data, override)
    return convert_section(data, Recipe, str(path))


def convert_section(data: Any, struct: type[Struct], where: str) -> Struct:
    """Plain data into a frozen struct. Raises: ConfigError naming the field."""
    try:
        # Not strict, because YAML 1.1 reads 3e-4 (no point) as text.
        return msgspec.convert(data, struct, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from error


def build_task(recipe: Recipe, short_names: Mapping[str, str]) -> Task:
    """Make the task that the recipe names.

    Raises: ConfigError if there is no such task or its settings are wrong.
    """
    address = short_names.get(recipe.task, recipe.task)
    module_name, _, class_name = address.partition(":")
    if not class_name:
        known = ", ".join(sorted(short_names)) or "none"
        raise ConfigError(
            f"no task is named {recipe.task!r}; short names: {known}; "
            "or give it as package.module:Class"
        )
    try:
        task_type = getattr(importlib.import_module(module_name), class_name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(f"cannot find the task {address!r}: {error}") from error
    if not (isinstance(task_type, type) and issubclass(task_type, Task)):
        raise ConfigError(f"{address} is not a sonorant.training.task.Task")
    settings = convert_section(recipe.settings, task_type.Settings, "the recipe's settings")
    return task_type(settings)


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe as it was used, overrides and defaults included."""
    path.write_text(yaml.safe_dump(msgspec.to_builtins(recipe), sort_keys=False), encoding="utf-8")


def _apply_override(data: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise ConfigError(f"{override!r} is not an override; write section.field=value")
    *sections, field = name.split(".")
    section: Any = data
    for part in sections:
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise ConfigError(f"{override!r}: {part!r} is not a section of the recipe")
    try:
        section[field] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{override!r}: the value is not valid YAML: {error}") from error
