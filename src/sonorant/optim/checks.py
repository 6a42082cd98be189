"""What every optimiser here does first: get a loss, and check gradients and parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sonorant.errors import ConfigError


def parameters_or_error(parameters: Iterable[Any]) -> list[Any]:
    """The parameters, or groups, as a list. Raises: ConfigError if there are none."""
    listed = list(parameters)
    if not listed:
        raise ConfigError("the optimiser got no parameters: has the module any?")
    return listed


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """What the closure of a step gives, which computes the gradients anew; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def check_group(group: dict[str, Any]) -> None:
    """Raises: ConfigError for an empty group, a wrong kind of parameter, learning rate or eps."""
    if not group["params"]:
        raise ConfigError("a group of the optimiser has no parameters: leave it out")
    for parameter in group["params"]:
        if parameter.dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"the optimiser needs float32 or float64 parameters, got {parameter.dtype} of "
                f"shape {list(parameter.shape)}: keep such parameters in float32 and use autocast"
            )
    if not 0 <= group["lr"] < math.inf:
        raise ConfigError(f"the learning rate must be finite and not negative, got {group['lr']}")
    if "eps" in group and not 0 < group["eps"] < math.inf:
        raise ConfigError(f"eps must be finite and above 0, got {group['eps']}")


def check_gradients(parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """gradients: one for each parameter, None where there is none.

    Raises: ConfigError if one is NaN, infinite, or so large that its square overflows.
    """
    there = [index for index, gradient in enumerate(gradients) if gradient is not None]
    if not there:
        return
    values = [gradient for gradient in gradients if gradient is not None]
    values = [value.coalesce().values() if value.is_sparse else value for value in values]
    finite = [norm.isfinite() for norm in torch._foreach_norm(values)]
    if all(torch.stack([flag.to(finite[0].device) for flag in finite]).tolist()):
        return
    bad = there[next(index for index, flag in enumerate(finite) if not flag)]
    raise ConfigError(
        f"the gradient of parameter {bad} (shape {list(parameters[bad].shape)}) is not finite; no "
        "parameter was changed: lower the learning rate or clip gradients"
    )
