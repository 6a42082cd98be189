"""Separators on the waveform: Demucs v1, v2 and v3, Conv-TasNet.

References: the demucs code of 2019 (v1), demucs 2.0.3 (v2, Conv-TasNet), demucs 4.1.0 (v3).
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from sonorant.hub.table import known, resolve
from sonorant.separation import checkpoints
from sonorant.separation.checkpoints import Translation, our_tensors
from sonorant.separation.separator import Separator
from tests.parity.runner import Case


def recorded_form(case: Case, name: str, value: Tensor) -> dict[str, Tensor]:
    """A tensor under its recorded name; big ones are recorded by their beginning and figures."""
    if case.recorded(name):
        return {name: value}
    computed = {}
    if case.recorded(f"{name}.head"):
        computed[f"{name}.head"] = value.flatten()[: case.io[f"{name}.head"].numel()]
    if case.recorded(f"{name}.stats"):
        figures = [value.mean(), value.std(), value.abs().max(), torch.tensor(value.numel())]
        computed[f"{name}.stats"] = torch.stack([figure.float() for figure in figures])
    return computed


def outputs(case: Case, model: nn.Module) -> dict[str, Tensor]:
    """The output, and what every recorded module gives on the way."""
    modules = dict(model.named_modules())
    found: dict[str, Tensor] = {}
    wanted = {match[1] for match in case.names(r"mid\.(.*?)(?:\.head|\.stats)?")}
    for name in wanted & modules.keys():

        def keep(module: nn.Module, inputs: Any, output: Tensor, name: str = name) -> None:
            found[name] = output

        modules[name].register_forward_hook(keep)
    computed = recorded_form(case, "out", model(case.input("in.mix")))
    for name, value in found.items():
        computed |= recorded_form(case, f"mid.{name}", value)
    return computed


def compares(translation: Translation) -> Callable[[Case], dict[str, Tensor]]:
    """The adapter of a published class."""

    @torch.no_grad()
    def compare(case: Case) -> dict[str, Tensor]:
        config = translation.config(case.config.get("args", []), arguments(case), case.folder.name)
        model: Separator = resolve(known().system(translation.system).class_)(config)
        model.load_state_dict(our_tensors(translation, config, case.weights))
        computed = outputs(case, model.eval())
        if case.recorded("out.valid_lengths"):
            asked = case.io["out.valid_lengths"][:, 0].tolist()
            pairs = [[length, model.valid_length(length)] for length in asked]
            computed["out.valid_lengths"] = torch.tensor(pairs)
        return computed

    return compare


def arguments(case: Case) -> dict[str, Any]:
    """As a package stores them; JSON writes a fraction as its two numbers."""
    return {
        name: Fraction(value["numerator"], value["denominator"])
        if isinstance(value, dict) and value.get("_type") == "fraction"
        else value
        for name, value in case.config["kwargs"].items()
    }


ADAPTERS = {
    "demucs-v1": compares(checkpoints.DEMUCS_V1),
    "demucs-v2": compares(checkpoints.DEMUCS_V2),
    "demucs-v3": compares(checkpoints.DEMUCS_V3),
    "conv-tasnet": compares(checkpoints.CONV_TASNET),
}
