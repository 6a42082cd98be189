"""Moving averages of a model's weights.

Source: the unbiased exponential average with which the published codecs and MusicGen were
evaluated: count <- count * decay + 1, average <- average + (value - average) / count. The first
update sets the average to the value, so a run's random start leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sonorant.errors import CheckpointError, ConfigError


class ExponentialMovingAverage:
    """Averages the parameters and the persistent floating-point buffers of a module.

    Buffers count because codebooks learn in buffers. Integer buffers stay as they are.
    decay: 0.99 per update in the published codec training.
    Raises: ConfigError if decay is not in [0, 1].

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> average = ExponentialMovingAverage(layer, decay=0.5)
    >>> for value in (1.0, 4.0):
    ...     _ = nn.init.constant_(layer.weight, value)
    ...     average.update()
    >>> with average.applied():
    ...     layer.weight.item()  # (4 + 0.5 * 1) / (1 + 0.5)
    3.0
    >>> layer.weight.item()
    4.0
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 <= decay <= 1:
            raise ConfigError(f"the decay of an average must be in [0, 1], got {decay}")
        self.module = module
        self.decay = decay
        self._count = 0.0
        self._averages = {name: tensor.clone() for name, tensor in self._values().items()}

    @property
    def updated(self) -> bool:
        """Whether it has taken in any weights yet."""
        return self._count > 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's present weights into the average."""
        self._count = self._count * self.decay + 1
        values = self._values()
        self._averages = {
            name: average.to(values[name].device) for name, average in self._averages.items()
        }
        torch._foreach_lerp_(
            [self._averages[name] for name in values], list(values.values()), 1 / self._count
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The module has the averaged weights inside the `with`, and its own again after it."""
        values = self._values()
        own = {name: tensor.clone() for name, tensor in values.items()}
        try:
            _copy(self._averages, values)
            yield
        finally:
            _copy(own, values)

    def state_dict(self) -> dict[str, Any]:
        """The averages by name of weight, and the count, as tensors."""
        return {
            "count": torch.tensor(self._count, dtype=torch.float64),
            "averages": {name: tensor.clone() for name, tensor in self._averages.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Raises: CheckpointError if it is of another module."""
        shapes = {name: tensor.shape for name, tensor in state["averages"].items()}
        if shapes != {name: tensor.shape for name, tensor in self._averages.items()}:
            raise CheckpointError(
                "the averaged weights are of another module: names or shapes differ"
            )
        self._count = float(state["count"])
        _copy(state["averages"], self._averages)

    def _values(self) -> dict[str, Tensor]:
        """The module's live tensors; asked for at each use, as a module may be moved or loaded."""
        return {
            name: tensor.detach()
            for name, tensor in self.module.state_dict().items()
            if tensor.is_floating_point()
        }


class AverageBank:
    """Several averages of one module, of which validation shows the best.

    step_decays: of averages that `step` updates, 0.9995 and 0.9999 in Hybrid Demucs;
    epoch_decays: of those that `epoch` updates, 0.9 and 0.95 (arXiv 2111.03600, section 4).
    Raises: ConfigError if a decay is not in [0, 1].
    """

    def __init__(
        self, module: nn.Module, step_decays: Sequence[float], epoch_decays: Sequence[float]
    ) -> None:
        self._of_steps = _named_averages("step", module, step_decays)
        self._of_epochs = _named_averages("epoch", module, epoch_decays)

    @property
    def averages(self) -> dict[str, ExponentialMovingAverage]:
        """All of them, by names such as `step_0.9999`."""
        return self._of_steps | self._of_epochs

    def step(self) -> None:
        """Take the module's present weights into the averages over steps."""
        for average in self._of_steps.values():
            average.update()

    def epoch(self) -> None:
        """Take the module's present weights into the averages over epochs."""
        for average in self._of_epochs.values():
            average.update()

    @property
    def ready(self) -> dict[str, ExponentialMovingAverage]:
        """Those that have been updated."""
        return {name: each for name, each in self.averages.items() if each.updated}

    def state_dict(self) -> dict[str, Any]:
        return {name: each.state_dict() for name, each in self.averages.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Raises: CheckpointError if it is of other averages."""
        if state.keys() != self.averages.keys():
            raise CheckpointError(
                f"the checkpoint has the averages {sorted(state)}, not {sorted(self.averages)}"
            )
        for name, each in self.averages.items():
            each.load_state_dict(state[name])


def _named_averages(
    kind: str, module: nn.Module, decays: Sequence[float]
) -> dict[str, ExponentialMovingAverage]:
    return {f"{kind}_{decay:g}": ExponentialMovingAverage(module, decay) for decay in decays}


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
