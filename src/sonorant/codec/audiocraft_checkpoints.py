"""EnCodec in the layout of AudioCraft, in and out: `compression_state_dict.bin`.

A torch pickle with `best_state`, a state dict in the original layout, and `xp.cfg`, the config of
the whole experiment as YAML text (or, in a state that training saved, as a pickled config); or with
`pretrained`, the name of another model. Nothing of it is run: see `hub.pickled_config`.

Sections of that config may hold no field that is not known here: it may change what weights mean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml
from torch import Tensor

from sonorant import __version__
from sonorant.codec.checkpoints import original_name, read_published, to_original, write_pickle
from sonorant.codec.encodec import EncodecConfig, EncodecCore
from sonorant.errors import CheckpointError, ConfigError
from sonorant.hub.checkpoint import open_checkpoint
from sonorant.hub.pickled_config import read_pickle_with_configs
from sonorant.hub.table import known
from sonorant.nn.conv import Norm, PadMode
from sonorant.nn.quantizer import QuantizerConfig
from sonorant.nn.seanet import SEANetConfig, SEANetVariant

STATE_FILE = "compression_state_dict.bin"

PAD_MODES: dict[str, PadMode] = {"constant": "zero", "reflect": "reflect", "replicate": "replicate"}
NORMS: dict[str, Norm] = {
    "none": "none",
    "weight_norm": "weight_norm",
    "time_group_norm": "time_group_norm",
}
ACTIVATIONS: dict[str, Literal["tanh"]] = {"Tanh": "tanh"}
Section = TypeVar("Section", bound=msgspec.Struct)
Count = Annotated[int, msgspec.Meta(ge=1)]
Depth = Annotated[int, msgspec.Meta(ge=0, le=64)]  # of layers, so that none can be made endless
DEEPEST = 50  # levels of the config; real ones have five or so
MOST_REFERENCES = 10  # from one value to the next; more is a circle


class CodecSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`encodec`: the parts, and the sound they work on."""

    autoencoder: Literal["seanet"]
    quantizer: Literal["rvq"]
    sample_rate: Count
    channels: Count
    causal: bool = False
    renormalize: bool = False


class EncoderSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`seanet.encoder`: where the encoder differs; nothing may."""


class DecoderSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`seanet.decoder`: what only the decoder has."""

    trim_right_ratio: float = 1.0
    final_activation: str | None = None
    final_activation_params: dict[str, Any] | None = None


class SEANetSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`seanet`: both halves of the network."""

    channels: Count
    dimension: Count
    n_filters: Count
    ratios: Annotated[tuple[Count, ...], msgspec.Meta(min_length=1, max_length=64)]
    causal: bool = False
    n_residual_layers: Depth = 1
    activation: Literal["ELU"] = "ELU"
    activation_params: dict[str, float] = {}
    norm: str = "none"
    norm_params: dict[str, Any] = {}
    kernel_size: Count = 7
    residual_kernel_size: Count = 3
    last_kernel_size: Count = 7
    dilation_base: Count = 2
    pad_mode: str = "reflect"
    true_skip: bool = True
    compress: Count = 2
    lstm: Depth = 0
    disable_norm_outer_blocks: Depth = 0
    encoder: EncoderSection = EncoderSection()
    decoder: DecoderSection = DecoderSection()


class QuantizerSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`rvq`. All but the sizes is about training, and not needed to use the weights."""

    n_q: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    bins: Count
    q_dropout: bool = False
    decay: float = 0.99
    kmeans_init: bool = True
    kmeans_iters: Count = 50
    threshold_ema_dead_code: float = 2
    orthogonal_reg_weight: float = 0.0
    orthogonal_reg_active_codes_only: bool = False
    orthogonal_reg_max_codes: int | None = None


def config_from_audiocraft(settings: Mapping[str, Any]) -> EncodecConfig:
    """Our config of an experiment's.

    Raises: ConfigError for an unknown field, an impossible value, or a part that is not known here.
    """
    codec = _section(settings, "encodec", CodecSection)
    rvq = _section(settings, "rvq", QuantizerSection)
    seanet = _seanet(_section(settings, "seanet", SEANetSection))
    if codec.renormalize and codec.causal:
        raise ConfigError("encodec.renormalize looks at the whole sound, and cannot be causal")
    if (codec.channels, codec.causal) != (seanet.channels, seanet.causal):
        raise ConfigError("encodec and seanet differ in channels or causal; make them equal")
    frame_rate = math.ceil(codec.sample_rate / math.prod(seanet.ratios))  # as `EncodecCore` has it
    return EncodecConfig(
        sample_rate=codec.sample_rate,
        target_bandwidths_kbps=bandwidths(rvq.n_q, rvq.bins, frame_rate),
        seanet=seanet,
        quantizer=QuantizerConfig(
            dimension=seanet.dimension,
            codebooks=rvq.n_q,
            codebook_size=rvq.bins,
            decay=rvq.decay,
            kmeans_iterations=rvq.kmeans_iters,
        ),
        segment_seconds=None,
        normalize=codec.renormalize,
    )


