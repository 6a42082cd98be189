"""One training step of HTDemucs (demucs 4.1.0): losses, gradients, averaged weights, penalty."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from sonorant.optim.average import ExponentialMovingAverage
from sonorant.separation import checkpoints
from sonorant.separation.losses import (
    SeparationLoss,
    l1_per_source,
    rms_per_source,
    separation_loss,
)
from sonorant.separation.metrics import global_sdr
from sonorant.separation.weight_penalty import SingularValuePenalty, penalty
from tests.parity.adapters.separation_hybrid import model_of
from tests.parity.runner import Case


def train_step(case: Case) -> dict[str, Tensor]:
    model = model_of(case, checkpoints.HTDEMUCS).train()
    stems, weights = case.input("in.stems"), case.input("in.weights")
    estimate = model(stems.sum(dim=1))
    loss, _ = separation_loss(estimate, stems, SeparationLoss(sources=tuple(weights.tolist())))
    loss.backward()
    gradients = {
        name: each.grad for name, each in model.named_parameters() if each.grad is not None
    }
    found = {
        "out.estimate": estimate,
        "out.loss_weighted": loss.reshape(1),
        "out.l1_per_source": l1_per_source(estimate, stems),
        "out.reco_mse_per_source": rms_per_source(estimate, stems),
        "out.nsdr": global_sdr(stems, estimate).float(),
        "out.grad_norm_total": nn.utils.get_total_norm(list(gradients.values())).reshape(1),
    }
    for match in case.names(r"grad\.(.+)"):
        found[match[0]] = gradients[match[1]]
    size = re.search(r"numel/2\^18 >= ([0-9.]+)", case.readme)
    assert size, "the README names no smallest size"
    for name, transposed in (("convtr", True), ("noconvtr", False)):
        # A rank above all sizes makes the decomposition exact.
        config = SingularValuePenalty(
            min_size_mb=float(size[1]), transposed=transposed, rank=100_000
        )
        found[f"out.svd_penalty_exact_{name}"] = penalty(model, config).reshape(1)
    found["out.ema3_encoder0conv"] = averaged(case)
    case.clauses |= dict.fromkeys(found, "iSTFT")
    return {name: each.detach() for name, each in found.items() if case.recorded(name)}


def averaged(case: Case) -> Tensor:
    """The average, with a decay of 0.9, after the weight grew by 0.1, then 0.2, then 0.3."""
    layer = nn.Module()
    layer.weight = nn.Parameter(case.input("in.ema_final_encoder0conv").clone())
    average = ExponentialMovingAverage(layer, 0.9)
    for growth in (0.1, 0.2, 0.3):
        with torch.no_grad():
            layer.weight += growth
        average.update()
    with average.applied():
        return layer.weight.detach().clone()


ADAPTERS = {"htdemucs-train-step": train_step}
