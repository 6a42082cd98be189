"""Hybrid Demucs and HTDemucs (demucs 4.1.0): the output, and what the layers give on the way."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sonorant.hub.table import known, resolve
from sonorant.separation import checkpoints
from sonorant.separation.checkpoints import Translation
from sonorant.separation.hdemucs import HybridModel
from tests.parity.adapters.separation_time import arguments, recorded_form
from tests.parity.adapters.spectrogram import as_real
from tests.parity.runner import Case


def model_of(case: Case, translation: Translation) -> HybridModel:
    config = translation.config(case.config.get("args", []), arguments(case), case.folder.name)
    model: HybridModel = resolve(known().system(translation.system).class_)(config)
    model.load_state_dict(case.weights)
    return model.eval()


def compares(translation: Translation) -> Callable[[Case], dict[str, Tensor]]:
    """The adapter of a published class."""

    @torch.no_grad()
    def compare(case: Case) -> dict[str, Tensor]:
        model, mix = model_of(case, translation), case.input("in.mix")
        found: dict[str, Tensor] = {}
        for name, module in model.named_modules():

            def keep(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                # Decoder layers give what the other branch begins with as well.
                found[f"mid.{name}"] = output[0] if isinstance(output, tuple) else output

            module.register_forward_hook(keep)
        found["out"] = model(mix)
        found["mid.spec"] = model.spectrogram.forward(mix)
        found["mid.ispec_of_spec"] = model.spectrogram.inverse(found["mid.spec"], mix.shape[-1])
        computed: dict[str, Tensor] = {}
        for name, value in found.items():
            computed |= recorded_form(case, name, as_real(value))
        # An inverse STFT, an LSTM or attention stands before nearly all of them.
        case.clauses |= dict.fromkeys(computed, "iSTFT")
        return computed

    return compare


ADAPTERS = {
    "hdemucs": compares(checkpoints.HDEMUCS),
    "htdemucs": compares(checkpoints.HTDEMUCS),
}
