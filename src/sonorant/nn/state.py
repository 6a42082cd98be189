"""The streaming contract: everything a live module remembers, in named tensors outside it.

A module that can stream is called the same way offline and live: `y = module(x)` or
`y = module(x, state)`. The state is made once for a fixed number of rows, and is updated in place,
so a session can be stopped, saved, moved to another process and resumed; rows can be reset one by
one; a mask of active rows lets sessions of different ages share a batch.

One rule keeps resets trivial: a fresh row is all zeros. A module whose natural start is not zero
keeps a zero-initialised flag or counter and derives its start from it.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sonorant.errors import CheckpointError, ShapeError
from sonorant.nn.linear import PackedLinear

# Counts up when a module remembers something else, or when models are told apart by something else.
VERSION = "3"
SAMPLED_VALUES = 64
REASONS = {
    "version": "by another version of this package; start the session anew",
    "model": (
        "by another model (other weights or config, or packed otherwise); load it with the same one"
    ),
    "low_latency": "in another latency mode; make the state with the same low_latency",
}


class StreamingModule(nn.Module, ABC):
    """A module that remembers something between live calls.

    Subclasses implement `fresh_state`; the tensors they name there are found again in
    `state[self]` during a live call.
    """

    @abstractmethod
    def fresh_state(self, batch_size: int) -> dict[str, Tensor]:
        """Zero tensors `[batch, ...]` by name, on this module's device and in its dtype."""


class Slot:
    """The state tensors of one module, by attribute: `state[self].past`."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str) -> None:
        self._tensors = tensors
        self._prefix = prefix

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self._tensors[self._prefix + name]
        except KeyError:
            raise AttributeError(f"no state tensor named {self._prefix + name!r}") from None


class State:
    """Named tensors `[batch, ...]` of all streaming modules below one root, and the active rows.

    Made by `init_state`. `low_latency` asks modules whose published start looks into the future
    (reflect padding) to start from zeros instead, without the delay.
    `prepared` is for what modules derive from their weights once per state. A model that is packed
    or moved needs new states.
    """

    def __init__(self, root: nn.Module, batch_size: int, low_latency: bool = False) -> None:
        if batch_size < 1:
            raise ShapeError(f"a state needs at least one row, got batch_size={batch_size}")
        self._root = root
        self.batch_size = batch_size
        self.low_latency = low_latency
        self.tensors: dict[str, Tensor] = {}
        self.prepared: dict[nn.Module, Any] = {}
        self._slots: dict[nn.Module, Slot] = {}
        self._active: Tensor | None = None
        for path, module in root.named_modules():
            if not isinstance(module, StreamingModule):
                continue
            prefix = f"{path}." if path else ""
            for name, tensor in module.fresh_state(batch_size).items():
                self.tensors[prefix + name] = tensor
            self._slots[module] = Slot(self.tensors, prefix)

    def __getitem__(self, module: nn.Module) -> Any:
        """The slot of `module`. Typed loosely because its attributes are the module's own names.

        Raises: ShapeError for a module of another model.
        """
        try:
            return self._slots[module]
        except KeyError:
            raise ShapeError(
                f"this state was made for another model, or has no place for the live call of a "
                f"{type(module).__name__}; make one with this model's init_state"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    @property
    def active(self) -> Tensor | None:
        """Mask `[batch]` of the rows that advance, or None when all do."""
        return self._active

    def set_active(self, rows: Tensor | None) -> None:
        """Let only `rows` (bool `[batch]`) advance from now on; None lets all advance.

        Raises: ShapeError for any other mask.
        """
        self._check_mask(rows)
        self._active = rows

    def update(self, target: Tensor, value: Tensor) -> None:
        """Write `value` into the state tensor `target`, in active rows only."""
        if self._active is None:
            target.copy_(value)
            return
        rows = self._active.view(-1, *[1] * (target.dim() - 1))
        target.copy_(torch.where(rows, value, target))

    def reset(self, rows: Tensor | None = None) -> None:
        """Make `rows` (bool `[batch]`, None for all) as new. Raises: ShapeError for other masks."""
        self._check_mask(rows)
        for tensor in self.tensors.values():
            if rows is None:
                tensor.zero_()
            else:
                tensor.masked_fill_(rows.view(-1, *[1] * (tensor.dim() - 1)), 0)

    def save(self, path: str | Path) -> None:
        """Write the state to a safetensors file; `load` of a state of the same model reads it.

        Which rows are active is not kept. Raises: CheckpointError if the file cannot be written.
        """
        target = Path(path)
        temporary = target.with_name(target.name + ".part")
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        try:
            # Not by `save_file`, which lets nobody else read the file, whatever the user's umask.
            temporary.write_bytes(save(tensors, metadata=self._identity()))
            temporary.replace(target)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CheckpointError(f"cannot save a state to {target}: {error}") from error

    def load(self, path: str | Path) -> None:
        """Continue from a saved state, in this process or another.

        Raises: CheckpointError if the file is damaged or of another model, version, batch size or
        latency mode; this state is then unchanged.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a saved state: {error}") from error
        if not metadata.keys() >= REASONS.keys():
            raise CheckpointError(f"{path} is not a saved state: it does not say of which model")
        for name, value in self._identity().items():
            if metadata.get(name) != value:
                raise CheckpointError(f"{path} was saved {REASONS[name]}")
        mine = {name: (tensor.shape, tensor.dtype) for name, tensor in self.tensors.items()}
        theirs = {name: (tensor.shape, tensor.dtype) for name, tensor in saved.items()}
        if mine != theirs:
            raise CheckpointError(
                f"{path} does not hold the tensors of this state; make it with the batch size and "
                f"the model that it was saved with (here {self.batch_size} rows)"
            )
        for name, tensor in saved.items():
            self.tensors[name].copy_(tensor)

    def _check_mask(self, rows: Tensor | None) -> None:
        if rows is not None and (rows.shape != (self.batch_size,) or rows.dtype != torch.bool):
            raise ShapeError(
                f"rows are chosen by a bool mask of shape [{self.batch_size}], got {rows.dtype} of "
                f"shape {list(rows.shape)}"
            )

    def _identity(self) -> dict[str, str]:
        """What a saved state must have in common with the one that loads it."""
        return {
            "version": VERSION,
            "model": weights_digest(self._root),
            "low_latency": str(self.low_latency),
        }


