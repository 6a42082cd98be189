"""Published layouts of Mimi's weights, in and out.

moshi: `tokenizer-e351c8d8-checkpoint125.safetensors` and its kin, in the repositories of Moshi,
Hibiki and the delayed-streams models, with the config in `mimi_config.json` beside it where it is
not the default one. Checkpoints of a training run have the same names; their weight norm is folded,
and older names are understood.

transformers: `model.safetensors` and `config.json`, as in `kyutai/mimi`. It splits the projection
of queries, keys and values, and pairs the channels that positions turn as halves of a head, where
moshi and we pair neighbours: rows of the projections of queries and keys stand in another order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from sonorant.codec.mimi import MIMI, Mimi, MimiConfig
from sonorant.codec.mimi_configs import from_moshi as config_from_moshi
from sonorant.codec.mimi_configs import from_transformers as config_from_transformers
from sonorant.codec.mimi_configs import to_moshi as config_to_moshi
from sonorant.codec.mimi_configs import to_transformers as config_to_transformers
from sonorant.errors import CheckpointError
from sonorant.hub.checkpoint import write_folder
from sonorant.hub.keys import KeyMap
from sonorant.hub.pickled_config import read_pickle_with_configs
from sonorant.hub.table import ModelEntry
from sonorant.hub.tensors import read_tensors
from sonorant.model import folded_state

MOSHI_CONFIG, MOSHI_WEIGHTS = "mimi_config.json", "mimi.safetensors"
TRANSFORMERS_CONFIG = "config.json"
SIDES = ("encoder", "decoder")

# Names inside one layer, in the templates of `KeyMap`: moshi's and ours, then transformers' and
# moshi's.
MOSHI_CONVS = {
    "block.{j}.conv.conv.{tensor}": "block.layers.{j}.conv.{tensor}",
    "shortcut.conv.conv.{tensor}": "shortcut.conv.{tensor}",
    "conv.conv.{tensor}": "conv.{tensor}",
}
MOSHI_ATTENTION = {
    "self_attn.in_proj_weight": "attention.in_proj.weight",
    "self_attn.out_proj.weight": "attention.out_proj.weight",
    "norm1.{tensor}": "attention_norm.{tensor}",
    "layer_scale_1.scale": "attention_scale.scale",
    "linear1.weight": "feed_forward.linear_in.weight",
    "linear2.weight": "feed_forward.linear_out.weight",
    "norm2.{tensor}": "feed_forward_norm.{tensor}",
    "layer_scale_2.scale": "feed_forward_scale.scale",
}
MOSHI_QUANTIZER = {
    "vq.layers.{i}._codebook.embedding_sum": "levels.layers.{i}.embed_sum",
    "vq.layers.{i}._codebook.cluster_usage": "levels.layers.{i}.usage",
    "vq.layers.{i}._codebook._initialized": "levels.layers.{i}.initialized",
    "{projection}.weight": "{projection}.weight",
}
TRANSFORMERS_CONVS = {
    "block.{j}.conv.{tensor}": "block.{j}.conv.conv.{tensor}",
    "shortcut.conv.{tensor}": "shortcut.conv.conv.{tensor}",
    "conv.{tensor}": "conv.conv.{tensor}",
}
TRANSFORMERS_ATTENTION = {
    "self_attn.in_proj.weight": "self_attn.in_proj_weight",  # once joined
    "self_attn.o_proj.weight": "self_attn.out_proj.weight",
    "input_layernorm.{tensor}": "norm1.{tensor}",
    "self_attn_layer_scale.scale": "layer_scale_1.scale",
    "mlp.fc1.weight": "linear1.weight",
    "mlp.fc2.weight": "linear2.weight",
    "post_attention_layernorm.{tensor}": "norm2.{tensor}",
    "mlp_layer_scale.scale": "layer_scale_2.scale",
}
TRANSFORMERS_QUANTIZER = {
    "layers.{i}.codebook.embed_sum": "vq.layers.{i}._codebook.embedding_sum",
    "layers.{i}.codebook.cluster_usage": "vq.layers.{i}._codebook.cluster_usage",
    "layers.{i}.codebook.initialized": "vq.layers.{i}._codebook._initialized",
    "{projection}.weight": "{projection}.weight",
}

OLD_NAMES = {
    "inited": "_initialized",
    "cluster_size": "cluster_usage",
    "embed_avg": "embedding_sum",
    "embed_sum": "embedding_sum",
    "in_projs.0.weight": "in_proj_weight",
    "in_proj.weight": "in_proj_weight",
    "out_projs.0.weight": "out_proj.weight",
}
TEACHER = "wavlm_"  # begins the names of what training checkpoints hold beside the model


def _under(theirs: str, ours: str, names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"{theirs}.{left}", f"{ours}.{right}") for left, right in names.items()]


def moshi_keys(config: MimiConfig) -> KeyMap:
    """Moshi's names and ours, of everything but the codewords, which moshi does not store."""
    pairs = [
        ("downsample.conv.conv.conv.weight", "downsample.conv.weight"),
        ("upsample.convtr.convtr.convtr.weight", "upsample.weight"),
    ]
    stage = 2 + config.seanet.residual_layers  # ELU, transposed convolution, residual blocks
    for number in range(len(config.seanet.ratios)):
        layer = 2 + number * stage
        names = {"convtr.convtr.{tensor}": "conv.{tensor}"}
        pairs += _under(f"decoder.model.{layer}", f"decoder.layers.{layer}", names)
    for side in SIDES:
        pairs += _under(side + ".model.{i}", side + ".layers.{i}", MOSHI_CONVS)
        theirs, ours = (
            side + "_transformer.transformer.layers.{i}",
            side + "_transformer.layers.{i}",
        )
        pairs += _under(theirs, ours, MOSHI_ATTENTION)
    pairs += _under("quantizer.rvq_first", "quantizer.semantic", MOSHI_QUANTIZER)
    pairs += _under("quantizer.rvq_rest", "quantizer.acoustic", MOSHI_QUANTIZER)
    return KeyMap(pairs)


