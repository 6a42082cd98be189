"""EnCodec in the layout of transformers, in and out: `config.json` and `model.safetensors`.

Tensors are those of the original layout under flatter names, such as
`decoder.layers.3.conv.weight_g` for the transposed convolution
`decoder.model.3.convtr.convtr.weight_g`. transformers derives the number of codebooks from the
highest bandwidth, and takes the lowest where none is asked for; here the weights say how many there
are, and none asked for means all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from torch import Tensor

from sonorant.codec.checkpoints import (
    CODEBOOK_NAMES,
    NORM_NAMES,
    read_published,
    to_published,
)
from sonorant.codec.encodec import EncodecConfig, EncodecCore
from sonorant.errors import CheckpointError, ConfigError
from sonorant.hub.checkpoint import CONFIG_FILE, write_folder
from sonorant.hub.tensors import read_tensors
from sonorant.nn.conv import PadMode
from sonorant.nn.quantizer import QuantizerConfig
from sonorant.nn.seanet import SEANetConfig

PREPROCESSOR_FILE = "preprocessor_config.json"

# What transformers notes about any model; nothing of it changes this one.
GENERAL_FIELDS = {
    "_commit_hash",
    "_name_or_path",
    "architectures",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
}
Count = Annotated[int, msgspec.Meta(ge=1)]
Depth = Annotated[int, msgspec.Meta(ge=0, le=64)]  # of layers, so that none can be made endless
Bandwidths = Annotated[tuple[float, ...], msgspec.Meta(min_length=1)]
PadWord = Literal["constant", "reflect", "replicate"]
PAD_MODES: dict[PadWord, PadMode] = {
    "constant": "zero",
    "reflect": "reflect",
    "replicate": "replicate",
}


class PublishedConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`config.json` of transformers' EncodecModel, with its defaults for what is left out."""

    target_bandwidths: Annotated[tuple[float, ...], msgspec.Meta(min_length=1)] = (
        1.5,
        3.0,
        6.0,
        12.0,
        24.0,
    )
    sampling_rate: Count = 24000
    audio_channels: Count = 1
    normalize: bool = False
    chunk_length_s: float | None = None
    overlap: float | None = None
    hidden_size: Count = 128
    num_filters: Count = 32
    num_residual_layers: Depth = 1
    upsampling_ratios: Annotated[tuple[Count, ...], msgspec.Meta(min_length=1, max_length=64)] = (
        8,
        5,
        4,
        2,
    )
    norm_type: Literal["weight_norm", "time_group_norm"] = "weight_norm"
    kernel_size: Count = 7
    last_kernel_size: Count = 7
    residual_kernel_size: Count = 3
    dilation_growth_rate: Count = 2
    use_causal_conv: bool = True
    pad_mode: PadWord = "reflect"
    compress: Count = 2
    num_lstm_layers: Depth = 2
    trim_right_ratio: float = 1.0
    codebook_size: Count = 1024
    codebook_dim: Count | None = None
    use_conv_shortcut: bool = True

    @property
    def codebooks(self) -> int:
        """As transformers counts them."""
        frame_rate = math.ceil(self.sampling_rate / math.prod(self.upsampling_ratios))
        bits = math.ceil(math.log2(self.codebook_size))
        return int(1000 * self.target_bandwidths[-1] // (frame_rate * bits))


def config_from_huggingface(fields: dict[str, Any], codebooks: int) -> EncodecConfig:
    """Our config of a model whose weights hold that many codebooks.

    Raises: ConfigError for an unknown field or an impossible value.
    """
    own = {name: value for name, value in fields.items() if name not in GENERAL_FIELDS}
    try:
        published = msgspec.convert(own, PublishedConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"not a config of an EnCodec that is known here: {error}") from error
    return EncodecConfig(
        sample_rate=published.sampling_rate,
        target_bandwidths_kbps=published.target_bandwidths,
        seanet=_seanet(published),
        quantizer=QuantizerConfig(
            dimension=published.codebook_dim or published.hidden_size,
            codebooks=codebooks,
            codebook_size=published.codebook_size,
        ),
        segment_seconds=published.chunk_length_s,
        overlap=published.overlap or 0.0,
        normalize=published.normalize,
    )


def _seanet(published: PublishedConfig) -> SEANetConfig:
    return SEANetConfig(
        channels=published.audio_channels,
        dimension=published.hidden_size,
        base_filters=published.num_filters,
        ratios=published.upsampling_ratios,
        residual_layers=published.num_residual_layers,
        kernel_size=published.kernel_size,
        last_kernel_size=published.last_kernel_size,
        residual_kernel_size=published.residual_kernel_size,
        dilation_base=published.dilation_growth_rate,
        compress=published.compress,
        lstm_layers=published.num_lstm_layers,
        skip="convolution" if published.use_conv_shortcut else "identity",
        causal=published.use_causal_conv,
        pad_mode=PAD_MODES[published.pad_mode],
        norm=published.norm_type,
        trim_right_ratio=published.trim_right_ratio,
    )


def config_to_huggingface(config: EncodecConfig) -> dict[str, Any]:
    """The fields of `config.json`.

    Raises: ConfigError for a model that transformers cannot have.
    """
    seanet, quantizer = config.seanet, config.quantizer
    if isinstance(seanet.variant, msgspec.Struct) or seanet.norm == "none":
        raise ConfigError("transformers' EnCodec has no such norm or activation; not exported")
    words = {mode: word for word, mode in PAD_MODES.items()}
    published = PublishedConfig(
        target_bandwidths=config.target_bandwidths_kbps,
        sampling_rate=config.sample_rate,
        audio_channels=seanet.channels,
        normalize=config.normalize,
        chunk_length_s=config.segment_seconds,
        overlap=None if config.segment_seconds is None else config.overlap,
        hidden_size=seanet.dimension,
        num_filters=seanet.base_filters,
        num_residual_layers=seanet.residual_layers,
        upsampling_ratios=seanet.ratios,
        norm_type=seanet.norm,
        kernel_size=seanet.kernel_size,
        last_kernel_size=seanet.last_kernel_size,
        residual_kernel_size=seanet.residual_kernel_size,
        dilation_growth_rate=seanet.dilation_base,
        use_causal_conv=seanet.causal,
        pad_mode=words[seanet.pad_mode],
        compress=seanet.compress,
        num_lstm_layers=seanet.lstm_layers,
        trim_right_ratio=seanet.trim_right_ratio,
        codebook_size=quantizer.codebook_size,
        codebook_dim=quantizer.dimension,
        use_conv_shortcut=seanet.skip == "convolution",
    )
    if published.codebooks != quantizer.codebooks:
        raise ConfigError(
            f"transformers takes the number of codebooks from the highest bandwidth, which gives "
            f"{published.codebooks} here, but this model has {quantizer.codebooks}; not exported"
        )
    fields: dict[str, Any] = msgspec.to_builtins(published)
    return {**fields, "model_type": "encodec", "architectures": ["EncodecModel"]}


def huggingface_name(name: str, transposed: set[str]) -> str:
    """The layout's name of one of our tensors; transposed convolutions are not told apart."""
    if match := re.fullmatch(r"quantizer\.layers\.(\d+)\.(\w+)", name):
        return f"quantizer.layers.{match[1]}.codebook.{CODEBOOK_NAMES[match[2]]}"
    name = name.replace("block.layers.", "block.")
    for ours, theirs in NORM_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def load_huggingface(files: Sequence[Path]) -> tuple[str, EncodecConfig, dict[str, Tensor]]:
    """System, config and tensors by our names, of the weights and the `config.json` beside them.

    Raises: CheckpointError or ConfigError if they are damaged, or not of an EnCodec known here.
    """
    weights, config_path = files
    try:
        fields = msgspec.json.decode(config_path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise CheckpointError(
            f"{weights} needs transformers' {CONFIG_FILE} beside it ({error.strerror})"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{config_path} is not a config: {error}") from error
    tensors = read_tensors(weights)
    codebooks = sum(name.endswith(".codebook.embed") for name in tensors)
    try:
        config = config_from_huggingface(fields, codebooks)
    except ConfigError as error:
        raise ConfigError(f"{config_path}: {error}") from error
    return read_published(config, tensors, huggingface_name, weights)


def export_huggingface(model: EncodecCore, folder: Path) -> None:
    """Write what transformers' `EncodecModel.from_pretrained` and `AutoProcessor` load.

    Raises: ConfigError for a model that transformers cannot have.
    """
    config = config_to_huggingface(model.config)
    tensors = to_published(model, huggingface_name)
    preprocessor = {
        "feature_extractor_type": "EncodecFeatureExtractor",
        "feature_size": model.channels,
        "sampling_rate": model.sample_rate,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "chunk_length_s": config["chunk_length_s"],
        "overlap": config["overlap"],
    }
    write_folder(folder, tensors, {PREPROCESSOR_FILE: preprocessor, CONFIG_FILE: config})
