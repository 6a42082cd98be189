"""The published layout of EnCodec's entropy models, in and out.

The `.th` files of the encodec package hold a plain state dict with keys such as
`transformer.layers.0.self_attn.in_proj_weight`, `transformer.norm_in.weight`, `emb.0.weight` and
`linears.0.bias`; there is one table and one head per codebook, which we keep in one tensor each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sonorant.codec.checkpoints import write_state_dict
from sonorant.codec.entropy_coding import (
    ENTROPY_24KHZ,
    ENTROPY_48KHZ,
    EntropyConfig,
    EntropyModel,
)
from sonorant.errors import CheckpointError
from sonorant.hub.keys import KeyMap, misfits, summary
from sonorant.hub.table import ModelEntry
from sonorant.hub.tensors import read_tensors

PUBLISHED = {"encodec_lm_24khz": ENTROPY_24KHZ, "encodec_lm_48khz": ENTROPY_48KHZ}

_LAYER = "transformer.layers.{n}."
_KEYS = KeyMap(
    [
        (_LAYER + "self_attn.in_proj_{part}", _LAYER + "attention.in_proj.{part}"),
        (_LAYER + "self_attn.out_proj.{part}", _LAYER + "attention.out_proj.{part}"),
        (_LAYER + "linear1.{part}", _LAYER + "feed_forward.linear_in.{part}"),
        (_LAYER + "linear2.{part}", _LAYER + "feed_forward.linear_out.{part}"),
        (_LAYER + "norm1.{part}", _LAYER + "attention_norm.{part}"),
        (_LAYER + "norm2.{part}", _LAYER + "feed_forward_norm.{part}"),
        ("transformer.norm_in.{part}", "norm_in.{part}"),
    ]
)
# Ours, stacked over codebooks, and the published tensor of codebook {k}.
_STACKED = {
    "embedding.tables": "emb.{k}.weight",
    "heads.weight": "linears.{k}.weight",
    "heads.bias": "linears.{k}.bias",
}


def to_original(model: EntropyModel) -> dict[str, Tensor]:
    """A state dict in the published layout."""
    own = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    result = {}
    for ours, theirs in _STACKED.items():
        for codebook, tensor in enumerate(own.pop(ours)):
            result[theirs.format(k=codebook)] = tensor.clone()
    return result | {theirs: own[ours].clone() for ours, theirs in _KEYS.to_theirs(own).items()}


def from_original(config: EntropyConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from one in the published layout.

    Raises: CheckpointError naming what is missing, left over or of another shape.
    """
    with torch.device("meta"):
        expected = to_original(EntropyModel(config))
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    wrong = misfits(expected, tensors)
    if missing or unexpected or wrong:
        problems = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
        told = "; ".join(f"{word}: {summary(found)}" for word, found in problems.items() if found)
        raise CheckpointError(f"not a published entropy model of this size ({told})")
    rest = dict(tensors)
    result = {}
    for ours, theirs in _STACKED.items():
        names = [theirs.format(k=codebook) for codebook in range(config.codebooks)]
        result[ours] = torch.stack([rest.pop(name) for name in names])
    return result | {ours: rest[theirs] for theirs, ours in _KEYS.to_ours(rest).items()}


def load_original(
    files: Sequence[Path], entry: ModelEntry
) -> tuple[EntropyConfig, dict[str, Tensor]]:
    """Config and tensors, by our names, of a published `.th` file.

    Raises: CheckpointError if the file is damaged or holds something else.
    """
    config = PUBLISHED[entry.name]
    return config, from_original(config, read_tensors(files[0]))


def export_original(model: EntropyModel, folder: Path) -> None:
    """Write `MODEL.th`, a plain state dict that the encodec package loads."""
    write_state_dict(model, to_original(model), folder)
