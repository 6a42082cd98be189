"""Renaming keys between layouts, both ways and completely."""

import pytest
import torch

from sonorant.errors import CheckpointError
from sonorant.hub.keys import KeyMap, misfits, summary

KEYS = KeyMap(
    [
        ("encoder.model.0.conv.{tensor}", "encoder.first.{tensor}"),
        ("encoder.model.{i}.block.{j}.{tensor}", "encoder.blocks.{i}.layers.{j}.{tensor}"),
        ("out.weight", "head.weight"),
    ]
)
THEIRS = ["encoder.model.0.conv.bias", "encoder.model.12.block.3.conv.weight_g", "out.weight"]


def test_keys_are_renamed_and_renamed_back() -> None:
    ours = KEYS.to_ours(THEIRS)
    assert list(ours.values()) == [
        "encoder.first.bias",
        "encoder.blocks.12.layers.3.conv.weight_g",
        "head.weight",
    ]
    assert KEYS.to_theirs(ours.values()) == {value: key for key, value in ours.items()}


def test_first_matching_rule_decides() -> None:
    keys = KeyMap([("a.{n}", "number.{n}"), ("a.{text}", "text.{text}")])
    assert keys.to_ours(["a.1", "a.b"]) == {"a.1": "number.1", "a.b": "text.b"}


def test_dots_in_templates_are_only_dots() -> None:
    with pytest.raises(CheckpointError, match="no place in this layout for outXweight"):
        KEYS.to_ours(["outXweight"])


def test_keys_without_a_rule_are_named_and_counted() -> None:
    with pytest.raises(CheckpointError, match="for k0, k1, k2 and 2 more"):
        KEYS.to_ours([*THEIRS, *(f"k{i}" for i in range(5))])


def test_summary_of_few_names_counts_nothing() -> None:
    assert summary(["b", "a"]) == "a, b"


def test_misfits_tell_shape_and_kind_of_number_but_not_precision() -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(2, dtype=torch.long), "c": torch.zeros(1)}
    found = {"a": torch.zeros(3), "b": torch.zeros(2), "c": torch.zeros(1, dtype=torch.float16)}
    assert misfits(expected, found) == [
        "a [3] float32 instead of [2] float32",
        "b [2] float32 instead of [2] int64",
    ]
