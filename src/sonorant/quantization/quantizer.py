"""What every quantiser does: choose tensors, stand in for them during a pass, count their bits.

Source: DiffQ (arXiv 2104.09987, section 3 and its package) for the choice and the sizes.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sonorant.errors import ConfigError
from sonorant.quantization.bit_planes import Layout
from sonorant.quantization.packed import Packed, Stored, stored

BITS_PER_MB = 8 * 2**20
"""Sizes are in MB of 2^20 bytes, as in the paper."""
FLOAT_BITS, HALF_BITS = 32, 16
_UNFOLDED = re.compile(r"parametrizations\.(\w+)\.original\d*$")
"""The part of a name by which torch's parts of a weight differ from the weight itself."""


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which parameters are quantised, and how the others are stored.

    min_size_mb: a parameter must take more than this in float32 (MB of 2^20 bytes).
    exclude: shell wildcards; no parameter whose "module.name" or "name" one of them matches.
    float16: others are stored with 16 bits per value in place of 32.
    """

    min_size_mb: Annotated[float, msgspec.Meta(ge=0)] = 0.01
    exclude: tuple[str, ...] = ()
    float16: bool = False

    def takes(self, path: str, tensor: Tensor) -> bool:
        """Whether a tensor is quantised; `path` is its module's and its own name.

        Raises: ConfigError if it would be, and is not of real floating-point numbers.
        """
        name = path.rpartition(".")[2]
        # 4 bytes per value
        if tensor.numel() <= self.min_size_mb * 2**20 // 4:
            return False
        if any(fnmatchcase(path, each) or fnmatchcase(name, each) for each in self.exclude):
            return False
        if not tensor.is_floating_point():
            raise ConfigError(
                f"{path} has values of {tensor.dtype}; only real floating-point parameters can "
                "be quantised, exclude it"
            )
        return True


class Slot:
    """A parameter: where it stands in the model, and what is learned beside it, if anything."""

    def __init__(self, module: nn.Module, name: str, path: str) -> None:
        self.places = [(module, name)]
        self.path = path
        self.parameter = getattr(module, name)
        self.learned: nn.Parameter | None = None

    def show(self, weight: Tensor | None) -> None:
        """Let the model see another tensor in the parameter's place; None for itself again."""
        for module, name in self.places:
            if weight is None:
                module.__dict__.pop(name, None)
            else:  # an instance's attribute goes before its registered parameter
                module.__dict__[name] = weight