def weights_digest(module: nn.Module) -> str:
    """Tells a module from others: by its config, how it is packed, and the names, shapes and some
    values of the tensors that it is stored with.

    Some are enough: training or rounding changes all of them, and a live session cannot wait for
    hundreds of megabytes to be read. The layout that a model was loaded from makes no difference.
    """
    digest = hashlib.sha256()
    for path, child in module.named_modules():
        config = getattr(child, "config", None)
        if isinstance(config, msgspec.Struct):
            digest.update(path.encode() + msgspec.json.encode(config))
        if isinstance(child, PackedLinear):
            digest.update(f"{path} {child}".encode())
    for name, tensor in sorted(_stored_tensors(module).items()):
        step = max(1, tensor.numel() // SAMPLED_VALUES)
        places = torch.arange(0, tensor.numel(), step, device=tensor.device)
        some = tensor.detach().take(places).cpu()
        digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _stored_tensors(module: nn.Module) -> dict[str, Tensor]:
    """What a model of `module` is stored with: weight norm folded, and without what only training
    needs, which modules name as their `training_buffers`. Packed layers have none.
    """
    found: dict[str, Tensor | None] = {}
    for path, child in module.named_modules():
        if "parametrizations" in path.split("."):
            continue
        passing = child._non_persistent_buffers_set.union(getattr(child, "training_buffers", ()))
        own = {**child._parameters, **child._buffers}
        own |= {name: getattr(child, name) for name in getattr(child, "parametrizations", ())}
        prefix = f"{path}." if path else ""
        found |= {prefix + name: tensor for name, tensor in own.items() if name not in passing}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def init_state(root: nn.Module, batch_size: int = 1, low_latency: bool = False) -> State:
    """A fresh state for `batch_size` live sessions of `root`."""
    return State(root, batch_size, low_latency)
