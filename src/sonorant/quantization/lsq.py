"""Learned step size quantisation (LSQ) of weights.

Source: arXiv 1902.08153, sections 2.1 and 2.2, with the start of DiffQ's comparison.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sonorant.errors import ConfigError
from sonorant.quantization.bit_planes import Layout
from sonorant.quantization.levels import check_bits, check_finite
from sonorant.quantization.packed import Packed, packed
from sonorant.quantization.quantizer import FLOAT_BITS, Choice, Quantizer, Slot


class LSQ(Quantizer):
    """Fixed bits and one learned step per chosen parameter. Meant to refine a trained model.

    bits: 2 to 15.
    Raises: ConfigError for other bits.
    """

    suffix = "_lsq"

    def __init__(self, model: nn.Module, bits: int = 8, choice: Choice | None = None) -> None:
        check_bits(bits)
        super().__init__(model, choice or Choice())
        self.bits = bits
        self.low, self.high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        for chosen in self.quantized:
            mean = chosen.parameter.detach().float().abs().mean()
            mean = torch.where(mean > 0, mean, 1.0)  # zeros are zeros with any step
            # Section 2.1, with the square root of 2^(bits - 1) in place of the largest index.
            self.learn_beside(chosen, 2 * mean / math.sqrt(2 ** (bits - 1)))

    def training_weight(self, chosen: Slot) -> Tensor:
        parameter: Tensor = chosen.parameter
        step = _step(chosen)
        # Section 2.2: the step's gradient is scaled to the size of the weights'.
        scale = 1 / math.sqrt(parameter.numel() * self.high)
        step = (step - step * scale).detach() + step * scale
        index = torch.clamp(parameter / step, self.low, self.high)
        return (index + (index.round() - index).detach()) * step

    def entry(self, chosen: Slot) -> tuple[Any, ...]:
        """(index of each value, int16 in the parameter's shape, step [])."""
        step = _step(chosen).detach()
        check_finite(float(step), f"{chosen.path}{self.suffix}")
        check_finite(float(chosen.parameter.detach().float().sum()), chosen.path)
        index = torch.clamp(chosen.parameter.detach() / step, self.low, self.high)
        return index.round().to(torch.int16), step

    def packed(self, chosen: Slot) -> Packed:
        index, step = self.entry(chosen)
        return packed(index.shape, index - self.low, self.bits, step=float(step))

    def restored(self, entry: tuple[Any, ...], chosen: Slot) -> Tensor:
        index, step = entry
        return torch.as_tensor(index * step)

    def pack(self, entry: tuple[Any, ...], layout: Layout) -> tuple[Any, ...]:
        index, step = entry
        return layout.pack(index - self.low, self.bits), step

    def unpack(self, packed: tuple[Any, ...], chosen: Slot, layout: Layout) -> tuple[Any, ...]:
        planes, step = packed
        return layout.unpack(planes, chosen.parameter.numel()) + self.low, step

    def tensor_bits(self, chosen: Slot, exact: bool) -> int:
        return self.bits * int(chosen.parameter.numel()) + FLOAT_BITS


def _step(chosen: Slot) -> Tensor:
    if chosen.learned is None:
        raise ConfigError(f"{chosen.path} has no learned step")
    return chosen.learned