class Quantizer(ABC):
    """Puts quantised weights in place of a model's own while the model runs.

    In training mode the model computes with `training_weight`, differentiable; in evaluation mode
    with the weights as they will be stored. Its parameters themselves never change, also where a
    pass fails. Passes through `model(...)` do so by themselves; around other methods of the model
    use `with quantizer.in_place():`.

    suffix: ends the name of the parameter that is learned beside each chosen one.
    reached: slots that got a gradient in `in_place(apart=True)`; whoever uses it clears it.
    Raises: ConfigError if a chosen parameter is not of real floating-point numbers.
    """

    suffix = ""

    def __init__(self, model: nn.Module, choice: Choice) -> None:
        self.model, self.choice = model, choice
        self.quantized: list[Slot] = []
        self.others: list[Slot] = []
        self._choose()
        self.reached: set[Slot] = set()
        self._is_in_place = False
        self._stack = ExitStack()
        self._hooks = [
            model.register_forward_pre_hook(lambda *_: self._enter()),
            model.register_forward_hook(lambda *_: self._stack.close(), always_call=True),
        ]

    def _choose(self) -> None:
        known: dict[nn.Parameter, Slot] = {}
        for prefix, module in self.model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                path = f"{prefix}.{name}"  # the root's parameters begin with a dot
                if parameter in known:
                    known[parameter].places.append((module, name))
                elif self.choice.takes(path, parameter):
                    known[parameter] = Slot(module, name, path)
                else:
                    self.others.append(Slot(module, name, path))
        self.quantized = list(known.values())

    def learn_beside(self, chosen: Slot, start: Tensor) -> None:
        """Register a parameter that is learned with a chosen one, as `<name><suffix>`."""
        module, name = chosen.places[0]
        chosen.learned = nn.Parameter(start.to(chosen.parameter.device))
        module.register_parameter(name + self.suffix, chosen.learned)

    def learned(self) -> list[nn.Parameter]:
        """What is learned beside the chosen parameters, in their order."""
        return [each.learned for each in self.quantized if each.learned is not None]

    def attach(self, optimizer: Optimizer, **options: Any) -> None:
        """Let an optimiser that was made for the model before train what is learned beside it.

        options: of the new parameter group, such as `lr`; else the optimiser's defaults.
        """
        if self.learned():
            optimizer.add_param_group({"params": self.learned(), **options})

    def detach(self) -> None:
        """Leave the model as it was before: no hooks, nothing learned beside its parameters."""
        for hook in self._hooks:
            hook.remove()
        for chosen in self.quantized:
            module, name = chosen.places[0]
            if chosen.learned is not None:
                delattr(module, name + self.suffix)

    @abstractmethod
    def training_weight(self, chosen: Slot) -> Tensor:
        """What the model computes with in training mode, in the parameter's shape."""

    @abstractmethod
    def entry(self, chosen: Slot) -> tuple[Any, ...]:
        """The parameter as it is stored: whole numbers, and what gives them back their values."""

    @abstractmethod
    def restored(self, entry: tuple[Any, ...], chosen: Slot) -> Tensor:
        """The values of an `entry`, in the parameter's shape."""

    @abstractmethod
    def pack(self, entry: tuple[Any, ...], layout: Layout) -> tuple[Any, ...]:
        """An `entry` as published files hold it, its whole numbers in bit planes."""

    @abstractmethod
    def unpack(self, packed: tuple[Any, ...], chosen: Slot, layout: Layout) -> tuple[Any, ...]:
        """The `entry` that was packed.

        Raises: FormatError if it is not one of this parameter.
        """

    @abstractmethod
    def packed(self, chosen: Slot) -> Packed:
        """The parameter as our own files hold it."""

    @abstractmethod
    def tensor_bits(self, chosen: Slot, exact: bool) -> Tensor | int:
        """Bits that one chosen parameter takes; differentiable where bits are learned."""

    def model_size(self) -> Tensor:
        """Size of the stored model in MB of 2^20 bytes, [], differentiable where bits are learned.

        Buffers are not counted, as in the paper.
        """
        return self._size(exact=False)

    @torch.no_grad()
    def true_model_size(self) -> float:
        """Size of the stored model in MB of 2^20 bytes with the whole bits that are stored."""
        return float(self._size(exact=True))

    def _size(self, exact: bool) -> Tensor:
        other_bits = HALF_BITS if self.choice.float16 else FLOAT_BITS
        plain = other_bits * sum(other.parameter.numel() for other in self.others) / BITS_PER_MB
        sizes = [torch.as_tensor(self.tensor_bits(each, exact)) for each in self.quantized]
        return sum((size / BITS_PER_MB for size in sizes), torch.tensor(plain))

    @torch.no_grad()
    def stored_weight(self, chosen: Slot) -> Tensor:
        """The parameter's values once stored and read again, in its shape and type."""
        parameter = chosen.parameter
        return self.restored(self.entry(chosen), chosen).view_as(parameter).to(parameter.dtype)

    @torch.no_grad()
    def stored(self, saved: Mapping[str, Tensor]) -> Stored:
        """What to write to a file in place of the tensors that the model saves by itself.

        Weight norm that `saved` has folded is unfolded, since its parts are what is quantised.
        """
        beside = set(self.learned())
        learned = {name for name, tensor in self.model.named_parameters() if tensor in beside}
        tensors = {
            name: tensor
            for name, tensor in self.model.state_dict().items()
            if _UNFOLDED.sub(r"\1", name) in saved and name not in learned
        }
        for slot in self.others if self.choice.float16 else []:
            name = slot.path.removeprefix(".")
            if name in tensors:
                tensors[name] = tensors[name].half()
        packed = {slot.path.removeprefix("."): self.packed(slot) for slot in self.quantized}
        return stored(tensors, {name: each for name, each in packed.items() if name in tensors})

    @contextmanager
    def in_place(self, apart: bool = False) -> Iterator[None]:
        """Within, the model computes with quantised weights, by its mode.

        apart: gradients pass on to the parameters as soon as a backward pass reaches the
            quantised weights, so that there may be several passes; `torch.autograd.grad` for
            parameters then finds none.
        """
        weigh = self.training_weight if self.model.training else self.stored_weight
        halved = self.others if self.choice.float16 and not self.model.training else []
        self._is_in_place = True
        try:
            for slot in self.quantized:
                weight = weigh(slot)
                slot.show(self._set_apart(slot, weight) if apart else weight)
            for slot in halved:
                slot.show(slot.parameter.detach().half().to(slot.parameter.dtype))
            self._refresh_recurrent()
            yield
        finally:
            for slot in [*self.quantized, *halved]:
                slot.show(None)
            self._is_in_place = False
            self._refresh_recurrent()

    def _set_apart(self, slot: Slot, weight: Tensor) -> Tensor:
        """The same weight as a leaf, whose gradients pass on to `weight`."""
        if not weight.requires_grad or weight is slot.parameter:
            return weight
        leaf = weight.detach().requires_grad_()
        leaf.register_post_accumulate_grad_hook(partial(self._pass_on, slot, weight))
        return leaf

    def _pass_on(self, slot: Slot, weight: Tensor, leaf: Tensor) -> None:
        weight.backward(leaf.grad, retain_graph=True)
        leaf.grad = None
        self.reached.add(slot)

    def _enter(self) -> None:
        self._stack.close()
        self._stack.enter_context(nullcontext() if self._is_in_place else self.in_place())

    def _slots(self) -> list[Slot]:
        return [*self.quantized, *self.others]

    def _refresh_recurrent(self) -> None:
        """torch's recurrent layers keep a list of their weights."""
        for module in {place[0] for each in self._slots() for place in each.places}:
            if isinstance(module, nn.RNNBase):
                module._flat_weights = [
                    getattr(module, name) for name in module._flat_weights_names
                ]
