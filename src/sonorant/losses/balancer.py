"""Balance losses by the size of their gradients at the model's output.

Source: EnCodec (arXiv 2210.13438, section 3.4, "Balancer"). With g_i the gradient of loss i with
respect to the output y, and <n_i> the moving average of its norm, the output receives

    G = sum_i  R * w_i / (sum_j w_j) * g_i / <n_i>

so a weight is the share of the gradient that a loss gets, whatever the loss's own scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from sonorant.errors import CheckpointError, ConfigError


class BalancerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The defaults are the paper's R = 1 and beta = 0.999.

    balance_grads: False sums the weighted gradients as they are.
    per_batch_item: average the norms of the items of the batch, rather than take the norm of all.
    epsilon: keeps a loss whose gradient has always been zero from being divided by zero.
    """

    balance_grads: bool = True
    total_norm: float = 1.0
    ema_decay: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.999
    per_batch_item: bool = True
    epsilon: float = 1e-12


class Balanced(NamedTuple):
    """What `Balancer.balance` found.

    gradient: G, of the output's shape. effective_loss: sum of the losses as scaled, for logs.
    ratios: share of each loss in the averaged norms, before weighting.
    """

    gradient: Tensor
    effective_loss: Tensor
    ratios: dict[str, Tensor]


class Balancer:
    """Balances losses that depend on the model through its output only.

    weights: share of each loss by name. A step may leave losses out; the rest share the gradient.
    Raises: ConfigError if a weight is negative or all are zero.

    >>> balancer = Balancer({"time": 1.0, "mel": 3.0})
    >>> y = torch.zeros(1, 1, 4, requires_grad=True)
    >>> losses = {"time": 100 * (y - 1).abs().mean(), "mel": (y + 1).square().mean()}
    >>> y.backward(balancer.gradient(losses, y))
    >>> y.grad.tolist()  # norm 1, a quarter against three quarters
    [[[0.25, 0.25, 0.25, 0.25]]]
    """

    def __init__(self, weights: Mapping[str, float], config: BalancerConfig | None = None) -> None:
        if any(weight < 0 for weight in weights.values()) or not sum(weights.values()) > 0:
            raise ConfigError(f"loss weights must not be negative nor all zero, got {weights}")
        self.weights = dict(weights)
        self.config = config or BalancerConfig()
        self._averages: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}

    def gradient(self, losses: Mapping[str, Tensor], output: Tensor) -> Tensor:
        """The balanced gradient G `[batch, ...]` for `output.backward`; see `balance`."""
        return self.balance(losses, output).gradient

    def balance(self, losses: Mapping[str, Tensor], output: Tensor) -> Balanced:
        """Balance scalar `losses` by name with respect to `output` `[batch, ...]`.

        Updates the averaged norms. The graph between output and losses is kept; the one between
        model and output is not touched.
        Raises: ConfigError if a loss has no weight or does not depend on the output, or if the
        losses given have no weight together.
        """
        self._check(losses)
        gradients = {name: _gradient(name, loss, output) for name, loss in losses.items()}
        averages = self._average_norms(gradients, batch_size=output.shape[0])
        total_weight = sum(self.weights[name] for name in losses)
        effective_loss, total = output.new_zeros(()), torch.zeros_like(output)
        for name, gradient in gradients.items():
            scale = torch.tensor(self.weights[name], device=output.device)
            if self.config.balance_grads:
                scale = scale / total_weight * self.config.total_norm
                scale = scale / (self.config.epsilon + averages[name])
            total += scale * gradient
            effective_loss += scale * losses[name].detach()
        all_norms = torch.stack(list(averages.values())).sum()
        ratios = {
            name: average / (self.config.epsilon + all_norms) for name, average in averages.items()
        }
        return Balanced(total, effective_loss, ratios)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The averaged norms and their counts, as tensors by loss name."""
        return {
            "averages": {name: average.clone() for name, average in self._averages.items()},
            "counts": {
                name: torch.tensor(count, dtype=torch.float64)
                for name, count in self._counts.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Continue from `state_dict`. Raises: CheckpointError if it names losses without weight."""
        unknown = sorted(state["averages"].keys() - self.weights.keys())
        if unknown or state["averages"].keys() != state["counts"].keys():
            raise CheckpointError(
                f"the balancer's state is of other losses: {unknown} are not among "
                f"{sorted(self.weights)}"
            )
        self._averages = {name: average.clone() for name, average in state["averages"].items()}
        self._counts = {name: float(count) for name, count in state["counts"].items()}

    def _check(self, losses: Mapping[str, Tensor]) -> None:
        unknown = sorted(losses.keys() - self.weights.keys())
        if unknown:
            raise ConfigError(f"no weight for the losses {unknown}; add them to the weights")
        if not sum(self.weights[name] for name in losses) > 0:
            raise ConfigError(f"the losses of this step, {sorted(losses)}, have no weight together")

    def _average_norms(self, gradients: dict[str, Tensor], batch_size: int) -> dict[str, Tensor]:
        """Moving averages of the norms by name, averaged over processes.

        The count makes the average unbiased from its first step: average = sum_k beta^k n_k /
        sum_k beta^k, over the k steps since.
        """
        for name, gradient in gradients.items():
            norm = self._norm(gradient)
            self._counts[name] = self._counts.get(name, 0.0) * self.config.ema_decay + 1
            average = self._averages.get(name, norm).to(norm)
            self._averages[name] = average.lerp(norm, 1 / self._counts[name])
        stacked = torch.stack([self._averages[name] for name in gradients])
        if dist.is_available() and dist.is_initialized():
            stacked = _mean_over_processes(stacked, batch_size)
        return dict(zip(gradients, stacked, strict=True))

    def _norm(self, gradient: Tensor) -> Tensor:
        if self.config.per_batch_item:
            return torch.linalg.vector_norm(gradient.flatten(1), dim=1).mean()
        return torch.linalg.vector_norm(gradient)


def _gradient(name: str, loss: Tensor, output: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, output, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise ConfigError(f"the loss {name!r} does not depend on the model's output")
    return gradient


def _mean_over_processes(values: Tensor, batch_size: int) -> Tensor:
    """Mean of `values` over processes, weighted by the size of each one's batch."""
    message = torch.cat([values, values.new_ones(1)]) * batch_size
    dist.all_reduce(message)
    return message[:-1] / message[-1]
