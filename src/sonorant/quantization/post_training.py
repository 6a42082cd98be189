"""Fewer bits per weight for a model that is trained already.

Every large tensor gets evenly spaced levels between its extremes (DiffQ, arXiv 2104.09987, section
3.1): with the same bits for all, or, for a given size, more where a bit takes away more error.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save
from torch import Tensor

from sonorant.errors import CheckpointError, ConfigError
from sonorant.hub.checkpoint import CONFIG_KEY, WEIGHTS_FILE, SavedConfig, write_checkpoint
from sonorant.model import Model
from sonorant.quantization.levels import LEAST_BITS, MOST_BITS, check_bits, to_levels
from sonorant.quantization.packed import Packed, Stored, packed, stored
from sonorant.quantization.quantizer import Choice

SUFFIX = ".safetensors"
BYTES_PER_MB = 1_000_000


@dataclass(frozen=True)
class Quantized:
    """What quantising did. `bits`: of each quantised tensor. `bytes`: of the weights' file."""

    bits: dict[str, int]
    bytes: int
    values: int

    @property
    def bits_per_value(self) -> float:
        """Of all that is stored, the other tensors and the file's head included."""
        return 8 * self.bytes / self.values


def quantize(
    model: Model,
    target: str | Path,
    *,
    bits: int | None = None,
    size_mb: float | None = None,
    choice: Choice | None = None,
) -> Quantized:
    """Store a model with few bits per weight, in the folder `target` or the one file that it names.

    `sonorant.load` reads both. Other tensors stay exact, in fp16 where that loses nothing. A
    quantised model is another model than the one it was made of, so it has no known name.
    bits: of every quantised value, 2 to 15. size_mb: of the weights' file, in MB of 10^6 bytes, in
        place of `bits`. choice: which tensors are quantised; buffers, such as codebooks, count.
    Raises: ConfigError for other bits or a size that cannot be reached; CheckpointError for weights
    that are not finite, or if the target cannot be written.
    """
    if (bits is None) == (size_mb is None):
        raise ConfigError("give either the bits of a weight or the size of the file")
    if size_mb is not None and not size_mb > 0:
        raise ConfigError(f"the size of the file must be more than 0 MB, not {size_mb}")
    tensors = model.saved_tensors()
    chosen = chosen_tensors(tensors, choice or Choice())
    saved = msgspec.structs.replace(model.saved_config(), name=None)
    config = msgspec.json.encode(saved).decode()
    if bits is not None:
        check_bits(bits)
        widths = dict.fromkeys(chosen, bits)
        made = _stored(tensors, chosen, widths, config)
    else:
        widths, made = _fitted(tensors, chosen, config, size_mb or 0.0)
    size = _write(Path(target), saved, made)
    return Quantized(widths, size, sum(tensor.numel() for tensor in tensors.values()))


def chosen_tensors(tensors: Mapping[str, Tensor], choice: Choice) -> dict[str, Tensor]:
    """The tensors to quantise, in float32 on the CPU.

    Raises: ConfigError if there is none; CheckpointError for values that are not finite.
    """
    chosen = {
        name: tensor.detach().float().cpu()
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and choice.takes(name, tensor)
    }
    if not chosen:
        raise ConfigError(
            f"no tensor of this model is larger than {choice.min_size_mb} MB and not excluded, so "
            "there is nothing to quantise"
        )
    return chosen


def allocate(tensors: Mapping[str, Tensor], most_bits: float) -> dict[str, int]:
    """Bits of each tensor that lose least, by the sum of expected relative squared errors.

    most_bits: for all values together. Each further bit goes where it takes away most error for
    its size; since every bit takes away less than the one before, nothing else is better.
    Raises: ConfigError if 2 bits per value are more already.
    """
    widths = dict.fromkeys(tensors, LEAST_BITS)
    left = most_bits - LEAST_BITS * sum(tensor.numel() for tensor in tensors.values())
    if left < 0:
        raise ConfigError(f"{LEAST_BITS} bits per value take more already; choose a larger size")
    spread = {name: _spread(tensor) for name, tensor in tensors.items()}

    def gain(name: str) -> tuple[float, str]:
        """Of one more bit, per value; a heap gives the least first, so negative."""
        now, then = (1 / (2**width - 1) ** 2 for width in (widths[name], widths[name] + 1))
        return spread[name] * (then - now) / tensors[name].numel(), name

    queue = [gain(name) for name in tensors]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        if tensors[name].numel() > left or widths[name] == MOST_BITS:
            continue
        left -= tensors[name].numel()
        widths[name] += 1
        heapq.heappush(queue, gain(name))
    return widths


def _spread(tensor: Tensor) -> float:
    """Squared range beside the mean square: the rounding error of 1 bit, but for a constant."""
    mean_square = tensor.square().mean().clamp(min=torch.finfo(torch.float32).tiny)
    return float((tensor.max() - tensor.min()).square() / mean_square)


def _fitted(
    tensors: Mapping[str, Tensor], chosen: Mapping[str, Tensor], config: str, size_mb: float
) -> tuple[dict[str, int], Stored]:
    """As many bits as a file of the given size has place for."""
    most = room = int(size_mb * BYTES_PER_MB)
    while True:
        try:
            widths = allocate(chosen, 8 * room)
        except ConfigError as error:
            raise ConfigError(f"{size_mb} MB cannot hold this model: {error}") from error
        made = _stored(tensors, chosen, widths, config)
        size = len(save(made.tensors, made.metadata))
        if size <= most:
            return widths, made
        room -= size - most  # what is not levels: other tensors, the head


def _stored(
    tensors: Mapping[str, Tensor],
    chosen: Mapping[str, Tensor],
    widths: Mapping[str, int],
    config: str,
) -> Stored:
    result: dict[str, Packed] = {}
    for name, tensor in chosen.items():
        levels, limits = to_levels(tensor, widths[name], name)
        result[name] = packed(tensor.shape, levels, widths[name], limits=limits)
    plain, packing = stored(tensors, result)
    exact = {name: _smallest(tensor) for name, tensor in plain.items()}
    return Stored(exact, {"format": "pt", **packing, CONFIG_KEY: config})


def _smallest(tensor: Tensor) -> Tensor:
    """The same values, in fp16 where they are exact in it."""
    if tensor.dtype == torch.float32 and torch.equal(tensor.half().float(), tensor):
        return tensor.half().contiguous()
    return tensor.contiguous()


def _write(target: Path, config: SavedConfig, made: Stored) -> int:
    """Write a folder or one file; returns the bytes of the weights' file."""
    if target.suffix != SUFFIX:
        write_checkpoint(target, config, made.tensors, made.metadata)
        return (target / WEIGHTS_FILE).stat().st_size
    content = save(made.tensors, made.metadata)
    temporary = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(target)
    except OSError as error:
        raise CheckpointError(f"cannot write {target}: {error}") from error
    return len(content)
