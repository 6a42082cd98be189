"""Residual quantizer training: the three published variants in one case."""

import math

import torch
from torch import Tensor

from sonorant.nn.quantizer import Codebook, QuantizerConfig, ResidualQuantizer
from tests.parity.runner import Case

# Names of our buffers in each package's files.
EMA_NAMES = {"embed": "embed", "embed_sum": "embed_avg", "usage": "cluster_size"}
BUFFERS = {
    "encodec": EMA_NAMES | {"initialized": "inited"},
    "audiocraft": EMA_NAMES | {"initialized": "inited"},
    "moshi": {
        "embed_sum": "embedding_sum",
        "usage": "cluster_usage",
        "initialized": "_initialized",
    },
}


def _config(case: Case, package: str) -> QuantizerConfig:
    return QuantizerConfig(
        dimension=case.config["dimension"],
        codebooks=case.config["n_q"],
        codebook_size=case.config["bins"],
        decay=case.config["decay"],
        epsilon=case.config["epsilon"],
        smoothing="clamp" if package == "moshi" else "laplace",
        commitment="first_level" if package == "encodec" else "every_level",
        dead_code_share=0.0,
    )


def _load(codebook: Codebook, case: Case, package: str, prefix: str) -> None:
    for ours, theirs in BUFFERS[package].items():
        getattr(codebook, ours).copy_(case.weights[f"{package}.{prefix}.{theirs}"])
    if package == "moshi":
        codebook.embed.copy_(
            codebook.embed_sum / codebook.usage.clamp(min=codebook.config.epsilon)[:, None]
        )


def train(case: Case) -> dict[str, Tensor]:
    batches, grad_out = case.input("x"), case.input("grad_out")
    computed: dict[str, Tensor] = {}
    for package in sorted({name.split(".")[0] for name in case.weights}):
        quantizer = ResidualQuantizer(_config(case, package)).train()
        for level, codebook in enumerate(quantizer.layers):
            _load(codebook, case, package, f"vq.layers.{level}._codebook")
        for step, batch in enumerate(batches):
            x = batch.clone().requires_grad_()
            out, tokens, penalty = quantizer(x)
            name = f"{package}.step{step}"
            (computed[f"{name}.grad_ste"],) = torch.autograd.grad(
                (out * grad_out).sum(), x, retain_graph=True
            )
            (computed[f"{name}.grad_penalty"],) = torch.autograd.grad(penalty, x)
            computed[f"{name}.out"] = out
            computed[f"{name}.codes"] = tokens.transpose(0, 1) if package == "encodec" else tokens
            computed[f"{name}.penalty"] = penalty
            bits_per_second = (
                case.config["n_q"] * math.log2(case.config["bins"]) * case.config["frame_rate"]
            )
            unit = 1 if package == "encodec" else 1000
            computed[f"{name}.bandwidth"] = torch.tensor(bits_per_second / unit)
            for level, codebook in enumerate(quantizer.layers):
                for ours, theirs in BUFFERS[package].items():
                    key = f"{name}.after.vq.layers.{level}._codebook.{theirs}"
                    computed[key] = getattr(codebook, ours).clone()
    return computed


ADAPTERS = {"rvq_training": train}
