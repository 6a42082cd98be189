"""Aggregation rules on a small sparse logistic regression."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sonorant.optim.adabatch import AdaBatch
from sonorant.optim.sample_sums import SumBuffers, coordinate_gain, samples_of
from tests.parity.runner import Case


def adabatch(case: Case) -> dict[str, Tensor]:
    chances, sizes = case.input("gain_p"), case.input("gain_B")
    computed = {"gain": coordinate_gain(chances[:, None], sizes[None, :])}
    for match in case.names(r"(adabatch|mean|sum)\.w"):
        for name, tensor in _run(case, match[1]).items():
            computed[f"{match[1]}.{name}"] = tensor
    return {name: tensor for name, tensor in computed.items() if case.recorded(name)}


def _run(case: Case, rule: str) -> dict[str, Tensor]:
    inputs, labels, step = case.input("X"), case.input("y"), case.config["gamma"]
    w = nn.Parameter(case.input("w0").clone())
    optimiser = AdaBatch([w], step) if rule == "adabatch" else torch.optim.SGD([w], step)
    rows: dict[str, list[Tensor]] = {"agg": [], "w": [], "counts": []}
    for batch in case.input("batches"):
        gradient = _gradient(inputs[batch], labels[batch], w.detach())
        sums = SumBuffers(w, 1).collect(samples_of(gradient))
        values = {"adabatch": sums.means, "mean": sums.totals / len(batch), "sum": sums.totals}
        w.grad = gradient / len(batch) if rule == "mean" else gradient
        optimiser.step()
        zeros = torch.zeros_like(w, requires_grad=False)
        rows["agg"].append(zeros.index_copy(0, sums.coordinates, values[rule]))
        rows["counts"].append(zeros.to(sums.counts).index_copy(0, sums.coordinates, sums.counts))
        rows["w"].append(w.detach().clone())
    return {name: torch.stack(tensors) for name, tensors in rows.items()}


def _gradient(inputs: Tensor, labels: Tensor, w: Tensor) -> Tensor:
    """Sparse, one entry for each sample and coordinate that is not zero in it."""
    slopes = -labels * torch.sigmoid(-labels * (inputs @ w))
    sample, coordinate = inputs.nonzero(as_tuple=True)
    values = slopes[sample] * inputs[sample, coordinate]
    return torch.sparse_coo_tensor(coordinate[None], values, w.shape)


ADAPTERS = {"adabatch": adabatch}
