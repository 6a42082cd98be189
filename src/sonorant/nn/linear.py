"""Linear layers with packed weights: the same products from a half or a quarter of the bytes.

Decoding step by step on CPU reads every weight for a handful of products, so its speed is that of
memory. `fp16` stores weights in half precision and computes in fp32: almost lossless. `int8` stores
one byte per weight with a scale per output, and rounds the inputs of each call to one byte as well,
with one scale for the whole call: faster, about 1 % off, and rows of a batch touch each other's
rounding. The operators are PyTorch's own (FBGEMM on x86, QNNPACK on ARM); whether this machine has
them is tried out before anything is packed.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from sonorant.errors import CheckpointError, ConfigError

PackMode = Literal["fp16", "int8"]

LARGEST_FP16 = 65504.0
LARGEST_INT8 = 127
PROBE_ROWS = 16


@dataclass(frozen=True)
class Packing:
    """One way to store weights: `pack(weight, bias)` once, `apply(x, packed)` at every call."""

    pack: Callable[[Tensor, Tensor | None], Any]
    apply: Callable[[Tensor, Any], Tensor]
    weight_bytes: int
    """Per weight."""


def _pack_fp16(weight: Tensor, bias: Tensor | None) -> Any:
    return torch.ops.quantized.linear_prepack_fp16(weight, bias)


def _apply_fp16(x: Tensor, packed: Any) -> Tensor:
    return torch.ops.quantized.linear_dynamic_fp16(x, packed)


def _pack_int8(weight: Tensor, bias: Tensor | None) -> Any:
    largest = weight.abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    zeros = torch.zeros(len(weight), dtype=torch.int64)
    with warnings.catch_warnings():
        # PyTorch announces the end of quantized tensors; the operator takes no other weight yet.
        warnings.filterwarnings("ignore", message=".*quantize_per_channel.*")
        rounded = torch.quantize_per_channel(
            weight, largest.double() / LARGEST_INT8, zeros, 0, torch.qint8
        )
    return torch.ops.quantized.linear_prepack(rounded, bias)


def _apply_int8(x: Tensor, packed: Any) -> Tensor:
    return torch.ops.quantized.linear_dynamic(x, packed, _sums_overflow())


PACKINGS: dict[PackMode, Packing] = {
    "fp16": Packing(_pack_fp16, _apply_fp16, 2),
    "int8": Packing(_pack_int8, _apply_int8, 1),
}


class PackedLinear(nn.Module):
    """A linear layer whose weights are packed; it decodes on CPU, and neither trains nor is saved.

    Shape: x fp32 [..., in_features] -> [..., out_features].
    Raises: ConfigError if this machine cannot run the mode, or the weights do not fit it;
    CheckpointError when its weights are asked for or set.
    """

    def __init__(self, linear: nn.Linear, mode: PackMode) -> None:
        super().__init__()
        _check(linear, mode)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.mode = mode
        self.bias = None if linear.bias is None else linear.bias.detach().clone()
        self._apply_packed = PACKINGS[mode].apply
        self._packed = PACKINGS[mode].pack(linear.weight.detach().contiguous(), self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self._apply_packed(x, self._packed)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, mode={self.mode}"

    def numel(self) -> int:
        """How many numbers it stores: weights and biases."""
        return self.in_features * self.out_features + self._bias_numel()

    @property
    def nbytes(self) -> int:
        """Bytes of these, without the few that the operators add, such as scales."""
        weights = self.in_features * self.out_features * PACKINGS[self.mode].weight_bytes
        return weights + 4 * self._bias_numel()

    def _bias_numel(self) -> int:
        return 0 if self.bias is None else self.bias.numel()

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> NoReturn:
        raise CheckpointError(
            f"{prefix.rstrip('.')} is packed to {self.mode}, which loses precision and is not "
            "saved; save the model before packing it, or load it again"
        )

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> NoReturn:
        raise CheckpointError(
            f"{prefix.rstrip('.')} is packed to {self.mode} and takes no weights; "
            "load them into a model before packing it"
        )


@dataclass(frozen=True)
class PackReport:
    """What packing cost: errors relative to fp32, as ratios of root mean squares, on random inputs.

    layers: by the path of each packed layer. total: of all their outputs together.
    """

    mode: PackMode
    layers: dict[str, float]
    total: float


def pack_linears(module: nn.Module, mode: str) -> PackReport:
    """Replace every plain linear layer below `module` by a packed one. Changes the module.

    Layers that other code looks into (subclasses of `nn.Linear`, weight norm) stay as they are.
    Raises: ConfigError for an unknown mode, one that this machine cannot run, weights that are not
    fp32 on CPU, or a module with nothing to pack; the module is then unchanged.
    """
    if mode not in PACKINGS:
        raise ConfigError(f"no mode {mode!r} to pack to; choose one of {', '.join(PACKINGS)}")
    places = [
        (path, owner, name, child)
        for path, owner in module.named_modules()
        for name, child in owner._modules.items()
        if type(child) is nn.Linear
    ]
    if not places:
        raise ConfigError(f"{type(module).__name__} has no linear layers to pack")
    packed: dict[nn.Module, PackedLinear] = {}  # a layer that is shared stays shared
    for _, _, _, linear in places:
        if linear not in packed:
            packed[linear] = PackedLinear(linear, mode)
    layers, errors, outputs = {}, 0.0, 0.0
    for path, owner, name, linear in places:
        setattr(owner, name, packed[linear])
        error, output = _squares(linear, packed[linear])
        layers[f"{path}.{name}".lstrip(".")] = (error / output) ** 0.5
        errors, outputs = errors + error, outputs + output
    return PackReport(mode, layers, (errors / outputs) ** 0.5)


@torch.no_grad()
def lay_out_by_input(module: nn.Module) -> None:
    """Store the weights of all plain linear layers below `module` column by column, on CPU.

    Values and shapes stay; products of two to sixteen rows then take two thirds of the time (the
    library's products with rows of weights are made for either one input or many).
    """
    for child in module.modules():
        if type(child) is not nn.Linear or child.weight.device.type != "cpu":
            continue
        if child.weight.is_contiguous():
            child.weight.data = child.weight.data.t().contiguous().t()


@torch.no_grad()
def _squares(linear: nn.Linear, packed: PackedLinear) -> tuple[float, float]:
    """Mean square of the error and of the output, on the same normal numbers every time."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(PROBE_ROWS, linear.in_features, generator=generator)
    exact = linear(x)
    error = (packed(x) - exact).square().mean()
    return float(error), max(float(exact.square().mean()), torch.finfo(torch.float32).tiny)


def _check(linear: nn.Linear, mode: PackMode) -> None:
    weight = linear.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ConfigError(
            f"only fp32 weights on the CPU are packed, not {weight.dtype} on {weight.device}; "
            "call .float().cpu() first, or leave the model as it is there"
        )
    if not float(weight.detach().abs().max()) <= LARGEST_FP16:
        raise ConfigError(
            "a linear layer has weights that are not finite or too large to pack; "
            "check its checkpoint, or run it in fp32"
        )
    if reason := _why_not(mode, torch.backends.quantized.engine):
        raise ConfigError(
            f"this machine cannot run {mode} linear layers ({reason}); "
            "choose another mode, or stay with fp32"
        )


@functools.cache
def _why_not(mode: PackMode, engine: str) -> str | None:
    """What goes wrong when a small layer is packed and applied; None if all is well."""
    weight = torch.linspace(-1, 1, 64).view(4, 16)
    x = torch.linspace(-1, 1, 32).view(2, 16)
    try:
        y = PACKINGS[mode].apply(x, PACKINGS[mode].pack(weight, None))
    except (RuntimeError, AttributeError) as error:
        return f"engine {engine}: {str(error).splitlines()[0]}"
    exact = x @ weight.T
    if not float((y - exact).norm() / exact.norm()) < 0.05:
        return f"engine {engine} computes wrong products"
    return None


@functools.cache
def _sums_overflow() -> bool:
    """Whether products of two 8-bit numbers overflow their sums, so that inputs need 7 bits.

    So it is on x86 processors without VNNI instructions, which add pairs of products in 16 bits.
    """
    columns = 64
    packed = _pack_int8(torch.ones(16, columns), None)
    y = torch.ops.quantized.linear_dynamic(torch.ones(1, columns), packed, False)
    return bool((y < 0.9 * columns).any())
