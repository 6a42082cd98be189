"""Published checkpoint layouts of the codecs, in and out.

Original EnCodec (the `.th` files of the encodec package): a plain state dict with keys such as
`encoder.model.3.conv.conv.weight_g`, `decoder.model.3.convtr.convtr.weight_v`,
`encoder.model.0.conv.norm.weight` and `quantizer.vq.layers.0._codebook.embed`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sonorant.codec.encodec import (
    Encodec,
    EncodecConfig,
    EncodecCore,
)
from sonorant.codec.encodec_segments import SegmentedEncodec
from sonorant.errors import CheckpointError

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
    unfolded = type(model)(model.config)
    own = model.state_dict()
    result = {}
    for ours, theirs in _names(unfolded).items():
        if ours in own:
            result[theirs] = own[ours]
            continue
        weight = own[re.sub(r"parametrizations\.weight\.original[01]$", "weight", ours)]
        if theirs.endswith("weight_v"):
            result[theirs] = weight
        else:
            result[theirs] = torch.linalg.vector_norm(
                weight, dim=tuple(range(1, weight.dim())), keepdim=True
            )
    return {name: tensor.detach().clone() for name, tensor in result.items()}


def build(config: EncodecConfig) -> EncodecCore:
    """The model that a config describes."""
    if config.segment_seconds is None and not config.normalize:
        return Encodec(config)
    return SegmentedEncodec(config)
