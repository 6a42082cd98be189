"""Training with an automatic step, and the average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sonorant.optim.average import ExponentialMovingAverage
from sonorant.optim.dadaptation import DAdaptAdam
from tests.parity.runner import Case

_AVERAGE_DECAY = 0.99  # of the recorded average, by the case's README


def training(case: Case) -> dict[str, Tensor]:
    computed = _automatic_step(case)
    for match in case.names(r"ema\.(trace_weight_i)"):
        computed[match[0]] = _averages(len(case.io[match[0]]))
    return computed


def _automatic_step(case: Case) -> dict[str, Tensor]:
    options = case.config["dadapt"]
    w, b = (nn.Parameter(case.input(f"dadapt.{name}0").clone()) for name in "wb")
    optimiser = DAdaptAdam(
        [w, b],
        options["lr"],
        tuple(options["betas"]),
        options["eps"],
        options["weight_decay"],
        initial_distance=options["d0"],
    )
    rows: dict[str, list[Tensor]] = {"w": [], "b": [], "d": []}
    for noise_w, noise_b in zip(
        case.input("dadapt.noise_w"), case.input("dadapt.noise_b"), strict=True
    ):
        w.grad, b.grad = 0.1 * noise_w + (w.detach() - 5), 0.1 * noise_b + (b.detach() + 3)
        optimiser.step()
        rows["w"].append(w.detach().clone())
        rows["b"].append(b.detach().clone())
        rows["d"].append(torch.tensor(optimiser.distance, dtype=torch.float64))
    return {f"dadapt.{name}": torch.stack(tensors) for name, tensors in rows.items()}


def _averages(updates: int) -> Tensor:
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    average = ExponentialMovingAverage(layer, _AVERAGE_DECAY)
    values = []
    for value in range(updates):
        nn.init.constant_(layer.weight, value)
        average.update()
        with average.applied():
            values.append(layer.weight.detach().clone().reshape(()))
    return torch.stack(values)


ADAPTERS = {"training": training}
