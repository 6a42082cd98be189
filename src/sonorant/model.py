"""What all systems have in common: a config, loading and saving, and a few facts about themselves.

A model is stored as `config.json` and `model.safetensors`, with weight norm folded into plain
weights. `load` finds the system of any name, folder or file and returns it ready for use.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec
import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from sonorant.errors import CheckpointError, ConfigError
from sonorant.hub.checkpoint import (
    FORMAT_VERSION,
    Checkpoint,
    SavedConfig,
    open_checkpoint,
    write_checkpoint,
)
from sonorant.hub.keys import misfits, summary
from sonorant.hub.table import known, resolve
from sonorant.nn.linear import PackedLinear, PackReport, pack_linears
from sonorant.nn.state import State, init_state

TENSORS_PER_STORED, SPARE_TENSORS = 8, 1000
"""How many tensors a model may have for each one that is stored, and beside. Weight norm has two
for one, codebooks have three for training only, and some are computed."""


@dataclass(frozen=True)
class ModelInfo:
    """A model in figures. `state_bytes`: memory per live session, None if it cannot run live."""

    system: str
    name: str | None
    parameters: int
    bytes: int
    state_bytes: int | None


class Model(nn.Module):
    """A system that can be saved, loaded and asked about itself.

    Subclasses name their `system`, as `models.toml` does, and their `config_type`, a frozen
    `msgspec.Struct` that refuses unknown fields.
    """

    system: ClassVar[str]
    config_type: ClassVar[type[msgspec.Struct]]
    name: str | None = None
    """The name it is known by, in the table or on the hub."""
    packing: Callable[[dict[str, Tensor]], tuple[dict[str, Tensor], dict[str, str]]] | None = None
    """How `save_pretrained` stores `saved_tensors` while a quantiser trains with the model: what
    goes into the file in their place, and its metadata."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    def streams(self) -> bool:
        """Whether it can run live, chunk by chunk."""
        return False

    def init_state(self, batch_size: int = 1, low_latency: bool = False) -> State:
        """A fresh state for that many live sessions (see `sonorant.nn.state`)."""
        return init_state(self, batch_size, low_latency)

    def info(self) -> ModelInfo:
        """Size in numbers and bytes, and the memory of one live session.

        Parameters are all stored numbers, codebooks included, without the moving averages that only
        training needs; layers packed by `optimize` count with what they store.
        """
        parts = _stored(self)
        state_bytes = None
        if self.streams:
            state_bytes = sum(tensor.nbytes for tensor in self.init_state().tensors.values())
        return ModelInfo(
            system=self.system,
            name=self.name,
            parameters=sum(part.numel() for part in parts),
            bytes=sum(part.nbytes for part in parts),
            state_bytes=state_bytes,
        )

    def optimize(self, mode: str) -> PackReport:
        """Pack the linear layers for faster decoding on CPU: "fp16" or "int8". Changes this model.

        Returns the measured error against fp32. A packed model neither trains nor is saved.
        Raises: ConfigError for an unknown mode, or a model without linear layers on the CPU.
        """
        return pack_linears(self, mode)

    def saved_tensors(self) -> dict[str, Tensor]:
        """What `save_pretrained` stores: the state dict with weight norm folded."""
        return folded_state(self)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write `config.json` and `model.safetensors`; nothing half-written is ever seen.

        dtype: store floating-point tensors in it, for example `torch.float16` to halve the size.
        Raises: CheckpointError if the folder cannot be written or a number does not fit the dtype.
        """
        tensors, metadata = self.saved_tensors(), dict[str, str]()
        if self.packing is not None:
            tensors, metadata = self.packing(tensors)
        stored = {name: _as_stored(name, tensor, dtype) for name, tensor in tensors.items()}
        write_checkpoint(folder, self.saved_config(), stored, metadata)

    def saved_config(self) -> SavedConfig:
        """What `config.json` holds."""
        config = msgspec.to_builtins(self.config)
        return SavedConfig(FORMAT_VERSION, self.system, config, self.name)

    def export(self, folder: str | Path, layout: str) -> None:
        """Write a published layout, such as "original", for other packages to read.

        Raises: ConfigError if this system has no such layout.
        """
        exports = known().system(self.system).exports
        if layout not in exports:
            choices = ", ".join(sorted(exports)) or "none"
            raise ConfigError(
                f"{self.system} has no layout {layout!r} to export to; it has: {choices}"
            )
        resolve(exports[layout])(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, like: str | None = None, device: str = "cpu"
    ) -> Self:
        """Load a model of this class; arguments and errors as those of `load`.

        Raises: CheckpointError if what is there is another system.
        """
        checkpoint = open_checkpoint(name_or_path, like)
        found = cls if getattr(cls, "system", None) == checkpoint.system else _class_of(checkpoint)
        if not issubclass(found, cls):
            raise CheckpointError(
                f"{name_or_path} is a model of the system {checkpoint.system!r}, "
                f"not of {getattr(cls, 'system', cls.__name__)!r}"
            )
        return _build(found, checkpoint).to(device)


def load(name_or_path: str | Path, *, like: str | None = None, device: str = "cpu") -> Model:
    """Load a model by known name, folder, file, or hub repository `owner/name`.

    like: a known name, for a file in that model's published layout that does not tell by itself.
    Returns the model in eval mode, with weight norm folded, its weights in fp32 where they were
    stored in less.
    Raises: CheckpointError or ConfigError saying what is wrong and what to do.
    """
    return Model.from_pretrained(name_or_path, like=like, device=device)


def fold_weight_norm(module: nn.Module) -> None:
    """Replace every parametrized weight below `module` by its value.

    The sound stays the same to rounding; each call is spared the recomputation of the weight.
    """
    for _, child, names in list(_parametrized(module)):
        for name in names:
            parametrize.remove_parametrizations(child, name)


def folded_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict that `module` would have after `fold_weight_norm`, without changing it."""
    state = module.state_dict()
    for prefix, child, names in _parametrized(module):
        for name in names:
            for key in [
                key for key in state if key.startswith(f"{prefix}parametrizations.{name}.")
            ]:
                del state[key]
            state[prefix + name] = getattr(child, name).detach()
    return state


