"""Runs of the optimisers on recorded gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sonorant.optim.adam import Adagrad, Adam, adam_step_size
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


ADAPTERS = {"optim-traces": optim_traces}