def bandwidths(codebooks: int, codebook_size: int, frame_rate: int) -> tuple[float, ...]:
    """What each number of codebooks takes in kb/s: AudioCraft lets any be chosen.

    >>> bandwidths(4, 2048, 50)
    (0.55, 1.1, 1.65, 2.2)
    """
    bits_per_second = math.log2(codebook_size) * frame_rate
    # Rounded up, so that the number is found again whatever the rounding of the product.
    steps = [math.ceil(count * bits_per_second * 1000 - 1e-3) for count in range(1, codebooks + 1)]
    return tuple(step / 1e6 for step in steps)


def _seanet(section: SEANetSection) -> SEANetConfig:
    decoder = section.decoder
    if section.pad_mode not in PAD_MODES or section.norm not in NORMS:
        raise ConfigError(
            f"seanet.pad_mode {section.pad_mode!r} or seanet.norm {section.norm!r} is not known "
            f"here; known are {', '.join(PAD_MODES)} and {', '.join(NORMS)}"
        )
    if section.norm_params or decoder.final_activation_params:
        raise ConfigError("parameters of seanet.norm or of the final activation are not known here")
    if decoder.final_activation is not None and decoder.final_activation not in ACTIVATIONS:
        raise ConfigError(
            f"seanet.decoder.final_activation {decoder.final_activation!r} is not known here; "
            f"known are {', '.join(ACTIVATIONS)}"
        )
    if not section.activation_params.keys() <= {"alpha"}:
        raise ConfigError("seanet.activation_params may hold nothing but alpha")
    variant = SEANetVariant(
        elu_alpha=section.activation_params.get("alpha", 1.0),
        plain_outer_blocks=section.disable_norm_outer_blocks,
        final_activation=ACTIVATIONS.get(decoder.final_activation or ""),
    )
    return SEANetConfig(
        channels=section.channels,
        dimension=section.dimension,
        base_filters=section.n_filters,
        ratios=section.ratios,
        residual_layers=section.n_residual_layers,
        kernel_size=section.kernel_size,
        last_kernel_size=section.last_kernel_size,
        residual_kernel_size=section.residual_kernel_size,
        dilation_base=section.dilation_base,
        compress=section.compress,
        lstm_layers=section.lstm,
        skip="identity" if section.true_skip else "convolution",
        causal=section.causal,
        pad_mode=PAD_MODES[section.pad_mode],
        norm=NORMS[section.norm],
        trim_right_ratio=decoder.trim_right_ratio,
        variant=msgspec.UNSET if variant == SEANetVariant() else variant,
    )


def config_to_audiocraft(config: EncodecConfig) -> dict[str, Any]:
    """An experiment's config, as far as AudioCraft needs it to build the model.

    Raises: ConfigError for a model that works in segments, which AudioCraft has none of.
    """
    if config.segment_seconds is not None:
        raise ConfigError("AudioCraft's EnCodec knows no segments; this model is not exported")
    seanet, rvq = config.seanet, config.quantizer
    sections = {
        "encodec": CodecSection(
            autoencoder="seanet",
            quantizer="rvq",
            sample_rate=config.sample_rate,
            channels=seanet.channels,
            causal=seanet.causal,
            renormalize=config.normalize,
        ),
        "seanet": _seanet_section(seanet),
        "rvq": QuantizerSection(
            n_q=rvq.codebooks,
            bins=rvq.codebook_size,
            decay=rvq.decay,
            kmeans_iters=rvq.kmeans_iterations,
        ),
    }
    common = {
        "solver": "compression",
        "compression_model": "encodec",
        "sample_rate": config.sample_rate,
        "channels": seanet.channels,
        "device": "cpu",
    }
    plain: dict[str, Any] = msgspec.to_builtins(sections)
    plain["rvq"].pop("orthogonal_reg_max_codes")
    return common | plain


