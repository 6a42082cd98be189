"""OmegaConf configs inside torch pickles, read as plain data without that library.

The objects are replaced by stand-ins that only keep what the file says about them. A config is a
tree of nodes: containers hold `_content`, leaves hold `_val`. References from one value to another
(`${a.b}`) stay text.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from sonorant.errors import CheckpointError
from sonorant.hub.tensors import read_pickle

DEEPEST = 50  # levels; real files have ten or so
MOST_VALUES = 200_000  # real files have thousands, tensors included


class Node:
    """A container or a leaf of a config, as stored."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise CheckpointError("a config entry without fields")
        self.fields: dict[str, Any] = state


class Ignored:
    """Notes of the library for itself, such as declared types; not kept."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


_LEAVES = ("Any", "Boolean", "Bytes", "Enum", "Float", "Integer", "Path", "String", "Union")
_IGNORED = (
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "typing.Any",
    "typing.Dict",
    "typing.List",
    "typing.Tuple",
    "typing.Union",
)
_STAND_INS: dict[str, type] = {
    "omegaconf.dictconfig.DictConfig": Node,
    "omegaconf.listconfig.ListConfig": Node,
    **{f"omegaconf.nodes.{kind}Node": Node for kind in _LEAVES},
    "omegaconf.base.UnionNode": Node,
    **{name: Ignored for name in _IGNORED},
    **{f"builtins.{kind.__name__}": kind for kind in (dict, list, tuple, int, float, str, bool)},
    "collections.defaultdict": defaultdict,
}


def read_pickle_with_configs(path: str | Path) -> Any:
    """The content of a torch pickle, its configs as plain dicts, lists and values.

    Raises: CheckpointError as `read_pickle`, and for a config that is not a tree of usual size.
    """
    content = read_pickle(path, _STAND_INS)
    try:
        return _Simplifier().plain(content, 0)
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error


class _Simplifier:
    """Turns nodes into plain data, and gives up on files made to grow without end."""

    def __init__(self) -> None:
        self.values_left = MOST_VALUES

    def plain(self, value: Any, level: int) -> Any:
        self.values_left -= 1
        if level > DEEPEST or self.values_left < 0:
            raise CheckpointError("holds a config that is too large or refers to itself")
        if isinstance(value, Node):
            fields = getattr(value, "fields", {})
            if "_content" not in fields and "_val" not in fields:
                raise CheckpointError("holds a config entry without a value")
            held = fields["_content"] if "_content" in fields else fields["_val"]
            return self.plain(held, level + 1)
        if isinstance(value, dict):
            return {_key(key): self.plain(held, level + 1) for key, held in value.items()}
        if isinstance(value, list | tuple):
            return [self.plain(held, level + 1) for held in value]
        return value


def _key(key: Any) -> Any:
    if isinstance(key, str | int | float | bool):
        return key
    raise CheckpointError(f"holds a config with a key that is no name: {type(key).__name__}")