def transformers_keys(config: MimiConfig) -> KeyMap:
    """Transformers' names and moshi's, with the projections of attention joined to one."""
    pairs = [
        ("downsample.conv.weight", "downsample.conv.conv.conv.weight"),
        ("upsample.conv.weight", "upsample.convtr.convtr.convtr.weight"),
    ]
    stage = 2 + config.seanet.residual_layers
    for number in range(len(config.seanet.ratios)):
        layer = 2 + number * stage
        names = {"conv.{tensor}": "convtr.convtr.{tensor}"}
        pairs += _under(f"decoder.layers.{layer}", f"decoder.model.{layer}", names)
    for side in SIDES:
        pairs += _under(side + ".layers.{i}", side + ".model.{i}", TRANSFORMERS_CONVS)
        theirs, moshi = (
            side + "_transformer.layers.{i}",
            side + "_transformer.transformer.layers.{i}",
        )
        pairs += _under(theirs, moshi, TRANSFORMERS_ATTENTION)
    for theirs, moshi in (("semantic", "rvq_first"), ("acoustic", "rvq_rest")):
        theirs = f"quantizer.{theirs}_residual_vector_quantizer"
        pairs += _under(theirs, f"quantizer.{moshi}", TRANSFORMERS_QUANTIZER)
    return KeyMap(pairs)


# -- moshi ------------------------------------------------------------------------------------


