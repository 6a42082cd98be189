"""The building blocks of Demucs (demucs 4.1.0): every block on the same input."""

from typing import Any

import torch
from torch import Tensor, nn

from sonorant.nn.positions import sinusoidal
from sonorant.separation.blocks import (
    BLSTM,
    DConv,
    DConvConfig,
    LocalState,
    ScaledEmbedding,
    pad1d,
    sinusoidal_grid,
)
from tests.parity.runner import Case


def dconv(options: dict[str, Any]) -> DConv:
    names = {
        "init": "initial_scale",
        "attn": "attention",
        "ndecay": "decays",
        "kernel": "kernel_size",
    }
    config = {names.get(name, name): value for name, value in options.items()}
    return DConv(config.pop("channels"), DConvConfig(**config))


def module_of(options: dict[str, Any]) -> nn.Module:
    """The block whose constructor takes these options."""
    options = dict(options)
    if "compress" in options:
        return dconv(options)
    if "dim" in options:
        return BLSTM(options.pop("dim"), **options)
    return LocalState(
        options["channels"], options["heads"], options["ndecay"], options.get("nfreqs", 0)
    )


def functions(case: Case) -> dict[str, Tensor]:
    """The positions, the embedding and the padding."""
    computed: dict[str, Tensor] = {}
    for name, options in case.config["functions"].items():
        if name.startswith("sin2d"):
            sizes = options["dim"], options["freqs"], options["length"]
            computed[f"out.{name}"] = sinusoidal_grid(*sizes, options["max_period"])
        elif name.startswith("sin"):
            at = torch.arange(options["length"])[None] + options.get("shift", 0)
            computed[f"out.{name}"] = sinusoidal(at, options["dim"], options["max_period"])[0]
        elif name.startswith("scaled_embedding"):
            rows, width = options["num_embeddings"], options["embedding_dim"]
            embedding = ScaledEmbedding(rows, width, options["scale"])
            embedding.load_state_dict(weights_of(case, name))
            computed[f"out.{name}_forward"] = embedding(torch.tensor(options["indices"]))
        else:
            for kind, padding in options.items():
                computed[f"out.{name}_{kind}"] = pad1d(case.input(f"in.{name}"), **padding)
    return computed


def weights_of(case: Case, name: str) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in case.weights.items()
        if key.startswith(prefix)
    }


@torch.no_grad()
def blocks(case: Case) -> dict[str, Tensor]:
    x = case.input("in.x")
    computed = functions(case)
    for name, options in case.config["modules"].items():
        module = module_of(options).eval()
        module.load_state_dict(weights_of(case, name))
        computed[f"out.{name}"] = module(x)
    return computed


ADAPTERS = {"blocks": blocks}
