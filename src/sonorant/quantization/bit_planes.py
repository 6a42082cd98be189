"""Small whole numbers packed bit plane by bit plane, in the two layouts of published DiffQ files.

Source: the formats of the package diffq 0.2.4, found from what it writes. No compiled code: eight
values at a time are turned around as a matrix of bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sonorant.errors import FormatError, ShapeError

WORD_BITS = 64
WORDS_PER_LINE = 32
LINE = WORD_BITS * WORDS_PER_LINE
"""Values in one line of planes of 64-bit words."""
SHORT_BITS = 16
BLOCK_VALUES = 2**19  # worked on at a time: of the sizes tried, the fastest


def bits_needed(values: Tensor) -> int:
    """How many bits the largest of `values` (not negative) takes; 0 if all are 0."""
    return int(values.max()).bit_length() if values.numel() else 0


def pack_planes(values: Tensor, bits: int | None = None) -> Tensor:
    """Pack whole numbers into planes of 64-bit words.

    Shape: values, any, n in all -> int64 [ceil(n / 2048), bits, 32]. Bit j of word
    [line, plane, i] is bit `plane` of value `line * 2048 + j * 32 + i`; zeros fill the last line.
    bits: of each value; what the largest needs if None.
    Raises: ShapeError for values below 0 or of more than `bits` bits.
    """
    bits = _checked_bits(values, bits)
    lines = -(-values.numel() // LINE)
    flat = _padded(values, lines * LINE).view(lines, WORD_BITS, WORDS_PER_LINE)
    return _to_planes(flat, bits).view(torch.int64).squeeze(-1)


def unpack_planes(planes: Tensor, count: int) -> Tensor:
    """The `count` values that `pack_planes` packed, int16 [count].

    Raises: FormatError if `planes` does not hold as many.
    """
    if planes.dtype != torch.int64 or planes.dim() != 3 or planes.shape[2] != WORDS_PER_LINE:
        raise FormatError(f"planes of 64-bit words are int64 [lines, bits, 32], not {_say(planes)}")
    if planes.shape[0] != -(-count // LINE):
        raise FormatError(f"{planes.shape[0]} lines of {LINE} values cannot be {count} values")
    octets = planes.cpu().contiguous().unsqueeze(-1).view(torch.uint8)
    return _from_planes(octets).flatten()[:count]


def pack_short_planes(values: Tensor, bits: int | None = None) -> Tensor:
    """Pack whole numbers into planes of 16-bit words.

    Shape: values, any, n in all -> int16 [bits, ceil(n / 16)]. With G words in a plane, bit r of
    word [plane, g] is bit `plane` of value `r * G + g`.
    bits: of each value; what the largest needs if None.
    Raises: ShapeError for values below 0 or of more than `bits` bits.
    """
    bits = _checked_bits(values, bits)
    words = -(-values.numel() // SHORT_BITS)
    planes = torch.empty(bits, words, dtype=torch.int16)
    columns = _padded(values, words * SHORT_BITS).view(SHORT_BITS, words)
    for block in _short_blocks(words):
        octets = _to_planes(columns[None, :, block], bits)
        planes[:, block] = octets[0].view(torch.int16).squeeze(-1)
    return planes


def unpack_short_planes(planes: Tensor, count: int) -> Tensor:
    """The `count` values that `pack_short_planes` packed, int16 [count].

    Raises: FormatError if `planes` does not hold as many.
    """
    if planes.dtype != torch.int16 or planes.dim() != 2:
        raise FormatError(f"planes of 16-bit words are int16 [bits, words], not {_say(planes)}")
    if planes.shape[1] != -(-count // SHORT_BITS):
        raise FormatError(f"{planes.shape[1]} words of 16 bits cannot be {count} values")
    words = planes.shape[1]
    values = torch.empty(SHORT_BITS, words, dtype=torch.int16)
    for block in _short_blocks(words):
        octets = planes[:, block].cpu().contiguous().unsqueeze(-1).view(torch.uint8)
        values[:, block] = _from_planes(octets[None])[0]
    return values.flatten()[:count]


class Layout(NamedTuple):
    """One way of packing: `pack(values, bits)` and `unpack(planes, count)`."""

    pack: Callable[[Tensor, int | None], Tensor]
    unpack: Callable[[Tensor, int], Tensor]


PLANES = Layout(pack_planes, unpack_planes)
"""What diffq writes by default ("bitpack")."""
SHORT_PLANES = Layout(pack_short_planes, unpack_short_planes)
"""What diffq writes for TorchScript ("torch_pack")."""


def _to_planes(values: Tensor, bits: int) -> Tensor:
    """Planes, uint8 [lines, bits, words, bytes of a word], of values [lines, bit of word, words].

    Each byte of eight values is one 64-bit word, an 8 x 8 matrix of bits; turning that around
    leaves the eight bits of each plane together.
    """
    lines, word_bits, words = values.shape
    planes = torch.empty(lines, bits, words, word_bits // 8, dtype=torch.uint8)
    for block in _blocks(values):
        for low in range(0, bits, 8):
            part = (values[block] >> low if low else values[block]).to(torch.uint8)
            octets = part.transpose(1, 2).flatten().view(torch.int64)
            turned = _turn(octets).view(torch.uint8).view(-1, words, word_bits // 8, 8)
            high = min(low + 8, bits)
            planes[block, low:high] = turned[..., : high - low].permute(0, 3, 1, 2)
    return planes


def _from_planes(planes: Tensor) -> Tensor:
    """Values, int16 [lines, bit of word, words], of planes as `_to_planes` gives them."""
    lines, bits, words, octets = planes.shape
    if bits >= SHORT_BITS:
        raise FormatError(f"packed values have at most {SHORT_BITS - 1} bits, these {bits}")
    values = torch.zeros(lines, 8 * octets, words, dtype=torch.int16)
    for block in _blocks(values):
        for low in range(0, bits, 8):
            part = planes[block, low : low + 8]
            turned = part.new_zeros(part.shape[0], words, octets, 8)
            turned[..., : part.shape[1]] = part.permute(0, 2, 3, 1)
            turned = _turn(turned.flatten().view(torch.int64)).view(torch.uint8)
            flat = turned.view(-1, words, 8 * octets)
            values[block] |= flat.transpose(1, 2).to(torch.int16) << low
    return values


def _turn(octets: Tensor) -> Tensor:
    """Each 64-bit word as an 8 x 8 matrix of bits, transposed: bit 8 i + j goes to 8 j + i.

    Blocks of 1, 2 and 4 bits change places across the diagonal. The masks leave out what an
    arithmetic shift fills in from the sign.
    """
    for shift, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0xF0F0F0F0)):
        moved = (octets ^ (octets >> shift)) & mask
        octets = octets ^ moved ^ (moved << shift)
    return octets


def _blocks(values: Tensor) -> list[slice]:
    """Lines in blocks that stay in a processor's cache."""
    lines = max(1, BLOCK_VALUES // max(1, values.shape[1] * values.shape[2]))
    return [slice(start, start + lines) for start in range(0, values.shape[0], lines)]


def _short_blocks(words: int) -> list[slice]:
    """Words in blocks that stay in a processor's cache."""
    step = BLOCK_VALUES // SHORT_BITS
    return [slice(start, start + step) for start in range(0, words, step)]


def _padded(values: Tensor, count: int) -> Tensor:
    """Flat on the CPU, with zeros up to `count`; in a byte each where it is enough already."""
    flat = values.detach().flatten().cpu()
    if flat.dtype not in (torch.uint8, torch.int16):
        flat = flat.to(torch.int16)
    return torch.nn.functional.pad(flat, (0, count - flat.numel()))


def _checked_bits(values: Tensor, bits: int | None) -> int:
    if values.is_floating_point() or values.is_complex():
        raise ShapeError(f"only whole numbers can be packed, not {values.dtype}")
    needed = bits_needed(values)
    if values.numel() and int(values.min()) < 0:
        raise ShapeError("negative values cannot be packed into bit planes; shift them first")
    if bits is not None and needed > bits:
        raise ShapeError(f"a value needs {needed} bits and {bits} were asked for")
    return needed if bits is None else bits


def _say(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
