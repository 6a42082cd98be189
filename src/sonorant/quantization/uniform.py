"""Uniform quantisation with a fixed number of bits, after or during training.

Source: straight-through training of quantised weights as DiffQ compares with
(arXiv 2104.09987, section 3.1).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sonorant.quantization.bit_planes import Layout
from sonorant.quantization.levels import check_bits, from_levels, to_levels
from sonorant.quantization.packed import Packed, packed
from sonorant.quantization.quantizer import Choice, Quantizer, Slot

RANGE_BITS = 64
"""Two float32: the least and the largest value."""


class UniformQuantizer(Quantizer):
    """The same bits for every chosen parameter.

    bits: 2 to 15. trained: training also computes with the quantised weights, and gradients pass
    the rounding as if it were not there; else only evaluation does.
    Raises: ConfigError for other bits.
    """

    def __init__(
        self, model: nn.Module, bits: int = 8, trained: bool = False, choice: Choice | None = None
    ) -> None:
        check_bits(bits)
        super().__init__(model, choice or Choice())
        self.bits, self.trained = bits, trained

    def training_weight(self, chosen: Slot) -> Tensor:
        parameter: Tensor = chosen.parameter
        if not self.trained:
            return parameter
        return parameter + (self.stored_weight(chosen) - parameter).detach()

    def entry(self, chosen: Slot) -> tuple[Any, ...]:
        """(levels in the parameter's shape, (least value, largest value))."""
        return to_levels(chosen.parameter.detach().float(), self.bits, chosen.path)

    def packed(self, chosen: Slot) -> Packed:
        levels, limits = self.entry(chosen)
        return packed(levels.shape, levels, self.bits, limits=limits)

    def restored(self, entry: tuple[Any, ...], chosen: Slot) -> Tensor:
        levels, limits = entry
        return from_levels(levels, self.bits, limits)

    def pack(self, entry: tuple[Any, ...], layout: Layout) -> tuple[Any, ...]:
        levels, limits = entry
        return layout.pack(levels, self.bits), limits

    def unpack(self, packed: tuple[Any, ...], chosen: Slot, layout: Layout) -> tuple[Any, ...]:
        planes, limits = packed
        return layout.unpack(planes, chosen.parameter.numel()), limits

    def tensor_bits(self, chosen: Slot, exact: bool) -> int:
        return self.bits * int(chosen.parameter.numel()) + RANGE_BITS
