"""Quantised tensors in safetensors files, with their names, shapes, buffers and shared weights.

Of a packed tensor NAME a file holds `NAME.levels`, the planes of its levels (`pack_short_planes`),
first of the groups with the fewest bits, each kept in order, and, where groups differ,
`NAME.bits`, the planes of their bits minus one. Everything else about it stands in the file's
metadata, under `sonorant_packing` (`Description` by name). All other tensors are stored as they
are, and a tensor that several names share once.

Unlike the published format this needs no model to be read, loses neither buffers nor groups of 15
bits, and takes groups of any size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import torch
from torch import Tensor

from sonorant.errors import CheckpointError, FormatError
from sonorant.hub.checkpoint import PACKING_KEY
from sonorant.hub.tensors import read_metadata, read_tensors
from sonorant.quantization.bit_planes import SHORT_BITS, pack_short_planes, unpack_short_planes
from sonorant.quantization.levels import MOST_BITS, Range, by_width, from_levels

VERSION = 1
WIDTH_BITS = 4
"""Of a group's bits minus one, at most 14."""
Count = Annotated[int, msgspec.Meta(ge=1, le=2**48)]


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A packed tensor as the metadata describes it.

    shape: its own. group_size: values, in order, that have their bits in common.
    bits: of all groups; None where they differ. limits: the values of the lowest and the highest
    level. step: in place of `limits`, the distance of levels; then half of them are negative.
    """

    shape: tuple[Count, ...]
    group_size: Count
    bits: Annotated[int, msgspec.Meta(ge=1, le=MOST_BITS)] | None = None
    limits: Range | None = None
    step: float | None = None

    def __post_init__(self) -> None:
        if (self.limits is None) == (self.step is None):
            raise ValueError("a packed tensor needs one of limits and step")

    @property
    def groups(self) -> int:
        """How many there are; the last may be smaller."""
        return -(-math.prod(self.shape) // self.group_size)


class _Packing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`tied`: further names of tensors, and the name that each is stored under."""

    version: int
    tensors: dict[str, Description]
    tied: dict[str, str] = {}


@dataclass(frozen=True)
class Packed:
    """A quantised tensor, not yet in planes.

    levels: whole numbers from 0, [values]. bits: uint8 [groups].
    """

    description: Description
    levels: Tensor
    bits: Tensor

    def values(self) -> Tensor:
        """What it stands for, float32 in its own shape."""
        shape, step = self.description.shape, self.description.step
        if step is not None:
            middle = 2 ** (int(self.bits[0]) - 1)
            return ((self.levels.to(torch.int16) - middle) * step).view(shape)
        groups, count = self._groups(), math.prod(shape)
        values = from_levels(groups, self.bits.unsqueeze(1), self.description.limits or (0, 0))
        return values.flatten()[:count].view(shape)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """As a file holds it."""
        groups = self._groups()
        planes = [
            pack_short_planes(groups[places], width).flatten()
            for width, places in by_width(self.bits).items()
        ]
        stored = {f"{name}.levels": torch.cat(planes)}
        if self.description.bits is None:
            stored[f"{name}.bits"] = pack_short_planes(self.bits - 1, WIDTH_BITS).flatten()
        return stored

    def _groups(self) -> Tensor:
        """Levels [groups, group size], zeros after the last."""
        size = self.description.group_size
        missing = self.description.groups * size - self.levels.numel()
        return torch.nn.functional.pad(self.levels.flatten(), (0, missing)).view(-1, size)


def packed(
    shape: torch.Size,
    levels: Tensor,
    bits: Tensor | int,
    group_size: int | None = None,
    *,
    limits: Range | None = None,
    step: float | None = None,
) -> Packed:
    """A quantised tensor of levels [values in any shape] and bits, of all or of each group."""
    size = min(group_size or levels.numel(), levels.numel())
    widths = torch.as_tensor(bits, dtype=torch.uint8).flatten().cpu()
    one = int(widths[0]) if bool((widths == widths[0]).all()) else None
    description = Description(tuple(shape), size, one, limits, step)
    if widths.numel() == 1:
        widths = widths.expand(description.groups)
    return Packed(description, levels.flatten().cpu(), widths)


class Stored(NamedTuple):
    """What a safetensors file is written of."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def stored(tensors: Mapping[str, Tensor], packed_by_name: Mapping[str, Packed]) -> Stored:
    """What to write for a model's `tensors`, some of them packed."""
    names: dict[tuple[object, ...], str] = {}
    tied: dict[str, str] = {}
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        first = names.setdefault(place, name) if tensor.numel() else name
        if first != name:
            tied[name] = first
        elif name in packed_by_name:
            result |= packed_by_name[name].tensors(name)
        else:
            result[name] = tensor
    described = {name: each.description for name, each in packed_by_name.items()}
    packing = _Packing(VERSION, described, tied)
    return Stored(result, {PACKING_KEY: msgspec.json.encode(packing).decode()})


def read_packed(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a packed file by name, the packed ones in float32.

    Raises: CheckpointError for a file that is damaged, or of a later version.
    """
    try:
        packing = msgspec.json.decode(read_metadata(path)[PACKING_KEY], type=_Packing)
    except (KeyError, msgspec.MsgspecError) as error:
        raise CheckpointError(f"{path} does not say how it is packed: {error}") from error
    if packing.version != VERSION:
        raise CheckpointError(
            f"{path} is packed in version {packing.version}; this Sonorant reads {VERSION}, "
            "install the version that wrote it or a newer one"
        )
    tensors = read_tensors(path)
    try:
        for name, description in packing.tensors.items():
            levels, widths = tensors.pop(f"{name}.levels"), tensors.pop(f"{name}.bits", None)
            tensors[name] = _unpack(description, levels, widths).values()
        for name, first in packing.tied.items():
            tensors[name] = tensors[first]
    except KeyError as error:
        raise CheckpointError(f"{path} lacks the tensor {error}, which it describes") from error
    except FormatError as error:
        raise CheckpointError(f"{path}: the packed tensor {name} is damaged: {error}") from error
    return tensors


def _unpack(description: Description, planes: Tensor, width_planes: Tensor | None) -> Packed:
    """Raises: FormatError if the planes are not those of the described tensor."""
    groups, size = description.groups, description.group_size
    if planes.dtype != torch.int16 or planes.dim() != 1:
        raise FormatError("its planes are no row of 16-bit words")
    if planes.numel() * SHORT_BITS < groups * size:  # before anything of this size is made
        raise FormatError(f"{planes.numel()} words cannot be {groups} groups of {size} values")
    widths = torch.tensor([description.bits or 0], dtype=torch.uint8).expand(groups)
    if description.bits is None:
        if width_planes is None or width_planes.numel() % WIDTH_BITS:
            raise FormatError("the bits of its groups are missing or cut short")
        widths = unpack_short_planes(width_planes.view(WIDTH_BITS, -1), groups).to(torch.uint8) + 1
    if description.step is not None and description.bits is None:
        raise FormatError("levels with a step have the same bits in all groups")
    levels = torch.empty(groups, size, dtype=torch.int16)
    start = 0
    for width, places in by_width(widths).items():
        count = places.numel() * size
        words = width * -(-count // SHORT_BITS)
        part = planes[start : start + words]
        if part.numel() != words:
            raise FormatError("its planes are cut short")
        levels[places] = unpack_short_planes(part.view(width, -1), count).view(-1, size)
        start += words
    if start != planes.numel():
        raise FormatError("it has more planes than its bits take")
    return Packed(description, levels.flatten()[: math.prod(description.shape)], widths)
