"""The original checkpoint layout of EnCodec, and what all of its published layouts share.

Original (the `.th` files of the encodec package): a plain state dict with keys such as
`encoder.model.3.conv.conv.weight_g`, `decoder.model.3.convtr.convtr.weight_v`,
`encoder.model.0.conv.norm.weight` and `quantizer.vq.layers.0._codebook.embed`. The layouts of
transformers and of AudioCraft stand in `huggingface_checkpoints` and `audiocraft_checkpoints`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sonorant.codec.encodec import ENCODEC_24KHZ, ENCODEC_48KHZ, Encodec, EncodecConfig, EncodecCore
from sonorant.codec.encodec_segments import SegmentedEncodec
from sonorant.errors import CheckpointError
from sonorant.hub.keys import misfits, summary
from sonorant.hub.table import ModelEntry
from sonorant.hub.tensors import read_tensors
from sonorant.model import Model, fold_weight_norm, refusing_config

PUBLISHED = {"encodec_24khz": ENCODEC_24KHZ, "encodec_48khz": ENCODEC_48KHZ}

CODEBOOK_NAMES = {
    "embed": "embed",
    "embed_sum": "embed_avg",
    "usage": "cluster_size",
    "initialized": "inited",
}
# The two tensors of a weight with weight norm, as torch names them now and as files do.
NORM_NAMES = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}

Naming = Callable[[str, set[str]], str]
"""A layout's name of one of our tensors, given the paths of our transposed convolutions."""


def original_name(name: str, transposed: set[str]) -> str:
    """The original layout's name of one of our tensors.

    `transposed` holds the paths of our transposed convolutions, which that layout names otherwise.
    """
    if match := re.fullmatch(r"quantizer\.layers\.(\d+)\.(\w+)", name):
        return f"quantizer.vq.layers.{match[1]}._codebook.{CODEBOOK_NAMES[match[2]]}"
    match = re.fullmatch(r"(?P<layer>.+?)\.(?P<kind>conv|norm|lstm)\.(?P<tensor>.+)", name)
    if match is None:
        raise CheckpointError(f"the original EnCodec layout has no place for {name!r}")
    layer = match["layer"].replace("block.layers.", "block.").replace(".layers.", ".model.", 1)
    tensor = NORM_NAMES.get(match["tensor"], match["tensor"])
    if match["kind"] == "lstm":
        return f"{layer}.lstm.{tensor}"
    outer = "convtr" if match["layer"] in transposed else "conv"
    inner = outer if match["kind"] == "conv" else "norm"
    return f"{layer}.{outer}.{inner}.{tensor}"


def from_published(
    model: EncodecCore, tensors: Mapping[str, Tensor], naming: Naming
) -> dict[str, Tensor]:
    """Our state dict from one in a published layout.

    Weight norm may be named as torch does now or did before, or be folded.
    Raises: CheckpointError naming what is missing, left over or of another shape.
    """
    renamed = {}
    for name, tensor in tensors.items():
        for now, before in NORM_NAMES.items():
            name = name.replace(f".{now}", f".{before}")
        renamed[name] = tensor
    expected = model.state_dict()
    if not any(name.endswith("weight_g") for name in renamed):
        skeleton = _skeleton(model.config)
        fold_weight_norm(skeleton)
        expected = skeleton.state_dict()
    names = _names(expected, model, naming)
    missing = sorted(set(names.values()) - set(renamed))
    unexpected = sorted(set(renamed) - set(names.values()))
    if missing or unexpected:
        raise CheckpointError(
            f"not an EnCodec checkpoint of this layout and size: {len(missing)} tensors missing "
            f"(first: {missing[:2]}), {len(unexpected)} unexpected (first: {unexpected[:2]})"
        )
    wrong = misfits({names[ours]: tensor for ours, tensor in expected.items()}, renamed)
    if wrong:
        raise CheckpointError(f"not an EnCodec checkpoint of this size: {summary(wrong)}")
    return {ours: renamed[theirs] for ours, theirs in names.items()}


def to_published(model: EncodecCore, naming: Naming) -> dict[str, Tensor]:
    """A state dict in a published layout; folded weight norm is split into g and v again."""
    own = model.state_dict()
    result = {}
    for ours, theirs in _names(_skeleton(model.config).state_dict(), model, naming).items():
        if ours in own:
            result[theirs] = own[ours].detach().clone()
            continue
        weight = own[re.sub(r"parametrizations\.weight\.original[01]$", "weight", ours)].detach()
        other_dims = tuple(range(1, weight.dim()))
        norm = torch.linalg.vector_norm(weight, dim=other_dims, keepdim=True)
        result[theirs] = weight.clone() if theirs.endswith("weight_v") else norm
    return result


def _names(tensors: Mapping[str, Tensor], model: EncodecCore, naming: Naming) -> dict[str, str]:
    """Ours to the layout's, for these tensors of the model."""
    transposed = {
        path.removesuffix(".conv")
        for path, module in model.named_modules()
        if isinstance(module, torch.nn.ConvTranspose1d)
    }
    return {name: naming(name, transposed) for name in tensors}


def from_original(model: EncodecCore, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from one in the original layout; errors as those of `from_published`."""
    return from_published(model, tensors, original_name)


def to_original(model: EncodecCore) -> dict[str, Tensor]:
    """A state dict in the original layout; folded weight norm is split into g and v again."""
    return to_published(model, original_name)


def read_published(
    config: EncodecConfig, tensors: Mapping[str, Tensor], naming: Naming, source: Path
) -> tuple[str, EncodecConfig, dict[str, Tensor]]:
    """System, config and tensors by our names, as readers of published layouts return them.

    Raises: CheckpointError, or ConfigError if no model can have these sizes, with the name of the
    file they come from.
    """
    with refusing_config(str(source)):
        model = _skeleton(config)
    try:
        return model.system, config, from_published(model, tensors, naming)
    except CheckpointError as error:
        raise CheckpointError(f"{source} is {error}") from error


def load_original(
    files: Sequence[Path], entry: ModelEntry
) -> tuple[EncodecConfig, dict[str, Tensor]]:
    """Config and tensors, by our names, of a published EnCodec `.th` file.

    Raises: CheckpointError if the file is damaged or holds something else.
    """
    config, tensors = PUBLISHED[entry.name], read_tensors(files[0])
    return read_published(config, tensors, original_name, files[0])[1:]


def export_original(model: EncodecCore, folder: Path) -> None:
    """Write `MODEL.th`, a plain state dict that the encodec package loads."""
    write_state_dict(model, to_original(model), folder)


def write_state_dict(model: Model, tensors: dict[str, Tensor], folder: Path) -> None:
    """Write tensors as a torch pickle named after the model, whole or not at all."""
    write_pickle(tensors, folder / f"{(model.name or model.system).split('/')[-1]}.th")


def write_pickle(content: dict[Any, Any], target: Path) -> None:
    """Write a torch pickle, whole or not at all. Raises: CheckpointError if it cannot be."""
    temporary = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, temporary)
        temporary.replace(target)
    except (OSError, RuntimeError) as error:  # torch reports an unwritable file as either
        raise CheckpointError(f"cannot write {target}: {error}") from error


def build(config: EncodecConfig) -> EncodecCore:
    """The model that a config describes."""
    if config.segment_seconds is None and not config.normalize:
        return Encodec(config)
    return SegmentedEncodec(config)


def _skeleton(config: EncodecConfig) -> EncodecCore:
    """A model without weights, for its names and shapes."""
    with torch.device("meta"):
        return build(config)