def _seanet_section(seanet: SEANetConfig) -> SEANetSection:
    words = {mode: word for word, mode in PAD_MODES.items()}
    activations = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    details = seanet.details
    final = details.final_activation
    return SEANetSection(
        channels=seanet.channels,
        dimension=seanet.dimension,
        n_filters=seanet.base_filters,
        ratios=seanet.ratios,
        causal=seanet.causal,
        n_residual_layers=seanet.residual_layers,
        activation_params={"alpha": details.elu_alpha},
        norm=seanet.norm,
        kernel_size=seanet.kernel_size,
        residual_kernel_size=seanet.residual_kernel_size,
        last_kernel_size=seanet.last_kernel_size,
        dilation_base=seanet.dilation_base,
        pad_mode=words[seanet.pad_mode],
        true_skip=seanet.skip == "identity",
        compress=seanet.compress,
        lstm=seanet.lstm_layers,
        disable_norm_outer_blocks=details.plain_outer_blocks,
        decoder=DecoderSection(
            trim_right_ratio=seanet.trim_right_ratio,
            final_activation=None if final is None else activations[final],
        ),
    )


def load_audiocraft(files: Sequence[Path]) -> tuple[str, EncodecConfig, dict[str, Tensor]]:
    """System, config and tensors by our names, of a compression state.

    Raises: CheckpointError or ConfigError if it is damaged, asks to run code, or is not of an
    EnCodec known here.
    """
    path = files[0]
    content = read_pickle_with_configs(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a compression state of AudioCraft")
    if "pretrained" in content:
        return _pretrained(content["pretrained"], path)
    if "best_state" not in content or "xp.cfg" not in content:
        raise CheckpointError(
            f"{path} is not a compression state of AudioCraft: it has no best_state and xp.cfg"
        )
    try:
        config = config_from_audiocraft(_settings(content["xp.cfg"]))
    except ConfigError as error:
        raise ConfigError(f"{path}, xp.cfg: {error}") from error
    state = content["best_state"]
    if isinstance(state, dict) and isinstance(state.get("model"), dict):  # saved by training
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise CheckpointError(f"{path} holds something else than tensors as best_state")
    return read_published(config, state, original_name, path)


def export_audiocraft(model: EncodecCore, folder: Path) -> None:
    """Write `compression_state_dict.bin`, which AudioCraft's loaders take.

    Raises: ConfigError for a model that AudioCraft cannot have.
    """
    settings = config_to_audiocraft(model.config)
    content = {
        "best_state": to_original(model),
        "xp.cfg": yaml.safe_dump(settings),
        "version": f"sonorant {__version__}",
        "exported": True,
    }
    write_pickle(content, folder / STATE_FILE)


def _pretrained(name: Any, path: Path) -> tuple[str, EncodecConfig, dict[str, Tensor]]:
    """The model that a state names, if the table knows it: a file must not choose what is read
    from disk or fetched from elsewhere."""
    if not isinstance(name, str) or name not in known().models:
        raise CheckpointError(
            f"{path} stands for another model, {name!r:.80}, which is not in the table; load that"
        )
    found = open_checkpoint(name)
    if not isinstance(found.config, EncodecConfig):
        raise CheckpointError(f"{path} stands for {name}, which is no EnCodec")
    return found.system, found.config, found.tensors


def _settings(found: Any) -> Mapping[str, Any]:
    """`xp.cfg` as plain data."""
    if isinstance(found, str):
        try:
            _check_yaml(found)
            found = yaml.safe_load(found)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"not YAML: {str(error)[:200]}") from error
    if not isinstance(found, Mapping):
        raise ConfigError("it holds no sections")
    return found


def _check_yaml(text: str) -> None:
    """Refuse what makes a small text cost much: aliases, which no such config has, and depth."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ConfigError("its YAML has aliases, which no such config has")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ConfigError(f"its YAML is nested more than {DEEPEST} levels deep")


def _section(settings: Mapping[str, Any], name: str, kind: type[Section]) -> Section:
    """One section, its references to other values (`${sample_rate}`) followed."""
    found = settings.get(name)
    if not isinstance(found, Mapping):
        raise ConfigError(f"it has no section {name}")
    try:
        return msgspec.convert(_resolved(found, settings), kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"in {name}: {error}") from error


def _resolved(value: Any, settings: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _resolved(held, settings) for key, held in value.items()}
    if isinstance(value, list):
        return [_resolved(held, settings) for held in value]
    for _ in range(MOST_REFERENCES):
        reference = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
        if reference is None:
            return value
        value = _looked_up(reference[1], settings)
    raise ConfigError(f"{value} refers to itself")


def _looked_up(path: str, settings: Mapping[str, Any]) -> Any:
    found: Any = settings
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    if found is None or isinstance(found, Mapping | list):
        raise ConfigError(f"${{{path}}} leads to no single value")
    return found
