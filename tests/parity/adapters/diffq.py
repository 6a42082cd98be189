"""DiffQ, the baselines it is compared with, and bit packing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sonorant.quantization import LSQ, Choice, DiffQ, Quantizer, UniformQuantizer
from sonorant.quantization.bit_planes import (
    PLANES,
    SHORT_PLANES,
    pack_planes,
    pack_short_planes,
)
from sonorant.quantization.published import quantizer_options, unpacked_state
from tests.parity.runner import Adapter, Case


class Network(nn.Module):
    """The model of the cases, in the sizes that the recorded weights have."""

    def __init__(self, weights: dict[str, Tensor], tied: bool) -> None:
        super().__init__()
        out, into, width = weights["conv.weight"].shape
        self.conv = nn.Conv1d(into, out, width)
        for name in ("lin", "lin2", "tied", "small"):
            weight = weights[f"{name}.weight" if f"{name}.weight" in weights else "lin.weight"]
            setattr(self, name, nn.Linear(weight.shape[1], weight.shape[0]))
        if tied:
            self.tied.weight = self.lin.weight
        self.load_state_dict({k: v for k, v in weights.items() if k in self.state_dict()})

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(x)).mean(dim=-1)
        h = self.lin2(torch.tanh(self.lin(h)))
        y: Tensor = self.small(torch.tanh(self.lin2(torch.tanh(self.tied(h)))))
        return y


class RecordedNoise(DiffQ):
    """DiffQ with the noise of the recording."""

    recorded: Iterator[Tensor]

    def draw_noise(self, groups: Tensor) -> Tensor:
        noise = next(self.recorded)
        return noise / 2 if self.config.noise == "gaussian" else noise - 0.5


def diffq(case: Case) -> dict[str, Tensor]:
    options = dict(case.config["init_kwargs"])
    model = Network(case.weights, options.pop("tied", False))
    config, choice = quantizer_options(options)
    quantizer = RecordedNoise(model, config, choice)
    named = {f"{each.path}_diffq": each for each in quantizer.quantized}
    # The recorded weights hold the logits as they start.
    for name, chosen in named.items():
        torch.testing.assert_close(chosen.learned.data, case.weights[name])
        chosen.learned.data.copy_(case.input(f"logit.{name}"))
    noises = [case.input(f"noise.{i}") for i in range(len(named))]
    outputs = {f"bits.{name}": quantizer.bits(each) for name, each in named.items()}
    for name in named:
        outputs[f"noise_scale.{name}"] = 1 / (2 ** outputs[f"bits.{name}"] - 1)
    size = outputs["model_size_mb"] = quantizer.model_size()
    learned = [each.learned for each in named.values()]
    for i, gradient in enumerate(torch.autograd.grad(size, learned)):
        outputs[f"model_size_grad.{i}"] = gradient
    outputs["true_model_size_mb"] = torch.tensor(quantizer.true_model_size())
    quantizer.recorded = iter(noises)
    y = outputs["y_train"] = model.train()(case.input("x"))
    loss = outputs["loss"] = y.square().mean() + 0.5 * quantizer.model_size()
    loss.backward()
    for name, parameter in model.named_parameters():
        outputs[f"loss_grad.{name}"] = parameter.grad
    with torch.no_grad():
        outputs["y_eval"] = model.eval()(case.io["x"])
    return outputs | states(quantizer, case, "")


def baselines(case: Case) -> dict[str, Tensor]:
    outputs: dict[str, Tensor] = {}
    for tag, options in case.config.items():
        model = Network(case.weights, False)
        choice = Choice(min_size_mb=options["min_size"], float16=options["float16"])
        if "qat" in options:
            quantizer: Quantizer = UniformQuantizer(model, options["bits"], options["qat"], choice)
        else:
            quantizer = LSQ(model, options["bits"], choice)
            for each in quantizer.quantized:
                outputs[f"{tag}.scale_init.{each.path}_lsq"] = each.learned.detach().clone()
                each.learned.data.mul_(options["scale_multiplier"])
        y = outputs[f"{tag}.y_train"] = model.train()(case.input("x"))
        y.square().mean().backward()
        for name, parameter in model.named_parameters():
            if case.recorded(f"{tag}.grad.{name}"):
                outputs[f"{tag}.grad.{name}"] = parameter.grad
        with torch.no_grad():
            outputs[f"{tag}.y_eval"] = model.eval()(case.io["x"])
        outputs[f"{tag}.size_mb"] = torch.tensor(quantizer.true_model_size())
        outputs |= states(quantizer, case, f"{tag}.")
    return outputs


def states(quantizer: Quantizer, case: Case, prefix: str) -> dict[str, Tensor]:
    """The stored forms that the case records, and the weights of the quantised model."""
    outputs: dict[str, Tensor] = {}
    state = unpacked_state(quantizer)
    flatten(outputs, f"{prefix}unpacked", state)
    for name, layout in {"packed": PLANES, "torchpack": SHORT_PLANES}.items():
        if any(key.startswith(f"{prefix}{name}.") for key in case.io):
            packed = [quantizer.pack(entry, layout) for entry in state["quantized"]]
            flatten(outputs, f"{prefix}{name}", {**state, "quantized": packed})
    stored = {each.path: quantizer.stored_weight(each) for each in quantizer.quantized}
    for name, parameter in quantizer.model.named_parameters():
        if case.recorded(f"{prefix}dequantized.{name}"):
            outputs[f"{prefix}dequantized.{name}"] = stored.get(name, parameter)
    if quantizer.choice.float16:
        for each, half in zip(quantizer.others, state["float16"], strict=True):
            outputs[f"{prefix}dequantized.{each.path}"] = half
    return outputs


def flatten(outputs: dict[str, Tensor], name: str, value: Any) -> None:
    """Tensors and numbers of nested containers, by their places."""
    if isinstance(value, dict):
        value = value.items()
    elif isinstance(value, list | tuple):
        value = enumerate(value)
    elif value is not None:
        outputs[name] = torch.as_tensor(
            value, dtype=None if torch.is_tensor(value) else torch.double
        )
        return
    for key, part in value or ():
        flatten(outputs, f"{name}.{key}", part)


def bitpack(case: Case) -> dict[str, Tensor]:
    outputs = {}
    for match in case.names(r"(\w+)\.values"):
        tag, values = match[1], case.input(match[0])
        width = re.fullmatch(r"b(\d+)", tag)
        bits = int(width[1]) if width else None
        outputs[f"{tag}.packed"] = pack_planes(values, bits)
        outputs[f"{tag}.torch_packed"] = pack_short_planes(values, bits)
        assert torch.equal(PLANES.unpack(outputs[f"{tag}.packed"], values.numel()), values)
        short = SHORT_PLANES.unpack(outputs[f"{tag}.torch_packed"], values.numel())
        assert torch.equal(short, values)
    outputs["zeros.packed_auto"] = pack_planes(torch.zeros(1, dtype=torch.int16))
    return outputs


ADAPTERS: dict[str, Adapter] = {
    "diffq": diffq,
    "diffq_baselines": baselines,
    "diffq_bitpack": bitpack,
}
