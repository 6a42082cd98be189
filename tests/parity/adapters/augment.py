"""Augmentations of stems, drawn as the published package draws them."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from sonorant.separation.augment import (
    Augmentation,
    flip_channels,
    flip_signs,
    remix,
    scale,
    shift,
    without_chance,
)
from tests.parity.runner import Case


def augment(case: Case) -> dict[str, Tensor]:
    stems = case.input("in.wav")
    samples, group = case.config["shift"], case.config["remix_group_size"]
    changes: dict[str, Callable[[], Tensor]] = {
        "shift": lambda: shift(stems, samples),
        "shift_same": lambda: shift(stems, samples, together=True),
        "flip_channels": lambda: flip_channels(stems),
        "flip_sign": lambda: flip_signs(stems),
        "remix": lambda: remix(stems, group or len(stems)),
        "scale": lambda: scale(stems, *case.config["scale"]),
    }
    seed = re.search(r"manual_seed\((\d+)\)", case.readme)
    assert seed, "the README names no seed"
    found = {}
    for match in case.names(r"out\.(train|eval)_(.+)"):
        mode, name = match.groups()
        shifted = Augmentation(shift_samples=samples if name.startswith("shift") else 0)
        torch.manual_seed(int(seed[1]))
        found[match[0]] = changes[name]() if mode == "train" else without_chance(stems, shifted)
    return found


ADAPTERS = {"augment": augment}
