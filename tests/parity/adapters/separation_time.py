"""Separators on the waveform: Demucs v1, v2 and v3, Conv-TasNet.

References: the demucs code of 2019 (v1), demucs 2.0.3 (v2, Conv-TasNet), demucs 4.1.0 (v3).
"""

from typing import Any

import torch
from torch import Tensor, nn

from sonorant.separation.blocks import DConvConfig
from sonorant.separation.conv_tasnet import ConvTasNet, ConvTasNetConfig
from sonorant.separation.demucs import (
    MUSDB_SOURCES,
    DemucsV1,
    DemucsV1Config,
    DemucsV2,
    DemucsV2Config,
)
from sonorant.separation.demucs_v3 import DemucsV3, DemucsV3Config
from sonorant.separation.separator import Separator
from tests.parity.runner import Case

TASNET_NAMES = {
    "N": "filters",
    "L": "filter_samples",
    "B": "bottleneck",
    "H": "hidden",
    "P": "kernel_size",
    "X": "blocks",
    "R": "repeats",
}
NORMS = {"gLN": "global", "cLN": "channel"}


def shared(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Options of every class, in our words; the rest keeps its names."""
    options = {name: value for name, value in kwargs.items() if value is not None}
    sources = options.pop("sources")
    if isinstance(sources, int):
        sources = MUSDB_SOURCES if sources == 4 else [f"source{n}" for n in range(sources)]
    options["sources"] = tuple(sources)
    for theirs, ours in (("samplerate", "sample_rate"), ("segment_length", "segment_samples")):
        if theirs in options:
            options[ours] = options.pop(theirs)
    return options


def v1(kwargs: dict[str, Any]) -> Separator:
    return DemucsV1(DemucsV1Config(**shared(kwargs)))


def v2(kwargs: dict[str, Any]) -> Separator:
    return DemucsV2(DemucsV2Config(**shared(kwargs)))


def v3(kwargs: dict[str, Any]) -> Separator:
    options = shared(kwargs)
    mode = options.pop("dconv_mode", 1)
    branches = {"dconv_depth": "depth", "dconv_comp": "compress", "dconv_init": "initial_scale"}
    own = {
        "norm_starts": "norm_from_layer",
        "dconv_attn": "attention_from_layer",
        "dconv_lstm": "lstm_from_layer",
    }
    segment = options.pop("segment", 40)
    if isinstance(segment, dict):
        segment = segment["numerator"] / segment["denominator"]
    dconv = DConvConfig(**{ours: options.pop(n) for n, ours in branches.items() if n in options})
    config = {own.get(name, name): value for name, value in options.items()}
    return DemucsV3(
        DemucsV3Config(
            **config,
            dconv=dconv,
            segment_seconds=segment,
            dconv_in_encoder=bool(mode & 1),
            dconv_in_decoder=bool(mode & 2),
        )
    )


def tasnet(kwargs: dict[str, Any]) -> Separator:
    options = {TASNET_NAMES.get(name, name): value for name, value in shared(kwargs).items()}
    options["norm"] = NORMS[options.pop("norm_type", "gLN")]
    options["mask"] = options.pop("mask_nonlinear", "relu")
    return ConvTasNet(ConvTasNetConfig(**options))


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


def run(case: Case, model: Separator) -> dict[str, Tensor]:
    model.load_state_dict(case.weights)
    computed = outputs(case, model.eval())
    if case.recorded("out.valid_lengths"):
        asked = case.io["out.valid_lengths"][:, 0].tolist()
        pairs = [[length, model.valid_length(length)] for length in asked]
        computed["out.valid_lengths"] = torch.tensor(pairs)
    return computed


def adapter(build: Any) -> Any:
    @torch.no_grad()
    def compare(case: Case) -> dict[str, Tensor]:
        return run(case, build(case.config["kwargs"]))

    return compare


ADAPTERS = {
    "demucs-v1": adapter(v1),
    "demucs-v2": adapter(v2),
    "demucs-v3": adapter(v3),
    "conv-tasnet": adapter(tasnet),
}
