"""Quantised models as the package diffq 0.2.4 stores them, read and written without it.

A file holds no names, shapes or buffers: the order in which the model's parameters were registered
is the only key, so a model of the same modules must be there first.
"""

from __future__ import annotations

import io
import pickle
import sys
import zlib
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import SimpleNamespace
from typing import Any, BinaryIO

import msgspec
import torch
from torch import Tensor, nn

from sonorant.errors import CheckpointError, FormatError
from sonorant.hub.tensors import read_pickle
from sonorant.quantization.bit_planes import PLANES, SHORT_PLANES
from sonorant.quantization.diffq import MOST_PACKED_BITS, DiffQ, DiffQConfig
from sonorant.quantization.lsq import LSQ
from sonorant.quantization.quantizer import Choice, Quantizer
from sonorant.quantization.uniform import UniformQuantizer


class Named:
    """A published class that files only name, and that need not be installed."""


def named(path: str) -> type[Named]:
    """An empty class in place of the published one at "package.module.Class"."""
    module, _, name = path.rpartition(".")
    return type(name, (Named,), {"__module__": module})


CLASSES: dict[type[Quantizer], type] = {
    DiffQ: named("diffq.diffq.DiffQuantizer"),
    UniformQuantizer: named("diffq.uniform.UniformQuantizer"),
    LSQ: named("diffq.lsq.LSQ"),
}
# Published names of what our configs call otherwise.
CHOICE_NAMES = {"min_size": "min_size_mb"}
DIFFQ_NAMES = {"param": "learned"}


STAND_INS = {f"{kind.__module__}.{kind.__name__}": kind for kind in CLASSES.values()}
"""For `read_pickle`, to read packages that have such a state among other things."""
MOST_GROWTH = 20
"""A state that would grow more when decompressed is an attack; real ones grow by half."""


def quantizer_options(arguments: dict[str, Any]) -> tuple[DiffQConfig, Choice]:
    """Our options for the keyword arguments of a published DiffQuantizer.

    Raises: FormatError for one that is not known, or an impossible value.
    """
    rest = dict(arguments)
    choice = _choice(rest)
    renamed = {DIFFQ_NAMES.get(name, name): value for name, value in rest.items()}
    renamed.setdefault("group_size", 1)  # the package's default
    try:
        return msgspec.convert(renamed, DiffQConfig), choice
    except msgspec.ValidationError as error:
        raise FormatError(
            f"the file was made with options of DiffQ unknown here: {error}"
        ) from error


def _choice(arguments: dict[str, Any]) -> Choice:
    """Take the arguments that all quantisers share."""
    names = [name for name in ("min_size", "exclude", "float16") if name in arguments]
    given = {CHOICE_NAMES.get(name, name): arguments.pop(name) for name in names}
    arguments.pop("suffix", None)  # of names in the model, not in the file
    if not arguments.pop("detect_bound", True):
        raise FormatError("the file stores each tied weight on its own, which is not supported")
    try:
        return msgspec.convert(given, Choice)
    except msgspec.ValidationError as error:
        raise FormatError(f"the file was made with unknown options: {error}") from error


def published_quantizer(model: nn.Module, kind: type, arguments: dict[str, Any]) -> Quantizer:
    """Our quantiser of `model` for a published class, one of `CLASSES`, and its arguments.

    Raises: FormatError for an unknown class or arguments that it does not have.
    """
    if kind is CLASSES[DiffQ]:
        return DiffQ(model, *quantizer_options(arguments))
    rest = dict(arguments)
    choice = _choice(rest)
    bits, trained = rest.pop("bits", 8), rest.pop("qat", False)
    if kind not in CLASSES.values() or rest or not isinstance(bits, int):
        raise FormatError(f"the file was made by {kind} with options unknown here: {arguments}")
    if kind is CLASSES[LSQ]:
        return LSQ(model, bits, choice)
    return UniformQuantizer(model, bits, bool(trained), choice)


