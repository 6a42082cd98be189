"""Published checkpoint layouts of the codecs, in and out.

Original EnCodec (the `.th` files of the encodec package): a plain state dict with keys such as
`encoder.model.3.conv.conv.weight_g`, `decoder.model.3.convtr.convtr.weight_v`,
`encoder.model.0.conv.norm.weight` and `quantizer.vq.layers.0._codebook.embed`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sonorant.codec.encodec import ENCODEC_24KHZ, ENCODEC_48KHZ, Encodec, EncodecConfig, EncodecCore
from sonorant.codec.encodec_segments import SegmentedEncodec
from sonorant.errors import CheckpointError
from sonorant.hub.table import ModelEntry
from sonorant.hub.tensors import read_tensors
from sonorant.model import Model, SkipInitialization

PUBLISHED = {"encodec_24khz": ENCODEC_24KHZ, "encodec_48khz": ENCODEC_48KHZ}

_CODEBOOK_NAMES = {
    "embed": "embed",
    "embed_sum": "embed_avg",
    "usage": "cluster_size",
    "initialized": "inited",
}
_NORM_NAMES = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}


def original_name(name: str, transposed: set[str]) -> str:
    """The original layout's name of one of our tensors.

    `transposed` holds the paths of our transposed convolutions, which that layout names otherwise.
    """
    if match := re.fullmatch(r"quantizer\.layers\.(\d+)\.(\w+)", name):
        return f"quantizer.vq.layers.{match[1]}._codebook.{_CODEBOOK_NAMES[match[2]]}"
    match = re.fullmatch(r"(?P<layer>.+?)\.(?P<kind>conv|norm|lstm)\.(?P<tensor>.+)", name)
    if match is None:
        raise CheckpointError(f"the original EnCodec layout has no place for {name!r}")
    layer = match["layer"].replace("block.layers.", "block.").replace(".layers.", ".model.", 1)
    tensor = _NORM_NAMES.get(match["tensor"], match["tensor"])
    if match["kind"] == "lstm":
        return f"{layer}.lstm.{tensor}"
    outer = "convtr" if match["layer"] in transposed else "conv"
    inner = outer if match["kind"] == "conv" else "norm"
    return f"{layer}.{outer}.{inner}.{tensor}"


def _names(model: EncodecCore) -> dict[str, str]:
    """Ours to the original's, for every tensor of a model whose weight norm is not folded."""
    transposed = {
        path.removesuffix(".conv")
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ConvTranspose1d)
    }
    return {name: original_name(name, transposed) for name in model.state_dict()}


def from_original(model: EncodecCore, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from one in the original layout.

    Raises: CheckpointError naming what is missing, left over or of another shape.
    """
    names = _names(model)
    missing = sorted(set(names.values()) - set(tensors))
    unexpected = sorted(set(tensors) - set(names.values()))
    if missing or unexpected:
        raise CheckpointError(
            f"not an original EnCodec checkpoint of this size: {len(missing)} tensors missing "
            f"(first: {missing[:2]}), {len(unexpected)} unexpected (first: {unexpected[:2]})"
        )
    return {ours: tensors[theirs] for ours, theirs in names.items()}


def to_original(model: EncodecCore) -> dict[str, Tensor]:
    """A state dict in the original layout; folded weight norm is split into g and v again."""
    own = model.state_dict()
    result = {}
    for ours, theirs in _names(_skeleton(model.config)).items():
        if ours in own:
            result[theirs] = own[ours].detach().clone()
            continue
        weight = own[re.sub(r"parametrizations\.weight\.original[01]$", "weight", ours)].detach()
        other_dims = tuple(range(1, weight.dim()))
        norm = torch.linalg.vector_norm(weight, dim=other_dims, keepdim=True)
        result[theirs] = weight.clone() if theirs.endswith("weight_v") else norm
    return result


def load_original(
    files: Sequence[Path], entry: ModelEntry
) -> tuple[EncodecConfig, dict[str, Tensor]]:
    """Config and tensors, by our names, of a published EnCodec `.th` file.

    Raises: CheckpointError if the file is damaged or holds something else.
    """
    config = PUBLISHED[entry.name]
    return config, from_original(_skeleton(config), read_tensors(files[0]))


def export_original(model: EncodecCore, folder: Path) -> None:
    """Write `MODEL.th`, a plain state dict that the encodec package loads."""
    write_state_dict(model, to_original(model), folder)


def write_state_dict(model: Model, tensors: dict[str, Tensor], folder: Path) -> None:
    """Write tensors as a torch pickle named after the model, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{(model.name or model.system).split('/')[-1]}.th"
    temporary = target.with_name(target.name + ".part")
    torch.save(tensors, temporary)
    temporary.replace(target)


def build(config: EncodecConfig) -> EncodecCore:
    """The model that a config describes."""
    if config.segment_seconds is None and not config.normalize:
        return Encodec(config)
    return SegmentedEncodec(config)


def _skeleton(config: EncodecConfig) -> EncodecCore:
    """A model with arbitrary weights, for its names and shapes."""
    with SkipInitialization():
        return build(config)