def _parametrized(module: nn.Module) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """Key prefix, module and tensor names of everything parametrized below `module`."""
    for path, child in module.named_modules():
        parametrizations = getattr(child, "parametrizations", None)
        if isinstance(parametrizations, nn.ModuleDict):
            yield f"{path}." if path else "", child, list(parametrizations)


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Put `tensors` into the model, in the model's own precision.

    The model takes over tensors that already have its precision, without copying them. Weight norm
    may be folded in both, in neither, or in `tensors` alone.
    Raises: CheckpointError naming what is missing, unexpected, of another shape or not finite.
    """
    if not any(".parametrizations." in name for name in tensors):
        fold_weight_norm(model)
    own = model.state_dict()
    wrong = misfits(own, tensors)
    if wrong:
        raise CheckpointError(f"{source} does not fit its config: {summary(wrong)}")
    converted = {
        name: tensor.to(own[name].dtype) if name in own else tensor
        for name, tensor in tensors.items()
    }
    unusable = [name for name in own if name in converted and not _is_finite(converted[name])]
    if unusable:
        raise CheckpointError(
            f"{source} has numbers that are not finite, which no training should have kept: "
            f"{summary(unusable)}"
        )
    result = model.load_state_dict(converted, strict=False, assign=True)
    problems = {"missing": result.missing_keys, "unexpected": result.unexpected_keys}
    told = [f"{word}: {summary(names)}" for word, names in problems.items() if names]
    if told:
        raise CheckpointError(
            f"{source} does not hold the tensors that its config asks for ({'; '.join(told)}); "
            "it belongs to another config or version"
        )


def _is_finite(tensor: Tensor) -> bool:
    """By the sum alone, which reads a tensor once and is not finite if any of its numbers is."""
    if tensor.is_meta or not tensor.is_floating_point():
        return True
    return bool(torch.isfinite(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32))))


def _stored(module: nn.Module) -> list[Tensor | PackedLinear]:
    """Every parameter, saved buffer and packed layer below `module` once."""
    found: dict[int, Tensor | PackedLinear] = {}
    for child in module.modules():
        if isinstance(child, PackedLinear):
            found[id(child)] = child
        passing = child._non_persistent_buffers_set.union(getattr(child, "training_buffers", ()))
        for name, tensor in [*child._parameters.items(), *child._buffers.items()]:
            if tensor is not None and name not in passing:
                found[id(tensor)] = tensor
    return list(found.values())


def _class_of(checkpoint: Checkpoint) -> type[Model]:
    found: type[Model] = resolve(known().system(checkpoint.system).class_)
    return found


def _build(model_class: type[Model], checkpoint: Checkpoint) -> Any:
    """The model of a checkpoint, without the time that random initial weights take."""
    config = checkpoint.config
    if not isinstance(config, model_class.config_type):
        try:
            config = msgspec.convert(config, model_class.config_type)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{checkpoint.source}: {error}") from error
    stored = len(checkpoint.tensors)
    with refusing_config(checkpoint.source, stored), SkipInitialization():
        model = model_class(config)
    load_weights(model, checkpoint.tensors, checkpoint.source)
    fold_weight_norm(model)
    model.name = checkpoint.name
    return model.eval()


@contextmanager
def refusing_config(source: str, stored: int | None = None) -> Iterator[None]:
    """A context in which a model is made of a stranger's config.

    stored: how many tensors there are to fill it.
    Raises: ConfigError with the config's source, for what the layers cannot have: a size of zero,
    more than fits the memory, many times more of them than were stored.
    """
    limit = None if stored is None else SPARE_TENSORS + TENSORS_PER_STORED * stored
    try:
        with _at_most(limit):
            yield
    except (ArithmeticError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ConfigError(f"{source}: no model can be made of its config: {reason}") from error


@contextmanager
def _at_most(limit: int | None) -> Iterator[None]:
    """Raises: ValueError as soon as this thread makes modules of more tensors than that.

    A number in a config may ask for millions of layers, which would take all memory in Python's
    own objects before a weight is missed.
    """
    if limit is None:
        yield
        return
    thread, made = threading.get_ident(), itertools.count(1)

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is not None and threading.get_ident() == thread and next(made) > limit:
            raise ValueError(f"it asks for more than {limit} tensors, far more than are stored")

    hooks = [
        register_module_parameter_registration_hook(count),
        register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class SkipInitialization(TorchFunctionMode):
    """A context in which new modules skip their random weights, since a checkpoint follows.

    For EnCodec at its published size this takes loading from 0.6 s to 0.1 s. Buffers that a
    constructor computes come out right, which they would not on the meta device.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _as_stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor.contiguous()
    stored = tensor.to(dtype)
    if not bool(torch.isfinite(stored).all()):
        raise CheckpointError(f"{name} has numbers that are not finite in {dtype}")
    return stored.contiguous()
