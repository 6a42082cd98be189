"""Exact risk curves of averaged least mean squares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sonorant.optim.least_mean_squares import (
    Design,
    largest_step,
    leverage_density,
    norm_density,
    operator_matrix,
    risk_curves,
    variance_density,
)
from tests.parity.runner import Case

DENSITIES: dict[str, Callable[[Design], Tensor]] = {
    "uniform": lambda design: torch.ones_like(design.probability),
    "norm2": norm_density,
    "variance_opt": variance_density,
    "leverage": leverage_density,
}


def read_design(case: Case) -> Design:
    return Design(case.input("X"), case.input("prob"), case.input("noise_var"))


def lms(case: Case) -> dict[str, Tensor]:
    plain = read_design(case)
    start = case.input("delta0")
    computed = {"H": plain.covariance}
    for match in case.names(r"(.+)\.rho"):
        name = match[1]
        density = DENSITIES[name](plain)
        design = replace(plain, density=density)
        step = case.config["gamma_fraction_of_max"] * largest_step(design)
        curves = risk_curves(design, start, step, case.config["N"])
        computed[f"{name}.rho"] = density
        computed[f"{name}.T"] = operator_matrix(design, step)
        computed[f"{name}.bias"] = curves.bias
        computed[f"{name}.variance"] = curves.variance
    return computed


ADAPTERS = {"lms": lms}
