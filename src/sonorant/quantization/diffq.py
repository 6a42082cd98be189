"""DiffQ: the number of bits of each group of weights, learned with the weights.

Rounding has no useful gradient, so training adds noise as large as the rounding error would be. The
size of the noise, and with it the bits, gets a gradient from the loss and from the model's size.

Source: arXiv 2104.09987, sections 3.2 to 3.4.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor, nn

from sonorant.errors import ConfigError, FormatError
from sonorant.quantization.bit_planes import Layout
from sonorant.quantization.levels import (
    LEAST_BITS,
    MOST_BITS,
    by_width,
    check_finite,
    from_levels,
    to_levels,
)
from sonorant.quantization.packed import Packed, packed
from sonorant.quantization.quantizer import Choice, Quantizer, Slot
from sonorant.quantization.uniform import RANGE_BITS

MOST_PACKED_BITS = 14
"""Published packed files leave out groups with more bits; what they held is lost."""
WIDTH_BITS = 8
"""Stored per tensor: how many bits the groups' bits take."""


class DiffQConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How bits are learned.

    group_size: consecutive weights that share their bits, fewer in the last group of a tensor that
        does not divide; 0 takes each tensor whole.
    min_bits, max_bits: whole numbers between which the bits are learned, from `init_bits`.
    extra_bits: added to the learned ones for what is stored, not for the noise.
    learned: whether the logits move the bits or the logarithm of the noise's size evenly.
    noise: normal with standard deviation 0.5, or uniform within half a step.
    Raises: ConfigError for bits out of order or outside 2 to 15.
    """

    group_size: int = 8
    min_bits: int = 2
    max_bits: int = 15
    init_bits: float = 8
    extra_bits: float = 0
    learned: Literal["bits", "noise"] = "bits"
    noise: Literal["gaussian", "uniform"] = "gaussian"

    def __post_init__(self) -> None:
        if not LEAST_BITS <= self.min_bits < self.init_bits < self.max_bits <= MOST_BITS:
            raise ConfigError(
                f"bits must be {LEAST_BITS} <= min_bits < init_bits < max_bits <= {MOST_BITS}, not "
                f"{self.min_bits}, {self.init_bits} and {self.max_bits}"
            )
        if self.group_size < 0:
            raise ConfigError(f"a group has 1 weight or more, or 0 for all, not {self.group_size}")


class DiffQ(Quantizer):
    """Learned bits per group of weights.

    Add `penalty * quantizer.model_size()` to the loss, and give the logits to an optimiser:
    `attach(optimizer, lr=1e-3, weight_decay=0)`; where the weights are trained by plain gradient
    descent, give them an Adam of their own (the paper's settings).
    """

    suffix = "_diffq"

    def __init__(
        self, model: nn.Module, config: DiffQConfig | None = None, choice: Choice | None = None
    ) -> None:
        super().__init__(model, choice or Choice())
        self.config = config or DiffQConfig()
        for chosen in self.quantized:
            groups = -(-chosen.parameter.numel() // self._group_size(chosen))
            self.learn_beside(chosen, torch.full((groups,), self._first_logit()))

    def _group_size(self, chosen: Slot) -> int:
        count = int(chosen.parameter.numel())
        return min(self.config.group_size or count, count)

    def _first_logit(self) -> float:
        config = self.config
        low, at, high = float(config.min_bits), float(config.init_bits), float(config.max_bits)
        if config.learned == "noise":
            low, at, high = (math.log(1 / (2**bits - 1)) for bits in (low, at, high))
        part = (at - low) / (high - low)
        return math.log(part / (1 - part))

    def noise_unit(self, chosen: Slot) -> Tensor:
        """Distance between two levels where the tensor's range is 1, [groups]."""
        part = torch.sigmoid(_logit(chosen))
        if self.config.learned == "bits":
            return 1 / (2 ** self._between(part) - 1)
        smallest = math.log(1 / (2**self.config.max_bits - 1))
        largest = math.log(1 / (2**self.config.min_bits - 1))
        return torch.exp(part * smallest + (1 - part) * largest)

    def bits(self, chosen: Slot) -> Tensor:
        """The learned bits, real numbers without `extra_bits`, [groups]."""
        if self.config.learned == "bits":
            return self._between(torch.sigmoid(_logit(chosen)))
        return torch.log2(1 + 1 / self.noise_unit(chosen))

    def _between(self, part: Tensor) -> Tensor:
        return self.config.max_bits * part + self.config.min_bits * (1 - part)

    @torch.no_grad()
    def stored_bits(self, chosen: Slot) -> Tensor:
        """The whole bits that are stored, float32 [groups]."""
        bits = self.bits(chosen) + self.config.extra_bits
        check_finite(float(bits.sum()), f"{chosen.path}{self.suffix}")
        return bits.round().clamp(1, MOST_BITS)

    def draw_noise(self, groups: Tensor) -> Tensor:
        """Fresh noise in units of a step, in the shape of `groups`."""
        if self.config.noise == "gaussian":
            return torch.randn_like(groups) / 2
        return torch.rand_like(groups) - 0.5

    def training_weight(self, chosen: Slot) -> Tensor:
        parameter: Tensor = chosen.parameter
        unit = self.noise_unit(chosen).unsqueeze(1)
        noise = self.draw_noise(parameter.new_empty(unit.shape[0], self._group_size(chosen)))
        moved = (parameter.max() - parameter.min()) * unit * noise
        return parameter + moved.flatten()[: parameter.numel()].view_as(parameter)

    def entry(self, chosen: Slot) -> tuple[Any, ...]:
        """(levels [groups, group size], (least, largest value), bits uint8 [groups]).

        The last group is filled up with any level.
        """
        bits = self.stored_bits(chosen)
        flat, size = chosen.parameter.detach().float().flatten(), self._group_size(chosen)
        if missing := bits.numel() * size - flat.numel():
            flat = torch.cat([flat, flat[:1].expand(missing)])  # leaves the range as it is
        levels, limits = to_levels(flat.view(-1, size), bits.unsqueeze(1), chosen.path)
        return levels, limits, bits.to(torch.uint8)

    def packed(self, chosen: Slot) -> Packed:
        levels, limits, bits = self.entry(chosen)
        parameter = chosen.parameter
        flat = levels.flatten()[: parameter.numel()]
        return packed(parameter.shape, flat, bits, self._group_size(chosen), limits=limits)

    def restored(self, entry: tuple[Any, ...], chosen: Slot) -> Tensor:
        levels, limits, bits = entry
        values = from_levels(levels, bits.unsqueeze(1), limits)
        return values.flatten()[: chosen.parameter.numel()].view_as(chosen.parameter)

    def pack(self, entry: tuple[Any, ...], layout: Layout) -> tuple[Any, ...]:
        """For 1 to 14 bits the levels of the groups with as many, or None; the range; the bits.

        As in published files, groups with 15 bits are left out.
        """
        levels, limits, bits = entry
        by_bits: list[Tensor | None] = [None] * MOST_PACKED_BITS
        for width, places in by_width(bits).items():
            if width <= MOST_PACKED_BITS:
                by_bits[width - 1] = layout.pack(levels[places], width)
        return by_bits, limits, layout.pack(bits.long() - self.config.min_bits, None)

    def unpack(self, packed: tuple[Any, ...], chosen: Slot, layout: Layout) -> tuple[Any, ...]:
        by_bits, limits, packed_bits = packed
        groups, size = _logit(chosen).numel(), self._group_size(chosen)
        bits = (layout.unpack(packed_bits, groups) + self.config.min_bits).to(torch.uint8)
        if int(bits.max()) > MOST_PACKED_BITS:
            raise FormatError(
                f"{chosen.path} has groups with more than {MOST_PACKED_BITS} bits, which the "
                "published format leaves out; the weights must be packed again"
            )
        levels = torch.empty(groups, size, dtype=torch.int16)
        for width, places in by_width(bits).items():
            planes = by_bits[width - 1] if 0 < width <= len(by_bits) else None
            if planes is None:
                raise FormatError(f"{chosen.path} has groups of {width} bits, but no levels of any")
            levels[places] = layout.unpack(planes, places.numel() * size).view(-1, size)
        return levels, limits, bits

    def tensor_bits(self, chosen: Slot, exact: bool) -> Tensor:
        bits = self.stored_bits(chosen) if exact else self.bits(chosen) + self.config.extra_bits
        size = self._group_size(chosen)
        missing = bits.numel() * size - chosen.parameter.numel()
        values = size * bits.sum() - missing * bits[-1] if missing else size * bits.sum()
        widest = round(float(bits.detach().max())) - self.config.min_bits
        width = math.ceil(math.log2(1 + widest)) if widest > 0 else 0
        return values + RANGE_BITS + WIDTH_BITS + width * bits.numel()


def _logit(chosen: Slot) -> Tensor:
    if chosen.learned is None:
        raise ConfigError(f"{chosen.path} has no learned bits")
    return chosen.learned