def packed_state(quantizer: Quantizer, arguments: dict[str, Any]) -> dict[str, Any]:
    """What `quantizer.get_quantized_state()` of the package gives.

    arguments: the published quantiser's keyword arguments, stored beside the weights.
    Raises: FormatError for what the package loses or does not have: groups of 15 bits, and tensors
    that do not divide into groups.
    """
    state = unpacked_state(quantizer)
    for entry, slot in zip(state["quantized"], quantizer.quantized, strict=True):
        if isinstance(quantizer, DiffQ) and int(entry[2].max()) > MOST_PACKED_BITS:
            raise FormatError(
                f"{slot.path} has groups of more than {MOST_PACKED_BITS} bits, which the published "
                f"format loses; quantise with max_bits {MOST_PACKED_BITS} or less"
            )
        if entry[0].numel() != slot.parameter.numel():
            raise FormatError(
                f"{slot.path} does not divide into groups, which the published format cannot have; "
                "choose another group_size"
            )
    packed = [quantizer.pack(entry, PLANES) for entry in state["quantized"]]
    return {**state, "quantized": packed, "meta": _meta(quantizer, arguments, packed=True)}


def _meta(quantizer: Quantizer, arguments: dict[str, Any], packed: bool) -> dict[str, Any]:
    return {
        # pickle writes one string object once; names of arguments are such
        "init_kwargs": {sys.intern(name): value for name, value in arguments.items()},
        "klass": next(kind for ours, kind in CLASSES.items() if isinstance(quantizer, ours)),
        "packed": packed,
        "torch_pack": False,
    }


def write_published(
    quantizer: Quantizer, to: str | Path | BinaryIO, arguments: dict[str, Any]
) -> None:
    """Write what `torch.save(quantizer.get_quantized_state(), to)` of the package writes.

    Buffers, such as running statistics, are not in such files: keep them apart.
    Raises: FormatError as `packed_state`.
    """
    torch.save(packed_state(quantizer, arguments), to, pickle_module=PICKLE)


# The pickler in Python, which lets subclasses write classes by name that cannot be imported.
_PythonPickler: Any = pickle._Pickler


