"""AdaBatch: in sparse problems, average each coordinate over the samples that touch it.

Source: AdaBatch: Efficient Gradient Aggregation Rules for Sequential and Parallel Stochastic
Gradient Methods (arXiv 1711.01761). For a batch of samples with gradients g_b,

    G_k = sum of g_b,k / number of samples with g_b,k present,      w <- w - lr G.

Plain batches divide by the batch size, so a coordinate that few samples have hardly moves; here it
moves as with single samples, and frequent coordinates are averaged. Batches can grow at the same
step size without losing progress per sample.

Gradients are sums over the samples, and sparse as `backward` gives them, not coalesced: an
embedding with `sparse=True`, or `torch.sparse_coo_tensor` with the non-zeros of each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from sonorant.errors import ConfigError
from sonorant.optim.checks import check_gradients, check_group, loss_of, parameters_or_error
from sonorant.optim.sample_sums import (
    SampleSums,
    SumBuffers,
    add_at,
    as_sparse,
    samples_of,
    sparse_dims_of,
)


class Exchange(Protocol):
    """Brings together what the workers of a batch have, so that all of them step alike."""

    def gather(
        self, parameters: Sequence[Tensor], parts: Sequence[tuple[int, SampleSums] | None]
    ) -> list[tuple[int, SampleSums] | None]:
        """For each parameter the number of sparse dimensions and the sums of this worker, or None;
        returned with the sums of all workers, not added up yet."""

    def abandon(self, parameters: Sequence[Tensor]) -> None:
        """Instead of `gather` after an error, so that the other workers do not wait."""


class AdaBatch(Optimizer):
    """Stochastic gradient descent on AdaBatch's means.

    lr: the step size that suits single samples suits any batch size.
    exchange: makes workers step together, each with its share of the batch; see
        `sonorant.optim.adabatch_parallel`. Every worker must make the same number of steps.
    Raises: ConfigError for empty groups, parameters other than float32 and float64 or not
        contiguous, values out of range, and at `step` for gradients that are coalesced or not
        finite, or dense without `samples`. In these cases no parameter has changed.

    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> optimiser = AdaBatch([weight], lr=1.0)
    >>> weight.grad = torch.sparse_coo_tensor([[0, 0, 2]], [2.0, 4.0, 1.0], (3,))  # two samples
    >>> optimiser.step()
    >>> weight.tolist()
    [-3.0, 0.0, -1.0]
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.1, exchange: Exchange | None = None
    ) -> None:
        self._sums = _Sums(exchange)
        super().__init__(parameters_or_error(params), {"lr": lr})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters. Raises: ConfigError if the group is empty or has impossible values."""
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
            if not all(parameter.is_contiguous() for parameter in self.param_groups[-1]["params"]):
                raise ConfigError("AdaBatch needs contiguous parameters: call .contiguous()")
        except ConfigError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, samples: int | None = None) -> Any:
        """One step. samples: how many the batch has, for parameters with a dense gradient."""
        loss = loss_of(closure)
        parameters = [p for group in self.param_groups for p in group["params"]]
        moves = iter(self._sums.collect(parameters, samples))
        for group in self.param_groups:
            for parameter in group["params"]:
                if (sums := next(moves)) is not None:
                    add_at(parameter, sums.coordinates, sums.means.mul_(-group["lr"]))
        return loss


class AdaBatchWrapper(Optimizer):
    """Any optimiser, on AdaBatch's means: its gradients are replaced by them at each step.

    optimizer: one that takes sparse gradients, such as Adagrad, SGD or SparseAdam, unless all
        gradients are dense. Its groups, state and state dict are those of the wrapper.
    exchange: as of `AdaBatch`; a worker that has no sample for a sparse parameter must still give
        an (empty) sparse gradient.
    Raises: ConfigError at `step`, as of `AdaBatch`.

    >>> weight = torch.nn.Parameter(torch.zeros(3))
    >>> optimiser = AdaBatchWrapper(torch.optim.Adagrad([weight], lr=0.5))
    >>> weight.grad = torch.sparse_coo_tensor([[0, 0, 2]], [2.0, 4.0, 1.0], (3,))
    >>> optimiser.step()
    >>> weight.tolist()
    [-0.5, 0.0, -0.5]
    """

    def __init__(self, optimizer: Optimizer, exchange: Exchange | None = None) -> None:
        # No super().__init__: everything it would set up is the wrapped optimiser's.
        self.optimizer = optimizer
        self._sums = _Sums(exchange)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The wrapped optimiser's."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """The wrapped optimiser's."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The wrapped optimiser's."""
        return self.optimizer.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the wrapped optimiser."""
        self.optimizer.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimiser's; this class has nothing to save."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.optimizer.load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, samples: int | None = None) -> Any:
        """One step. samples: how many the batch has, for parameters with a dense gradient."""
        loss = loss_of(closure)
        parameters = [p for group in self.param_groups for p in group["params"]]
        for parameter, sums in zip(
            parameters, self._sums.collect(parameters, samples), strict=True
        ):
            if sums is None:
                continue
            if parameter.grad is not None and not parameter.grad.is_sparse:
                parameter.grad = sums.means.view_as(parameter)
            else:
                dims = self._sums.buffers[parameter].sparse_dims
                parameter.grad = as_sparse(sums, parameter.shape, dims)
        self.optimizer.step()
        return loss


class _Sums:
    """Sums of the gradients of parameters, over all workers if there are more than one."""

    def __init__(self, exchange: Exchange | None) -> None:
        self._exchange = exchange
        self.buffers: dict[Tensor, SumBuffers] = {}

    def collect(self, parameters: list[Tensor], samples: int | None) -> list[SampleSums | None]:
        """For each parameter; None where no worker has a gradient."""
        try:
            parts = [self._own(parameter, samples) for parameter in parameters]
        except ConfigError:
            if self._exchange is not None:
                self._exchange.abandon(parameters)
            raise
        if self._exchange is not None:
            parts = self._exchange.gather(parameters, parts)
        found = []
        for parameter, part in zip(parameters, parts, strict=True):
            found.append(part and self._buffers_of(parameter, part[0]).collect(part[1]))
        check_gradients(parameters, [sums and sums.totals for sums in found])
        return found

    def _buffers_of(self, parameter: Tensor, sparse_dims: int) -> SumBuffers:
        """Those of a parameter, new if its gradient has got another layout."""
        buffers = self.buffers.get(parameter)
        if buffers is None or buffers.sparse_dims != sparse_dims:
            buffers = self.buffers[parameter] = SumBuffers(parameter, sparse_dims)
        return buffers

    def _own(self, parameter: Tensor, samples: int | None) -> tuple[int, SampleSums] | None:
        if parameter.grad is None:
            return None
        sparse_dims = sparse_dims_of(parameter.grad)
        sums = samples_of(parameter.grad, samples)
        if self._exchange is not None:  # less to send
            sums = self._buffers_of(parameter, sparse_dims).collect(sums)
        return sparse_dims, sums
