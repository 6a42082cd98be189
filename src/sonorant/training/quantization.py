"""Training with quantised weights, for every task: `quantization: diffq` in a recipe.

The engine puts quantised weights in place of a model's own during each step and each evaluation,
and the model stores itself packed. Tasks need to know nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from sonorant.errors import ConfigError
from sonorant.model import Model
from sonorant.quantization import LSQ, Choice, DiffQ, DiffQConfig, Quantizer, UniformQuantizer
from sonorant.quantization.quantizer import BITS_PER_MB
from sonorant.training.task import Metrics, StepContext

OPTIMIZER = "quantization"
"""Name of the optimiser of learned bits."""
Positive = Annotated[float, msgspec.Meta(gt=0)]


class QuantizationSettings(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="method"
):
    """What all methods have.

    choice: which parameters are quantised.
    modules: names of the task's models; those that it averages if empty.
    """

    choice: Choice = Choice()
    modules: tuple[str, ...] = ()


class DiffQSettings(QuantizationSettings, frozen=True, kw_only=True, tag="diffq"):
    """Learned bits. Source: DiffQ (arXiv 2104.09987, section 4).

    penalty: of each MB (2^20 bytes) of the stored model, added to the loss.
    learning_rate: of the bits, which have an Adam of their own.
    """

    penalty: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    learning_rate: Positive = 1e-3
    config: DiffQConfig = DiffQConfig()

    def quantizer(self, model: nn.Module) -> Quantizer:
        return DiffQ(model, self.config, self.choice)


class LSQSettings(QuantizationSettings, frozen=True, kw_only=True, tag="lsq"):
    """Learned steps (arXiv 1902.08153), trained by the optimiser of the weights."""

    bits: int = 8

    def quantizer(self, model: nn.Module) -> Quantizer:
        return LSQ(model, self.bits, self.choice)


class UniformSettings(QuantizationSettings, frozen=True, kw_only=True, tag="uniform"):
    """Rounded weights, whose gradients pass the rounding as if it were not there."""

    bits: int = 8

    def quantizer(self, model: nn.Module) -> Quantizer:
        return UniformQuantizer(model, self.bits, trained=True, choice=self.choice)


Method = Literal["diffq", "lsq", "uniform"]
Settings = DiffQSettings | LSQSettings | UniformSettings
METHODS: dict[Method, type[Settings]] = {
    "diffq": DiffQSettings,
    "lsq": LSQSettings,
    "uniform": UniformSettings,
}
Quantization = Method | Settings
"""What a recipe says: a method by name, with its defaults, or with its numbers."""


class QuantizedModels:
    """The quantisers of a run. Of none, where the recipe has no quantisation, it does nothing.

    Adds what is learned to `optimizers`.
    Raises: ConfigError for models that cannot be stored in few bits.
    """

    def __init__(
        self,
        quantization: Quantization | None,
        modules: Mapping[str, nn.Module],
        averaged: tuple[str, ...],
        optimizers: dict[str, Optimizer],
    ) -> None:
        self.settings: Settings | None = (
            METHODS[quantization]() if isinstance(quantization, str) else quantization
        )
        self.quantizers: dict[str, Quantizer] = {}
        if self.settings is None:
            return
        for name in self.settings.modules or averaged or tuple(modules):
            self.quantizers[name] = _quantizer(self.settings, name, modules.get(name))
        if isinstance(self.settings, DiffQSettings):
            learned = [part for each in self.quantizers.values() for part in each.learned()]
            optimizers[OPTIMIZER] = Adam(learned, lr=self.settings.learning_rate)
        else:
            for name, quantizer in self.quantizers.items():
                quantizer.attach(_optimizer_of(quantizer, name, optimizers))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the models compute with quantised weights, by their modes."""
        with ExitStack() as stack:
            for quantizer in self.quantizers.values():
                apart = quantizer.model.training
                stack.enter_context(quantizer.in_place(apart))
            yield

    def learn(self, context: StepContext) -> Metrics:
        """Train the learned bits after a task's step; returns the sizes in MB (2^20 bytes).

        Only what took part in the step pays for its size; the rest would lose bits it needs.
        """
        if not isinstance(self.settings, DiffQSettings):
            return {}
        metrics: dict[str, Tensor | float] = {}
        for name, quantizer in self.quantizers.items():
            metrics[f"size_mb/{name}"] = quantizer.model_size().detach()
            reached = [slot for slot in quantizer.quantized if slot in quantizer.reached]
            for slot in reached:
                bits = torch.as_tensor(quantizer.tensor_bits(slot, exact=False))
                (self.settings.penalty * bits / BITS_PER_MB).backward()
            quantizer.reached.clear()
        context.apply(OPTIMIZER)
        return metrics


def _quantizer(settings: Settings, name: str, module: nn.Module | None) -> Quantizer:
    if not isinstance(module, Model):
        raise ConfigError(
            f"quantization: the task has no model {name!r} that can be stored in few bits; "
            "name others in quantization.modules"
        )
    quantizer = settings.quantizer(module)
    if not quantizer.quantized:
        raise ConfigError(
            f"quantization: {name!r} has no parameter above {settings.choice.min_size_mb} MB that "
            "is not excluded; change quantization.choice"
        )
    module.packing = quantizer.stored
    return quantizer


def _optimizer_of(
    quantizer: Quantizer, name: str, optimizers: Mapping[str, Optimizer]
) -> Optimizer:
    """The optimiser that trains a quantiser's weights."""
    own = {id(slot.parameter) for slot in quantizer.quantized}
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            if any(id(parameter) in own for parameter in group["params"]):
                return optimizer
    raise ConfigError(f"quantization: no optimiser trains the weights of {name!r}")