def from_moshi(config: MimiConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from one in moshi's layout.

    Raises: CheckpointError for tensors that have no place there.
    """
    present = {
        _new_name(name): tensor for name, tensor in tensors.items() if not name.startswith(TEACHER)
    }
    present = _fold(present)
    renamed = moshi_keys(config).to_ours(present)
    ours = {renamed[name]: _from_conv(renamed[name], tensor) for name, tensor in present.items()}
    for name, total in list(ours.items()):
        if name.endswith(".embed_sum"):
            level = name.removesuffix("embed_sum")
            usage = ours.get(level + "usage")
            if usage is None or usage.shape != total.shape[:1]:
                raise CheckpointError(f"{level}usage is missing, or does not fit {name}")
            ours[level + "embed"] = total / usage.clamp(min=config.quantizer.epsilon)[:, None]
    return ours


def to_moshi(model: Mimi) -> dict[str, Tensor]:
    """A state dict in moshi's layout, weight norm folded."""
    own = {
        name: tensor.detach()
        for name, tensor in folded_state(model).items()
        if not name.endswith(".embed")
    }
    renamed = moshi_keys(model.config).to_theirs(own)
    return {
        renamed[name]: _to_conv(name, tensor).clone(memory_format=torch.contiguous_format)
        for name, tensor in own.items()
    }


def _from_conv(name: str, tensor: Tensor) -> Tensor:
    """Ours of a weight that they keep as a convolution."""
    if name.startswith("quantizer.") and name.endswith("_proj.weight"):
        return tensor.squeeze(-1)
    return tensor.squeeze(1) if name == "upsample.weight" else tensor


def _to_conv(name: str, tensor: Tensor) -> Tensor:
    if name.startswith("quantizer.") and name.endswith("_proj.weight"):
        return tensor[..., None]
    return tensor[:, None] if name == "upsample.weight" else tensor


def _new_name(name: str) -> str:
    for old, new in OLD_NAMES.items():
        if name.endswith("." + old):
            return name.removesuffix(old) + new
    return name


def _fold(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Replace each pair of weight norm, `weight_g` and `weight_v`, by the weight."""
    folded = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.endswith((".weight_g", ".weight_v"))
    }
    for name, direction in tensors.items():
        if name.endswith(".weight_v"):
            length = tensors.get(name.removesuffix("v") + "g")
            if length is None:
                raise CheckpointError(f"{name} has no weight_g beside it")
            folded[name.removesuffix("_v")] = torch._weight_norm(direction, length, 0)
    return folded


# -- transformers -----------------------------------------------------------------------------


def from_transformers(config: MimiConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict from one in transformers' layout.

    Raises: CheckpointError for tensors that have no place there, or projections that do not fit.
    """
    joined = {name: tensor for name, tensor in tensors.items() if not _is_projection(name)}
    for name, queries in tensors.items():
        if name.endswith(".q_proj.weight"):
            layer = name.removesuffix("q_proj.weight")
            keys, values = (tensors.get(f"{layer}{letter}_proj.weight") for letter in "kv")
            width = config.transformer.width
            if any(
                part is None or part.shape != (width, width) for part in (queries, keys, values)
            ):
                raise CheckpointError(f"{layer}q_proj, k_proj or v_proj is missing or does not fit")
            assert keys is not None
            assert values is not None
            heads = config.transformer.heads
            turned = [_as_neighbours(queries, heads), _as_neighbours(keys, heads)]
            joined[layer + "in_proj.weight"] = torch.cat([*turned, values])
    renamed = transformers_keys(config).to_ours(joined)
    return from_moshi(config, {renamed[name]: tensor for name, tensor in joined.items()})


def to_transformers(model: Mimi) -> dict[str, Tensor]:
    """A state dict in transformers' layout, weight norm folded."""
    moshi = to_moshi(model)
    renamed = transformers_keys(model.config).to_theirs(moshi)
    heads = model.config.transformer.heads
    result = {}
    for name, tensor in moshi.items():
        theirs = renamed[name]
        if not theirs.endswith(".in_proj.weight"):
            result[theirs] = tensor
            continue
        layer = theirs.removesuffix("in_proj.weight")
        queries, keys, values = tensor.chunk(3)
        result[layer + "q_proj.weight"] = _as_halves(queries, heads)
        result[layer + "k_proj.weight"] = _as_halves(keys, heads)
        result[layer + "v_proj.weight"] = values.clone()
    return result


def _is_projection(name: str) -> bool:
    return name.endswith((".q_proj.weight", ".k_proj.weight", ".v_proj.weight"))


def _as_halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a projection, from neighbouring pairs in every head to pairs of halves."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _as_neighbours(weight: Tensor, heads: int) -> Tensor:
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


# -- files ------------------------------------------------------------------------------------


def load_moshi(files: Sequence[Path], entry: ModelEntry) -> tuple[MimiConfig, dict[str, Tensor]]:
    """Config and tensors, by our names, of a file in moshi's layout, or a folder that holds one.

    Without a `mimi_config.json` beside it the sizes are those of the published Mimi.
    Raises: CheckpointError or ConfigError if something is damaged or of another model.
    """
    weights = files[0] / MOSHI_WEIGHTS if files[0].is_dir() else files[0]
    config_file = weights.with_name(MOSHI_CONFIG)
    config = config_from_moshi(_json(config_file)) if config_file.is_file() else MIMI
    return config, from_moshi(config, _moshi_tensors(weights))


def read_moshi(files: Sequence[Path]) -> tuple[str, MimiConfig, dict[str, Tensor]]:
    """System, config and tensors of the `mimi.safetensors` that `export_moshi` writes."""
    config = config_from_moshi(_json(files[0].with_name(MOSHI_CONFIG)))
    return Mimi.system, config, from_moshi(config, _moshi_tensors(files[0]))


def read_transformers(files: Sequence[Path]) -> tuple[str, MimiConfig, dict[str, Tensor]]:
    """System, config and tensors of the config and the weights that transformers writes."""
    weights, config_file = files
    config = config_from_transformers(_json(config_file))
    return Mimi.system, config, from_transformers(config, read_tensors(weights))


def _moshi_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, or in the pickle of a training run."""
    if path.suffix == ".safetensors":
        return read_tensors(path)
    content = read_pickle_with_configs(path)
    for name in ("best_state", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not isinstance(content, dict) or not all(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(f"{path} holds no tensors by name, nor a 'model' that does")
    return content


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a readable JSON object: {error}") from error


def export_moshi(model: Mimi, folder: Path) -> None:
    """Write `mimi.safetensors` and `mimi_config.json`, which moshi and rustymimi load."""
    config = config_to_moshi(model.config)
    write_folder(folder, to_moshi(model), {MOSHI_CONFIG: config}, weights=MOSHI_WEIGHTS)


def export_transformers(model: Mimi, folder: Path) -> None:
    """Write `model.safetensors` and `config.json`, which transformers loads."""
    config = config_to_transformers(model.config)
    write_folder(folder, to_transformers(model), {TRANSFORMERS_CONFIG: config})
