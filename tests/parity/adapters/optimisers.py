"""Runs of the optimisers on recorded gradients, and the bounds of their theorems."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sonorant.optim.adam import Adagrad, Adam, adam_step_size
from sonorant.optim.certificates import (
    Problem,
    adagrad_bound,
    adagrad_momentum_bound,
    adam_bound,
    adam_momentum_bound,
    effective_steps,
    iterate_probabilities,
)
from tests.parity.runner import Case

CORRECTIONS = {
    "adam_paper": {"correct_first": False, "correct_second": True},
    "adam_original": {"correct_first": True, "correct_second": True},
    "adam_no_v_correction": {"correct_first": True, "correct_second": False},
    "adam_no_correction": {"correct_first": False, "correct_second": False},
}


def optim_traces(case: Case) -> dict[str, Tensor]:
    computed = {}
    for options in case.config:
        name, kind = options["name"], options["kind"]
        if kind.startswith("torch.optim."):
            case.input(f"{name}.x")  # torch's own runs, recorded to compare with
        else:
            for part, tensor in _trace(case, options).items():
                computed[f"{name}.{part}"] = tensor
    return computed


def _trace(case: Case, options: dict[str, Any]) -> dict[str, Tensor]:
    gradients = case.input("grads")
    x = torch.nn.Parameter(case.input("x0").clone())
    lr, eps, betas = options["alpha"], options["eps"], (options["beta1"], options["beta2"])
    optimiser: Adam | Adagrad
    if options["kind"] == "adagrad":
        optimiser = Adagrad([x], lr, momentum=betas[0], eps=eps)
        sizes = [lr] * len(gradients)
    else:
        correction = CORRECTIONS[options["kind"]]
        optimiser = Adam([x], lr, betas, eps, **correction)
        sizes = [adam_step_size(n, lr, betas, **correction) for n in range(1, len(gradients) + 1)]
    rows: dict[str, list[Tensor]] = {"m": [], "v": [], "x": []}
    for gradient in gradients:
        x.grad = gradient
        optimiser.step()
        state = optimiser.state[x]
        rows["m"].append(state.get("gradient_sum", gradient).clone())
        rows["v"].append(state["square_sum"].clone())
        rows["x"].append(x.detach().clone())
    stacked = {part: torch.stack(tensors) for part, tensors in rows.items()}
    return {**stacked, "alpha": torch.tensor(sizes, dtype=torch.float64)}


CONSTANTS = ("N", "d", "R", "L", "F0_minus_Fstar", "alpha", "eps", "beta1", "beta2")


def optim_bounds(case: Case) -> dict[str, Tensor]:
    computed = {}
    for match in case.names(r"(bounds\.\d+)\.N"):
        given = {name: case.input(f"{match[1]}.{name}").item() for name in CONSTANTS}
        for name, bound in _bounds(given).items():
            if case.recorded(f"{match[1]}.{name}"):
                computed[f"{match[1]}.{name}"] = torch.tensor(bound(), dtype=torch.float64)
    for match in case.names(r"(tau_distribution\.\d+)\.N"):
        steps, beta1 = (case.input(f"{match[1]}.{name}").item() for name in ("N", "beta1"))
        computed[f"{match[1]}.prob"] = iterate_probabilities(int(steps), beta1)
    return computed


def _bounds(given: dict[str, float]) -> dict[str, Callable[[], float]]:
    problem = Problem(int(given["d"]), given["R"], given["L"], given["F0_minus_Fstar"])
    steps, lr, eps = int(given["N"]), given["alpha"], given["eps"]
    beta1, beta2 = given["beta1"], given["beta2"]
    return {
        "N_tilde": lambda: effective_steps(steps, beta1),
        "theorem1": lambda: adagrad_bound(problem, steps, lr, eps),
        "theorem2": lambda: adam_bound(problem, steps, lr, beta2, eps),
        "theorem3": lambda: adagrad_momentum_bound(problem, steps, lr, beta1, eps),
        "theorem4": lambda: adam_momentum_bound(problem, steps, lr, (beta1, beta2), eps),
    }


ADAPTERS = {"optim-traces": optim_traces, "optim-bounds": optim_bounds}
