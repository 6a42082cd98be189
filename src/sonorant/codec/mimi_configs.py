"""Mimi's config as others write it: moshi's `mimi_config.json` and transformers' `config.json`.

Each is a table of names. What a published config can say but no published Mimi uses is refused, so
that a model is either read as it is or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from sonorant.codec.mimi import MIMI, MIMI_QUANTIZER, MIMI_SEANET, MIMI_TRANSFORMER, MimiConfig
from sonorant.errors import ConfigError
from sonorant.nn.quantizer import QuantizerConfig
from sonorant.nn.seanet import SEANetConfig
from sonorant.nn.transformer import TransformerConfig

# Section of mimi_config.json: their names and ours, then what must be as it is here.
MOSHI_NAMES: dict[str, dict[str, str]] = {
    "seanet": {
        "channels": "channels",
        "dimension": "dimension",
        "n_filters": "base_filters",
        "n_residual_layers": "residual_layers",
        "compress": "compress",
        "dilation_base": "dilation_base",
        "kernel_size": "kernel_size",
        "residual_kernel_size": "residual_kernel_size",
        "last_kernel_size": "last_kernel_size",
        "ratios": "ratios",
    },
    "quantizer": {"dimension": "dimension", "n_q": "codebooks", "bins": "codebook_size"},
    "transformer": {
        "d_model": "width",
        "num_heads": "heads",
        "num_layers": "layers",
        "layer_scale": "layer_scale",
        "context": "context",
        "max_period": "max_period",
        "dim_feedforward": "hidden",
    },
}
MOSHI_FIXED: dict[str, dict[str, Any]] = {
    "seanet": {
        "causal": True,
        "activation": "ELU",
        "disable_norm_outer_blocks": 0,
        "norm": "none",
        "pad_mode": "constant",
    },
    "transformer": {
        "causal": True,
        "conv_layout": True,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
    },
}
# What the classes of moshi 0.2.13 take beside, as it is without, which must not be asked for
# otherwise.
MOSHI_DEFAULTS: dict[str, dict[str, Any]] = {
    "seanet": {"activation_params": {"alpha": 1.0}, "norm_params": {}},
    "transformer": {
        "positional_scale": 1.0,
        "betas": None,
        "quantize": False,
        "checkpointing": False,
        "kv_repeat": 1,
        "weights_per_step": 0,
        "weights_per_step_schedule": None,
        "skip_self_attn": False,
        "cross_attention": False,
    },
    "quantizer": {"n_q_semantic": 1, "force_projection": False},
}
# What they take that may be anything: a choice that is read below, and what only training sees.
MOSHI_FREE: dict[str, set[str]] = {
    "seanet": {"true_skip"},
    "transformer": set(),
    "quantizer": {
        "q_dropout",
        "no_quantization_rate",
        "decay",
        "threshold_usage_ratio",
        "replaced_usage_ratio",
        "codebook_offset",
    },
}

# The same for transformers: their name, and the part of ours and its name.
TRANSFORMERS_NAMES: dict[str, tuple[str, str]] = {
    "audio_channels": ("seanet", "channels"),
    "num_filters": ("seanet", "base_filters"),
    "num_residual_layers": ("seanet", "residual_layers"),
    "compress": ("seanet", "compress"),
    "dilation_growth_rate": ("seanet", "dilation_base"),
    "kernel_size": ("seanet", "kernel_size"),
    "residual_kernel_size": ("seanet", "residual_kernel_size"),
    "last_kernel_size": ("seanet", "last_kernel_size"),
    "upsampling_ratios": ("seanet", "ratios"),
    "codebook_dim": ("quantizer", "dimension"),
    "num_quantizers": ("quantizer", "codebooks"),
    "codebook_size": ("quantizer", "codebook_size"),
    "num_attention_heads": ("transformer", "heads"),
    "num_hidden_layers": ("transformer", "layers"),
    "intermediate_size": ("transformer", "hidden"),
    "sliding_window": ("transformer", "context"),
    "layer_scale_initial_scale": ("transformer", "layer_scale"),
    "norm_eps": ("transformer", "norm_epsilon"),
    "rope_theta": ("transformer", "max_period"),
}
TRANSFORMERS_FIXED: dict[str, Any] = {
    "use_causal_conv": True,
    "pad_mode": "constant",
    "trim_right_ratio": 1.0,
    "hidden_act": "gelu",
    "attention_bias": False,
    "normalize": False,
}


def from_moshi(published: Mapping[str, Any]) -> MimiConfig:
    """Our config of a `mimi_config.json`.

    Raises: ConfigError naming what it lacks, or asks for that no Mimi here has.
    """
    parts: dict[str, dict[str, Any]] = {}
    sections = {name: _section(published, name) for name in MOSHI_NAMES}
    width = _value(sections["seanet"], "dimension", "seanet")
    widths: dict[str, dict[str, Any]] = {
        "seanet": {},
        "quantizer": {"input_dimension": width, "output_dimension": width},
        "transformer": {"input_dimension": width, "output_dimensions": [width], "d_model": width},
    }
    for name, names in MOSHI_NAMES.items():
        found = sections[name]
        fixed = MOSHI_FIXED.get(name, {}) | MOSHI_DEFAULTS[name] | widths[name]
        _refuse_others(found, fixed, name)
        _refuse_unknown(found, {*names, *fixed, *MOSHI_FREE[name]}, name)
        parts[name] = {ours: _value(found, theirs, name) for theirs, ours in names.items()}
    seanet = parts["seanet"]
    _refuse_others(published, {"channels": seanet["channels"]}, "")
    seanet["skip"] = "identity" if published["seanet"].get("true_skip", True) else "convolution"
    return _assemble(
        parts, _value(published, "sample_rate", ""), _value(published, "frame_rate", "")
    )


def to_moshi(config: MimiConfig) -> dict[str, Any]:
    """A `mimi_config.json` of our config. Raises: ConfigError if moshi has no such model."""
    _check_publishable(config)
    if config.semantic_codebooks != 1:
        raise ConfigError("moshi has models with one semantic codebook only; export to huggingface")
    result: dict[str, Any] = {
        "sample_rate": config.sample_rate,
        "channels": config.seanet.channels,
        "frame_rate": _frame_rate(config),
    }
    for section, names in MOSHI_NAMES.items():
        part = getattr(config, section)
        result[section] = {theirs: _plain(getattr(part, ours)) for theirs, ours in names.items()}
        result[section] |= MOSHI_FIXED.get(section, {})
    width = config.seanet.dimension
    result["seanet"]["true_skip"] = config.seanet.skip == "identity"
    result["quantizer"] |= {"input_dimension": width, "output_dimension": width}
    result["transformer"] |= {"input_dimension": width, "output_dimensions": [width]}
    return result


def from_transformers(published: Mapping[str, Any]) -> MimiConfig:
    """Our config of a transformers `config.json`; what that leaves out is as in its own default.

    Raises: ConfigError for what no Mimi here has.
    """
    if published.get("model_type") != "mimi":
        raise ConfigError(f"this config is of a {published.get('model_type')!r}, not of a 'mimi'")
    turning = (published.get("rope_scaling") or {}) | (published.get("rope_parameters") or {})
    published = {**to_transformers(MIMI), **turning, **published}
    width, heads = published["hidden_size"], published["num_attention_heads"]
    fixed = {
        **TRANSFORMERS_FIXED,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "upsample_groups": width,
        "vector_quantization_hidden_dimension": published["codebook_dim"],
        "rope_type": "default",  # others turn the positions otherwise
        "type": "default",  # its older name
    }
    _refuse_others(published, fixed, "")
    parts: dict[str, dict[str, Any]] = {
        "seanet": {
            "dimension": width,
            "skip": "convolution" if published["use_conv_shortcut"] else "identity",
        },
        "transformer": {"width": width},
        "quantizer": {},
    }
    for theirs, (part, ours) in TRANSFORMERS_NAMES.items():
        parts[part][ours] = published[theirs]
    semantic = published["num_semantic_quantizers"]
    return _assemble(parts, published["sampling_rate"], published["frame_rate"], semantic)


def to_transformers(config: MimiConfig) -> dict[str, Any]:
    """A transformers `config.json`. Raises: ConfigError if that package has no such model."""
    _check_publishable(config)
    width, heads = config.seanet.dimension, config.transformer.heads
    return {
        "model_type": "mimi",
        "architectures": ["MimiModel"],
        "sampling_rate": config.sample_rate,
        "frame_rate": _frame_rate(config),
        "hidden_size": width,
        **{
            theirs: _plain(getattr(getattr(config, part), ours))
            for theirs, (part, ours) in TRANSFORMERS_NAMES.items()
        },
        **TRANSFORMERS_FIXED,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "upsample_groups": width,
        "use_conv_shortcut": config.seanet.skip == "convolution",
        "vector_quantization_hidden_dimension": config.quantizer.dimension,
        "num_semantic_quantizers": config.semantic_codebooks,
    }


def _assemble(
    parts: Mapping[str, Mapping[str, Any]],
    sample_rate: int,
    frame_rate: float,
    semantic_codebooks: int = 1,
) -> MimiConfig:
    def part(base: msgspec.Struct, name: str) -> Any:
        return msgspec.convert({**msgspec.to_builtins(base), **parts[name]}, type(base))

    try:
        seanet: SEANetConfig = part(MIMI_SEANET, "seanet")
        transformer: TransformerConfig = part(MIMI_TRANSFORMER, "transformer")
        quantizer: QuantizerConfig = part(MIMI_QUANTIZER, "quantizer")
        stride = sample_rate / math.prod(seanet.ratios) / frame_rate
        if stride != round(stride) or stride < 2:
            raise ConfigError(
                f"frames at {frame_rate:g} Hz do not hold a whole number of latents, two or more"
            )
        return MimiConfig(
            sample_rate, seanet, transformer, round(stride), quantizer, semantic_codebooks
        )
    except (msgspec.ValidationError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"this is no usable config of a Mimi: {error}") from error


def _section(published: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = published.get(name)
    if not isinstance(section, Mapping):
        raise ConfigError(f"this is no mimi_config.json: it has no section {name!r}")
    return section


def _value(section: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in section:
        raise ConfigError(f"this is no mimi_config.json: {f'{where}.{name}'.strip('.')} is missing")
    return section[name]


def _refuse_others(found: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> None:
    for name, value in fixed.items():
        if name in found and found[name] != value and found[name] is not None:
            raise ConfigError(
                f"the published config asks for {f'{where}.{name}'.strip('.')} = {found[name]!r}; "
                f"the only Mimi there is here has {value!r}"
            )


def _refuse_unknown(found: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(found) - known)
    if unknown:
        raise ConfigError(
            f"the published config asks for {where}.{unknown[0]} = {found[unknown[0]]!r:.80}, "
            "which no Mimi here knows"
        )


def _check_publishable(config: MimiConfig) -> None:
    """Refuse what the published packages have no words for."""
    seanet, transformer = config.seanet, config.transformer
    as_published = (
        (seanet.lstm_layers, seanet.pad_mode, config.latents_per_frame > 1)
        == (MIMI_SEANET.lstm_layers, MIMI_SEANET.pad_mode, True)
    ) and all(
        getattr(transformer, name) == getattr(MIMI_TRANSFORMER, name)
        for name in ("key_value_heads", "feed_forward", "norm", "norm_order", "position", "bias")
    )
    if not as_published or transformer.memory_steps:
        raise ConfigError(
            "the published packages have no Mimi with this config: LSTM layers, another padding, "
            "one latent per frame or another kind of transformer are our own"
        )


def _frame_rate(config: MimiConfig) -> float:
    hop_samples = math.prod(config.seanet.ratios) * config.latents_per_frame
    return config.sample_rate / hop_samples


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
