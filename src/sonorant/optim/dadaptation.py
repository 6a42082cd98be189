"""Adam that finds its own step size.

Source: Learning-Rate-Free Learning by D-Adaptation (arXiv 2301.07733), the Adam variant, as
MusicGen's small model was trained with it. It keeps a lower bound d of the distance from the
start to the solution, and steps by lr * d; d only grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sonorant.errors import ConfigError
from sonorant.optim.checks import check_gradients, check_group, loss_of, parameters_or_error


class DAdaptAdam(Optimizer):
    """Adam whose step is estimated during training: leave `lr` at 1, schedules multiply it.

    betas: in [0, 1). eps: added to the root. weight_decay: decoupled, in steps of lr * d.
    initial_distance: d at the start, far below the real one; 1e-6 is usual.
    growth_rate: the most d may grow by in one step, above 1; infinite if not given.
    all_reduce: sums a tensor over processes in place, where each holds a part of the parameters
        (`torch.distributed.all_reduce`).
    The estimate is one for all groups, as `distance`, and is saved in the groups of the state dict.
    Raises: ConfigError for empty groups, parameters other than float32 and float64, values out of
        range, groups with learning rates that differ, and at `step` for gradients that are sparse
        or not finite.

    >>> weight = torch.nn.Parameter(torch.tensor([0.0]))
    >>> optimiser = DAdaptAdam([weight])
    >>> for _ in range(200):
    ...     optimiser.zero_grad()
    ...     (weight - 5).abs().sum().backward()
    ...     optimiser.step()
    >>> optimiser.distance > 0.1  # from 1e-6
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        initial_distance: float = 1e-6,
        growth_rate: float = math.inf,
        all_reduce: Callable[[Tensor], object] | None = None,
    ) -> None:
        if not 0 < initial_distance < math.inf:
            raise ConfigError(f"initial_distance must be above 0, got {initial_distance}")
        if not growth_rate > 1:
            raise ConfigError(f"growth_rate must be above 1, got {growth_rate}")
        self._all_reduce = all_reduce
        self._growth_rate = growth_rate
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "distance": initial_distance,
            "weighted_squares": 0.0,
        }
        super().__init__(parameters_or_error(params), defaults)

    @property
    def distance(self) -> float:
        """The present estimate d."""
        return float(self.param_groups[0]["distance"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters. Raises: ConfigError if the group is empty or has impossible values."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            check_group(group)
            if not all(0 <= beta < 1 for beta in group["betas"]):
                raise ConfigError(f"the betas must be in [0, 1), got {group['betas']}")
            if not 0 <= group["weight_decay"] < math.inf:
                raise ConfigError(f"weight_decay must not be negative, got {group['weight_decay']}")
            self._check_shared()
        except ConfigError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. Raises: ConfigError for sparse or not finite gradients; nothing has changed."""
        loss = loss_of(closure)
        self._check_shared()
        groups = [
            (group, [parameter for parameter in group["params"] if parameter.grad is not None])
            for group in self.param_groups
        ]
        everything = [parameter for _, parameters in groups for parameter in parameters]
        gradients = [parameter.grad for parameter in everything]
        check_gradients(everything, gradients)
        if any(gradient.is_sparse for gradient in gradients):
            raise ConfigError("D-Adaptation needs dense gradients: every coordinate moves")
        moving = [(group, parameters) for group, parameters in groups if parameters]
        sums = torch.stack([self._accumulate(*pair) for pair in moving] or [torch.zeros(3)]).sum(0)
        if self._all_reduce is not None:
            self._all_reduce(sums)
        scale = self.distance * self.param_groups[0]["lr"]
        self._adapt(*sums.tolist())
        for group, parameters in moving:
            self._move(group, parameters, scale)
        return loss

    def _accumulate(self, group: dict[str, Any], parameters: list[Tensor]) -> Tensor:
        """Take the gradients into the state. Returns: the three sums that the estimate needs."""
        beta1, beta2 = group["betas"]
        scale = self.distance * group["lr"]
        sums = torch.zeros(3, dtype=torch.float64, device=parameters[0].device)
        for parameter in parameters:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            for name in ("mean", "square", "scaled_sum"):
                if name not in state:
                    state[name] = torch.zeros_like(parameter)
            state["mean"].mul_(beta1).add_(gradient, alpha=scale * (1 - beta1))
            state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            state["scaled_sum"].mul_(beta2).add_(gradient, alpha=scale * (1 - beta2))
            root = state["square"].sqrt().add_(group["eps"])
            weighted = (gradient * gradient / root).sum()
            total = state["scaled_sum"]
            sums += torch.stack([weighted, (total * total / root).sum(), total.abs().sum()])
        return sums

    def _adapt(self, squares: float, distance_numerator: float, absolute: float) -> None:
        group = self.param_groups[0]
        _, beta2 = group["betas"]
        scale = group["distance"] * group["lr"]
        weighted = beta2 * group["weighted_squares"] + scale**2 * (1 - beta2) * squares
        distance = group["distance"]
        if absolute > 0:
            estimate = (distance_numerator / (1 - beta2) - weighted) / absolute
            distance = max(distance, min(estimate, distance * self._growth_rate))
        for group in self.param_groups:
            group["distance"], group["weighted_squares"] = distance, weighted

    def _move(self, group: dict[str, Any], parameters: list[Tensor], scale: float) -> None:
        """Weight decay by the scale that the mean was made with, then Adam's step (the mean has
        the step size in it; neither sum is corrected for its start)."""
        for parameter in parameters:
            state = self.state[parameter]
            root = state["square"].sqrt().add_(group["eps"])
            parameter.mul_(1 - group["weight_decay"] * scale)
            parameter.addcdiv_(state["mean"], root, value=-1)

    def _check_shared(self) -> None:
        """One estimate serves all groups, so what it is made with must be one, too."""
        for name in ("lr", "betas", "distance"):
            if any(group[name] != self.param_groups[0][name] for group in self.param_groups):
                raise ConfigError(f"with D-Adaptation all groups must have the same {name}")
