"""What training needs from a system: a Task, and what the engine lends it during a step.

A task brings modules, optimisers, data and one training step. The engine brings everything that is
the same for every system: devices, precision, many processes, accumulation, clipping, schedules,
averaged weights, checkpoints and logs. The step itself belongs to the task, so that a system with
two optimisers that take turns (an adversary and its generator) needs no special engine.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from sonorant.audio import Audio
from sonorant.errors import CheckpointError

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped]

Metrics = Mapping[str, Tensor | float]


class StepContext:
    """What the engine lends a task during one step.

    step: index of the optimiser step, from 0.
    generator: random numbers for choices that every process must make alike (a bandwidth, whether
        the adversary is trained). It is seeded from the recipe's seed and the step, so a resumed
        run draws the same numbers.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        optimizers: Mapping[str, Optimizer],
        accumulate: int,
        max_gradient_norm: float | None,
    ) -> None:
        self.step = 0
        self.generator = torch.Generator()
        self.gradient_norms: dict[str, Tensor] = {}
        self._accelerator = accelerator
        self._optimizers = optimizers
        self._accumulate = accumulate
        self._max_gradient_norm = max_gradient_norm
        self._last_part = True

    def begin(self, step: int, part: int, seed: int) -> None:
        """Called by the engine before part `part` (of `accumulate`) of step `step`."""
        self.step = step
        self._last_part = part == self._accumulate - 1
        # Knuth's multiplicative hash keeps the streams of neighbouring steps apart.
        self.generator.manual_seed((seed + 1) * 2654435761 + step * self._accumulate + part)
        if part == 0:
            self.gradient_norms = {}

    @property
    def device(self) -> torch.device:
        return self._accelerator.device

    @property
    def processes(self) -> int:
        return self._accelerator.num_processes

    def autocast(self) -> AbstractContextManager[None]:
        """Run the enclosed forward pass in the recipe's precision."""
        return self._accelerator.autocast()

    @property
    def steps_now(self) -> bool:
        """Whether `apply` moves the weights in this part; with accumulation, only in the last."""
        return self._last_part

    def apply(self, optimizer_name: str) -> None:
        """Use the gradients gathered so far: average them over processes, clip, step, clear.

        With accumulation it waits for the last part of the step, so a task calls it after every
        backward pass. Every process must call it with gradients on the same parameters.
        """
        if not self._last_part:
            return
        optimizer = self._optimizers[optimizer_name]
        parameters = [
            parameter
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not parameters:
            return
        gradients = [parameter.grad for parameter in parameters]
        if self._accumulate > 1:
            torch._foreach_div_(gradients, self._accumulate)
        self._average(gradients)
        if self._max_gradient_norm is not None:
            norm = nn.utils.clip_grad_norm_(parameters, self._max_gradient_norm)
            self.gradient_norms[optimizer_name] = norm
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def broadcast(self, module: nn.Module) -> None:
        """Give every process the parameters and buffers of the first one."""
        if self.processes == 1:
            return
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            torch.distributed.broadcast(tensor.detach(), src=0)

    def _average(self, tensors: list[Any]) -> None:
        """Mean over processes, in place, in one message."""
        if self.processes == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.processes
        for tensor, mean in zip(
            tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True
        ):
            tensor.copy_(mean.view_as(tensor))


class Task(ABC):
    """One system in training. A subclass names its settings and implements the abstract methods.

    `Settings` is the frozen struct that the recipe's `settings` section is read into; the task is
    made with it. Modules are made on the CPU; the engine moves them to the device before it asks
    for the optimisers.
    """

    Settings: ClassVar[type[msgspec.Struct]]
    averaged_modules: ClassVar[tuple[str, ...]] = ()
    """Names of the modules of which the engine keeps averaged weights, where the recipe says so.
    They are the ones used in `evaluate`, `samples` and `export`."""

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Everything with weights, by name; the same objects at every call."""

    @abstractmethod
    def make_optimizers(self) -> dict[str, Optimizer]:
        """New optimisers by name. Called once, when the modules are on their device."""

    @abstractmethod
    def training_data(self, seed: int) -> Dataset[Any]:
        """A map-style dataset in which item i depends on `seed` and i only; read in order."""

    @abstractmethod
    def step(self, batch: Any, context: StepContext) -> Metrics:
        """One training step on a batch of this process; returns what to log (detached)."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the model, ready for use, into `folder`."""

    @property
    def keeps_averages(self) -> bool:
        """Whether the task averages weights itself, so that the engine must not."""
        return False

    def validation_data(self) -> Dataset[Any] | None:
        """A fixed map-style dataset for `evaluate`, or None."""
        return None

    def evaluate(self, batch: Any) -> Metrics:
        """Figures of one validation batch. Runs without gradients, modules in eval mode."""
        return {}

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """What to log of a validation, from the means of what `evaluate` gave over all batches.

        Shares of batches that differ in size come out right as a mean of hits over a mean of items.
        """
        return dict(means)

    def validated(self, figures: Mapping[str, float]) -> None:
        """Hear the means of what `evaluate` gave, over all batches and processes."""
        return

    def samples(self) -> dict[str, Audio]:
        """A few sounds to listen to while training goes on, by name."""
        return {}

    def extra_state(self) -> dict[str, Any]:
        """What else must be restored to continue exactly, kept for each process on its own.

        Tensors, numbers, strings, and containers of these.
        """
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `extra_state` gave."""
        if state:
            raise CheckpointError(f"{type(self).__name__} cannot restore {sorted(state)}")


def numbered_sounds(versions: Mapping[str, Tensor], sample_rate: int) -> dict[str, Audio]:
    """Sounds to log, by `INDEX_VERSION`: all rows of `[batch, channels, time]` of all versions."""
    return {
        f"{index}_{name}": Audio(sound.clamp(-1, 1).cpu(), sample_rate)
        for name, sounds in versions.items()
        for index, sound in enumerate(sounds)
    }