class _Pickler(_PythonPickler):
    """Writes the published classes by name, though they are not installed."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if not (isinstance(obj, type) and issubclass(obj, Named)):
            super().save_global(obj, name)
            return
        if self.proto >= 4:
            self.save(obj.__module__)
            self.save(obj.__name__)
            self.write(pickle.STACK_GLOBAL)
        else:
            self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__name__}\n".encode())
        self.memoize(obj)


PICKLE = SimpleNamespace(__name__="pickle", Pickler=_Pickler)
"""What `torch.save` asks of a pickle module, for content that holds `Named` classes."""


def read_published(path: str | Path) -> dict[str, Any]:
    """A file of the package: "quantized", "float16", "others", and "meta" in newer ones.

    So is one whose only entry, "compressed", holds that by zlib, as Demucs 2 published them.
    Nothing that the file says is run.
    Raises: CheckpointError for a file that cannot be read; FormatError for another kind.
    """
    content = read_pickle(path, STAND_INS)
    if isinstance(content, dict) and content.keys() == {"compressed"}:
        content = _decompressed(content["compressed"], Path(path))
    if not is_published(content):
        raise FormatError(f"{path} does not hold a model quantised with diffq")
    return dict(content)


def is_published(content: Any) -> bool:
    """Whether this, from inside a pickle, is a state as the package writes it."""
    parts = ("quantized", "float16", "others")
    return isinstance(content, dict) and all(isinstance(content.get(p), list) for p in parts)


def _decompressed(data: Any, path: Path) -> Any:
    unzip = zlib.decompressobj()
    try:
        plain = unzip.decompress(data, MOST_GROWTH * len(data))
    except (TypeError, zlib.error) as error:
        raise FormatError(f"{path} holds a damaged compressed state: {error}") from error
    if not unzip.eof:
        raise FormatError(f"{path} holds a compressed state that is cut short or grows without end")
    with NamedTemporaryFile(suffix=".th") as file:
        file.write(plain)
        file.flush()
        try:
            return read_pickle(file.name, STAND_INS)
        except CheckpointError as error:
            raise CheckpointError(f"the compressed state inside {path}: {error}") from error


def load_published(
    model: nn.Module, state: dict[str, Any], arguments: dict[str, Any] | None = None
) -> None:
    """Copy the weights of a published state into a model of the same modules; not its buffers.

    arguments: of the package's DiffQuantizer that made it, where the state does not say them.
    Raises: FormatError if it is of another model; the model is then unchanged.
    """
    meta = state.get("meta") or {"klass": CLASSES[DiffQ], "init_kwargs": arguments}
    if not isinstance(meta, dict) or not isinstance(meta.get("init_kwargs"), dict):
        raise FormatError("the file does not say which options of DiffQ it was made with")
    quantizer = published_quantizer(model, meta.get("klass", object), meta["init_kwargs"])
    try:
        restore_published(quantizer, state)
    finally:
        quantizer.detach()


@torch.no_grad()
def restore_published(quantizer: Quantizer, state: dict[str, Any]) -> None:
    """Copy the weights of a published state into the quantiser's model.

    The quantiser must have the options that the file was made with.
    Raises: FormatError if it is of another model or other options; the model is then unchanged.
    """
    plain = state["float16"] or state["others"]
    if len(state["quantized"]) != len(quantizer.quantized) or len(plain) != len(quantizer.others):
        raise FormatError(
            f"the file has {len(state['quantized'])} quantised and {len(plain)} other tensors, the "
            f"model {len(quantizer.quantized)} and {len(quantizer.others)}; it is of another model "
            "or was made with other options"
        )
    meta = state.get("meta", {})
    layout = SHORT_PLANES if meta.get("torch_pack") else PLANES
    restored = []
    for entry, slot in zip(state["quantized"], quantizer.quantized, strict=True):
        try:
            if meta.get("packed", True):
                entry = quantizer.unpack(entry, slot, layout)
            restored.append((slot, quantizer.restored(entry, slot).view_as(slot.parameter)))
        except FormatError as error:
            raise FormatError(f"the file's entry for {slot.path}: {error}") from error
        except (TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
            raise FormatError(f"the file's entry for {slot.path} is damaged: {error}") from error
    for value, slot in zip(plain, quantizer.others, strict=True):
        if not isinstance(value, Tensor) or value.shape != slot.parameter.shape:
            raise FormatError(f"the file's tensor for {slot.path} has another shape")
        restored.append((slot, value))
    for slot, value in restored:
        slot.parameter.copy_(value)


def packed_model_size(quantizer: Quantizer, arguments: dict[str, Any] | None = None) -> float:
    """MB (2^20 bytes) that the packed state takes in a pickle, as the package measures it."""
    buffer = io.BytesIO()
    _Pickler(buffer).dump(packed_state(quantizer, arguments or {}))
    return buffer.tell() / 2**20


def compressed_model_size(
    quantizer: Quantizer, arguments: dict[str, Any] | None = None, chunks: int = 8
) -> float:
    """MB (2^20 bytes) of the state, not packed, compressed by zlib, as the package measures it.

    chunks: equal parts that are compressed apart; the package takes one for each core up to 8.
    """
    buffer = io.BytesIO()
    meta = _meta(quantizer, arguments or {}, packed=False)
    torch.save({**unpacked_state(quantizer), "meta": meta}, buffer, pickle_module=PICKLE)
    content = buffer.getvalue()
    length = -(-len(content) // chunks)
    parts = (content[start : start + length] for start in range(0, len(content), length))
    return sum(len(zlib.compress(part)) for part in parts) / 2**20


@torch.no_grad()
def unpacked_state(quantizer: Quantizer) -> dict[str, Any]:
    """What is stored, before packing: "quantized" entries, "float16" and "others" tensors."""
    others = [other.parameter.detach() for other in quantizer.others]
    half = quantizer.choice.float16
    return {
        "quantized": [quantizer.entry(each) for each in quantizer.quantized],
        "float16": [other.half() for other in others] if half else [],
        "others": [] if half else others,
    }
