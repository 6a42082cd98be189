"""The independence-promoting loss, plain and delayed, with its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from sonorant.losses.independence import IndependenceConfig, independence_loss
from tests.parity.runner import Case


def mmd_loss(case: Case) -> dict[str, Tensor]:
    computed = {}
    for match in case.names(r"(.+)\.delay([01])\.loss"):
        name = f"{match[1]}.delay{match[2]}"
        streams = case.input(match[1]).clone().requires_grad_()
        config = IndependenceConfig(
            bandwidths=tuple(case.config["bandwidths"]),
            epsilon=case.config["eps"],
            delayed=match[2] == "1",
        )
        loss = independence_loss(streams, config, case.input(f"{name}.perms"))
        computed[f"{name}.loss"] = loss
        (computed[f"{name}.grad"],) = torch.autograd.grad(loss, streams)
    return computed


ADAPTERS = {"mmd_loss": mmd_loss}
