"""Published separators' packages: one file, one network.

A package (`.th`) is a pickle that names its class and how to make it; since version 4.1 of demucs
it may also be a safetensors file with the same in its metadata. Those of version 2 hold only
weights; which network they are of is known by the file's name. Quantised weights have no names
either, and are put into the network in the order of its parameters. Nothing that a file says is
run.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from torch import Tensor

from sonorant.errors import CheckpointError, FormatError
from sonorant.hub.table import known, resolve
from sonorant.hub.tensors import read_metadata, read_pickle, read_tensors
from sonorant.model import Model, SkipInitialization, refusing_config
from sonorant.quantization.published import (
    STAND_INS,
    Named,
    is_published,
    load_published,
    named,
    read_published,
)
from sonorant.separation.checkpoints import (
    ALIASES,
    DEMUCS_V2,
    TRANSLATIONS,
    Translation,
    our_tensors,
    translation_of,
)
from sonorant.separation.conv_tasnet import ConvTasNetConfig
from sonorant.separation.demucs import DemucsV2Config

Loaded = tuple[str, Any, dict[str, Tensor]]
"""A system, its config, and its tensors by our names."""
SUFFIXES = (".th", ".th.gz", ".safetensors")
MOST_GROWTH = 20
"""A file that would grow more when decompressed is an attack; weights shrink by a tenth or so."""

VERSION_2: dict[str, Any] = {
    "demucs": DemucsV2Config(),
    "demucs_extra": DemucsV2Config(),
    "demucs_quantized": DemucsV2Config(),
    "demucs48_hq": DemucsV2Config(channels=48),
    "demucs_unittest": DemucsV2Config(channels=4),
    "tasnet": ConvTasNetConfig(blocks=10),
    "tasnet_extra": ConvTasNetConfig(blocks=10),
}
"""The networks of the files that hold nothing but weights."""
VERSION_2_QUANTIZER = {"group_size": 8, "min_size": 1}
"""Arguments of the quantiser of `demucs_quantized`, which its file may not say."""


UNEXPECTED = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError, RecursionError)


class NoPackageError(CheckpointError):
    """A file of tensors, or of anything else, that does not say how to make a network of them."""


class PickledFraction:
    """In place of `fractions.Fraction`, which would compute for hours on a number made for that."""

    def __init__(self, number: Any, denominator: Any = None) -> None:
        text = str(number) if denominator is None else f"{number}/{denominator}"
        if not re.fullmatch(r"\d{1,12}(/\d{1,12})?", text[:100]):
            raise CheckpointError(f"{text:.40} is no usual fraction")
        self.value = Fraction(text)


CLASSES = {name: named(name) for name in {each.published for each in TRANSLATIONS} | set(ALIASES)}
_STAND_INS: dict[str, type] = {
    **STAND_INS,
    **CLASSES,
    "fractions.Fraction": PickledFraction,
}


def read_package(path: Path) -> Loaded:
    """One network from its package.

    Raises: CheckpointError for a damaged file, one that asks to run code, or an unknown network.
    """
    try:
        return _read_package(path)
    except UNEXPECTED as error:  # arguments of types that no published class takes
        raise CheckpointError(
            f"{path} says how to make its network in a way that makes none: {error!r:.200}"
        ) from error


def _read_package(path: Path) -> Loaded:
    if path.name.lower().endswith(".safetensors"):
        return _read_hub_package(path)
    if path.name.lower().endswith(".gz"):
        return _read_compressed(path)
    content = read_pickle(path, _STAND_INS)
    if isinstance(content, tuple | list) and len(content) == 4:
        kind, args, kwargs, state = content
    elif isinstance(content, dict) and {"klass", "args", "kwargs", "state"} <= content.keys():
        kind, args, kwargs, state = (content[key] for key in ("klass", "args", "kwargs", "state"))
    else:
        raise NoPackageError(
            f"{path} does not say which network its weights are of; load it by its published name "
            f"(sonorant.load(path, like=...), one of {', '.join(VERSION_2)})"
        )
    if not (isinstance(kind, type) and issubclass(kind, Named) and isinstance(kwargs, dict)):
        raise CheckpointError(f"{path} names no class of a separator: {kind!r:.80}")
    name = f"{kind.__module__}.{kind.__qualname__}"
    plain = {key: _plain(value) for key, value in kwargs.items()}
    return _loaded(name, [_plain(value) for value in args], plain, state, path)


def _read_compressed(path: Path) -> Loaded:
    """A package inside gzip, as version 1 was published."""
    most = MOST_GROWTH * path.stat().st_size
    with NamedTemporaryFile(suffix=".th") as unpacked:
        try:
            with gzip.open(path) as file:
                while block := file.read(2**20):
                    unpacked.write(block)
                    if unpacked.tell() > most:
                        raise CheckpointError(f"{path} grows without end when decompressed")
        except (OSError, EOFError) as error:
            raise CheckpointError(f"{path} is no complete gzip file: {error}") from error
        unpacked.flush()
        return read_package(Path(unpacked.name))


def _plain(value: Any) -> Any:
    """An argument without stand-ins."""
    if isinstance(value, PickledFraction):
        return value.value
    if isinstance(value, dict) and value.get("_type") == "fraction":
        return PickledFraction(value.get("numerator"), value.get("denominator")).value
    return value


def _read_hub_package(path: Path) -> Loaded:
    """A network from a safetensors file with the package in its metadata."""
    said = read_metadata(path)
    try:
        args, kwargs = json.loads(said["args"]), json.loads(said["kwargs"])
        name = said["klass"]
        structure = json.loads(said["structure"]) if "structure" in said else None
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} does not say which network it holds: {error}") from error
    tensors: Any = read_tensors(path)
    state = tensors if structure is None else _unflattened(structure, tensors, path)
    plain = {key: _plain(value) for key, value in kwargs.items()}
    return _loaded(name, [_plain(value) for value in args], plain, state, path)


def _unflattened(node: Any, tensors: dict[str, Tensor], path: Path) -> Any:
    """A nested state of what its nodes say: where a tensor, a dict, a list or a class stands."""
    if not isinstance(node, dict):
        return node
    content: Any
    kind, content = next(iter(node.items()), ("", None))
    readers: dict[str, Callable[[], Any]] = {
        "_tensor": lambda: tensors[content],
        "_dict": lambda: {key: _unflattened(value, tensors, path) for key, value in content},
        "_list": lambda: [_unflattened(value, tensors, path) for value in content],
        "_tuple": lambda: tuple(_unflattened(value, tensors, path) for value in content),
        "_class": lambda: _STAND_INS[content],
    }
    try:
        return readers[kind]()
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} describes a state that is none: {kind!r:.40}") from error


def _loaded(
    name: str, args: Sequence[Any], kwargs: dict[str, Any], state: Any, path: Path
) -> Loaded:
    translation = translation_of(name, kwargs, str(path))
    config = translation.config(args, kwargs, str(path))
    return translation.system, config, _tensors(translation, config, state, path)


def _tensors(translation: Translation, config: Any, state: Any, path: Path) -> dict[str, Tensor]:
    """The weights by our names, from a state dict or from what DiffQ made of one."""
    if is_published(state):
        return _dequantized(translation.system, config, state, path)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(each, Tensor) and not each.is_meta
        for name, each in state.items()
    ):
        raise CheckpointError(f"{path} does not hold tensors by name")
    return our_tensors(translation, config, state)


def _dequantized(system: str, config: Any, state: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """Weights in the order of the network's parameters, which is all that their file says."""
    with refusing_config(str(path)), SkipInitialization():
        model: Model = resolve(known().system(system).class_)(config)
    try:
        load_published(model, state, VERSION_2_QUANTIZER)
    except FormatError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return model.state_dict()


def read_version_2(path: Path, config: Any) -> tuple[Any, dict[str, Tensor]]:
    """A file of nothing but weights, perhaps quantised and compressed."""
    system = "demucs_v2" if isinstance(config, DemucsV2Config) else "conv_tasnet"
    content = read_pickle(path, STAND_INS)
    if isinstance(content, dict) and "compressed" in content:
        return config, _dequantized(system, config, read_published(path), path)
    return config, _tensors(DEMUCS_V2, config, content, path)
