"""AdaBatch in shared memory: workers add to the same sums without locks.

Source: AdaBatch (arXiv 1711.01761), the "wild" variant of its parallel method. Workers on one
machine share the weights, and for each parameter the sums and counts of the batch. A step has three
phases, and a barrier after each:

    1. every worker adds the gradients and counts of its samples, without locks;
    2. every worker works out the new values of the coordinates that it touched;
    3. it writes them, and sets their sums and counts to zero.

Where two workers touch a coordinate, both work out the same value in phase 2 and write it in phase
3. In phase 1 their additions may cross and one be lost, as in Hogwild!; sums and counts that lose
different samples give a mean that is off by a part of one sample. Cost: that of the entries, for
any number of coordinates.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.optim import Optimizer

from sonorant.errors import ConfigError
from sonorant.optim.checks import check_gradients, check_group, loss_of, parameters_or_error
from sonorant.optim.sample_sums import SampleSums, samples_of


class SharedSums:
    """What the workers share: make it before they start, and give it to each of them.

    parameters: whose first dimension numbers the coordinates; they are moved to shared memory.
    workers: how many processes will step. timeout_seconds: how long one waits for the others.

    Pass it and the parameters as arguments of the processes, made by `torch.multiprocessing`.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], workers: int, timeout_seconds: float = 60.0
    ) -> None:
        if workers < 1:
            raise ConfigError(f"need at least 1 worker, got {workers}")
        self.parameters = parameters_or_error(parameters)
        self.totals: list[Tensor] = []
        self.counts: list[Tensor] = []
        for parameter in self.parameters:
            if parameter.device.type != "cpu" or parameter.ndim == 0:
                raise ConfigError("shared sums need parameters of 1 dimension or more on the CPU")
            parameter.share_memory_()
            self.totals.append(torch.zeros_like(parameter).share_memory_())
            self.counts.append(torch.zeros(len(parameter), dtype=torch.int32).share_memory_())
        context = multiprocessing.get_context("spawn")
        self._barrier = context.Barrier(workers, timeout=timeout_seconds)

    def wait(self) -> None:
        """Until all workers are here. Raises: ConfigError if one has stopped or is too late."""
        try:
            self._barrier.wait()
        except threading.BrokenBarrierError as error:
            raise ConfigError("another worker stopped with an error, or is too late") from error

    def abandon(self) -> None:
        """Make `wait` fail in all other workers."""
        self._barrier.abort()


class SharedAdaBatch(Optimizer):
    """The optimiser of one worker; all of them must make the same number of steps.

    Gradients are as of `AdaBatch`, and sparse in the first dimension.
    Raises: ConfigError as `AdaBatch`, and if another worker stops.
    """

    def __init__(self, shared: SharedSums, lr: float = 0.1) -> None:
        self._shared = shared
        super().__init__(shared.parameters, {"lr": lr})
        check_group(self.param_groups[0])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step together with the other workers."""
        loss = loss_of(closure)
        shared, lr = self._shared, self.param_groups[0]["lr"]
        touched = self._add()
        shared.wait()
        moved = []
        for parameter, totals, counts, at in zip(
            shared.parameters, shared.totals, shared.counts, touched, strict=True
        ):
            sums, samples = totals.index_select(0, at), counts.index_select(0, at)
            means = sums / samples.view(-1, *[1] * (sums.ndim - 1))
            moved.append(parameter.index_select(0, at).add_(means, alpha=-lr))
        shared.wait()
        for parameter, totals, counts, at, values in zip(
            shared.parameters, shared.totals, shared.counts, touched, moved, strict=True
        ):
            parameter.index_copy_(0, at, values)
            totals.index_fill_(0, at, 0)
            counts.index_fill_(0, at, 0)
        shared.wait()
        return loss

    def _add(self) -> list[Tensor]:
        """Phase 1. Returns: the coordinates that this worker touches, with repetitions."""
        shared = self._shared
        try:
            parts = [_checked(parameter) for parameter in shared.parameters]
        except ConfigError:
            shared.abandon()
            raise
        for totals, counts, part in zip(shared.totals, shared.counts, parts, strict=True):
            totals.index_add_(0, part.coordinates, part.totals)
            counts.index_add_(0, part.coordinates, part.counts)
        return [part.coordinates for part in parts]


def _checked(parameter: Tensor) -> SampleSums:
    if parameter.grad is None:
        nothing = torch.zeros(0, dtype=torch.int64)
        return SampleSums(
            nothing, parameter.new_zeros((0, *parameter.shape[1:])), nothing.to(torch.int32)
        )
    if not parameter.grad.is_sparse or parameter.grad.sparse_dim() != 1:
        raise ConfigError("in shared memory AdaBatch needs gradients sparse in the first dimension")
    part = samples_of(parameter.grad)
    check_gradients([parameter], [part.totals])
    return part
