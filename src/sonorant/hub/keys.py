"""Renaming the tensors of a checkpoint between layouts, and saying what does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from sonorant.errors import CheckpointError

SHOWN = 3
"""How many tensors an error names."""


class KeyMap:
    """Pairs of templates, (theirs, ours), that rename keys both ways; the first match decides.

    `{n}`, any single letter, stands for a number; `{path}`, any longer word, for any text. A key
    that no template covers is an error, so a layout is either known completely or not at all.

    >>> keys = KeyMap([("model.{i}.conv.weight_{part}", "layers.{i}.{part}")])
    >>> keys.to_ours(["model.3.conv.weight_g"])
    {'model.3.conv.weight_g': 'layers.3.g'}
    >>> keys.to_theirs(["layers.3.g"])
    {'layers.3.g': 'model.3.conv.weight_g'}
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        pairs = list(pairs)
        self._to_ours = [(_pattern(theirs), ours) for theirs, ours in pairs]
        self._to_theirs = [(_pattern(ours), theirs) for theirs, ours in pairs]

    def to_ours(self, keys: Iterable[str]) -> dict[str, str]:
        """Our name for each of their keys. Raises: CheckpointError for keys without one."""
        return _rename(keys, self._to_ours)

    def to_theirs(self, keys: Iterable[str]) -> dict[str, str]:
        """Their name for each of our keys. Raises: CheckpointError for keys without one."""
        return _rename(keys, self._to_theirs)


def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", template)
    for position, piece in enumerate(pieces):
        if position % 2 == 0:
            pieces[position] = re.escape(piece)
        else:
            text = r"\d+" if len(piece) == 1 else ".+"
            pieces[position] = f"(?P<{piece}>{text})"
    return re.compile("".join(pieces))


def _rename(keys: Iterable[str], rules: list[tuple[re.Pattern[str], str]]) -> dict[str, str]:
    renamed: dict[str, str] = {}
    unknown = []
    for key in keys:
        for pattern, template in rules:
            if match := pattern.fullmatch(key):
                renamed[key] = template.format(**match.groupdict())
                break
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(f"no place in this layout for {summary(unknown)}")
    return renamed


def summary(names: Iterable[str]) -> str:
    """The first few of many names, and how many there are."""
    names = sorted(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def misfits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Tensors that both have, of different shape or of another kind of number, in words."""
    return [
        f"{name} {_describe(found[name])} instead of {_describe(tensor)}"
        for name, tensor in expected.items()
        if name in found
        and (
            found[name].shape != tensor.shape
            or found[name].is_floating_point() != tensor.is_floating_point()
        )
    ]


def _describe(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
