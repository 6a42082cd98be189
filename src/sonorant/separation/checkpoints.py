"""The published separators' constructors in our words, both ways, and their tensors' names.

A published package names a class and its keyword arguments. Our modules have the published names
of their tensors, in the published order, so that only what old versions called otherwise is
renamed. What an argument is to us stands in the tables below; one that only training needed, or
whose other values were never published, stands among the fixed ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import msgspec
from torch import Tensor

from sonorant.errors import CheckpointError
from sonorant.hub.keys import KeyMap
from sonorant.hub.table import known, resolve

Arguments = Mapping[str, Any]
Fields = dict[str, Any]
"""Fields of a config by their names, with a dot where they are those of a config inside it."""


@dataclass(frozen=True)
class Special:
    """An argument that is more than another name. Both functions get the sample rate last."""

    to_fields: Callable[[Any, int], Fields]
    to_argument: Callable[[Any, int], Any]


@dataclass(frozen=True)
class Translation:
    """One published class.

    renamed: the fields of our config by the names of its arguments.
    special: arguments that are more than another name. fixed: the values of arguments that we do
    not have; None for those that do not matter once it is trained.
    """

    system: str
    published: str
    renamed: dict[str, str]
    special: dict[str, Special] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    order: tuple[str, ...] = ("sources", "audio_channels", "channels")

    def config(self, args: Sequence[Any], kwargs: Arguments, source: str) -> Any:
        """Our config for the arguments of the published constructor.

        Unknown arguments are left out with a warning, as the published package does.
        Raises: CheckpointError for what we do not have.
        """
        if len(args) > len(self.order):
            raise CheckpointError(f"{source} gives {len(args)} arguments without their names")
        given = {**self.defaults, **dict(zip(self.order, args, strict=False)), **kwargs}
        rate = int(given.get("samplerate", 44100))
        fields: Fields = {}
        for name, value in given.items():
            if name in self.special:
                fields |= self.special[name].to_fields(value, rate)
            elif name in self.renamed:
                fields[self.renamed[name]] = value
            elif name not in self.fixed:
                warnings.warn(f"{source}: {name}={value!r} is unknown, left out", stacklevel=2)
            elif self.fixed[name] is not None and value != self.fixed[name]:
                raise CheckpointError(
                    f"{source} was made with {name}={value!r}, and only {self.fixed[name]!r} is "
                    "supported"
                )
        try:
            return msgspec.convert(_nested(fields), self.config_type())
        except msgspec.ValidationError as error:
            raise CheckpointError(f"{source}: {error}") from error

    def arguments(self, config: Any) -> dict[str, Any]:
        """The published constructor's arguments for our config."""
        fields = _flat(msgspec.to_builtins(config))
        given = {name: fields[ours] for name, ours in self.renamed.items()}
        for name, special in self.special.items():
            given[name] = special.to_argument(fields, config.sample_rate)
        return {name: _as_published(value) for name, value in given.items()}

    def config_type(self) -> type[msgspec.Struct]:
        found: type[msgspec.Struct] = resolve(known().system(self.system).class_).config_type
        return found


def _as_published(value: Any) -> Any:
    """Lists, and whole numbers where they are: the published code counts channels with them."""
    if isinstance(value, tuple):
        return list(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _nested(fields: Fields) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in fields.items():
        *outer, last = path.split(".")
        place = nested
        for name in outer:
            place = place.setdefault(name, {})
        place[last] = value
    return nested


def _flat(nested: dict[str, Any], prefix: str = "") -> Fields:
    flat: Fields = {}
    for name, value in nested.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _segment_fields(segment: Any, sample_rate: int) -> Fields:
    """Seconds, as exact as the samples need: the published package multiplies fractions."""
    samples = int(segment * sample_rate)
    seconds = float(segment)
    while int(seconds * sample_rate) < samples:
        seconds = math.nextafter(seconds, math.inf)
    return {"segment_seconds": seconds}


def _segment_argument(fields: Fields, sample_rate: int) -> Any:
    samples = int(fields["segment_seconds"] * sample_rate)
    exact = Fraction(samples, sample_rate)
    return exact if exact.denominator > 1 else int(exact)


_SEGMENT = Special(_segment_fields, _segment_argument)
_COUNTED = Special(  # v1 knows how many sources there are; those of MUSDB have these names
    lambda count, rate: {"sources": _named(count)}, lambda fields, rate: len(fields["sources"])
)
_MODES = Special(
    lambda mode, rate: {"dconv_in_encoder": bool(mode & 1), "dconv_in_decoder": bool(mode & 2)},
    lambda fields, rate: fields["dconv_in_encoder"] + 2 * fields["dconv_in_decoder"],
)
_BANDS = Special(
    lambda edges, rate: {"band_edges": tuple(edges or ())},
    lambda fields, rate: list(fields["band_edges"]),
)
_EMBEDDING = Special(
    lambda weight, rate: {"embedding_weight": float(weight or 0)},
    lambda fields, rate: fields["embedding_weight"],
)
_MASKS = {"diag": "diagonal", "jmask": "triangular", "random": "random", "global": "global"}
_PATTERNS = Special(
    lambda names, rate: {
        "transformer.sparse.patterns": tuple(_MASKS.get(name, name) for name in names.split("_"))
    },
    lambda fields, rate: "_".join(
        theirs for theirs, ours in _MASKS.items() if ours in fields["transformer.sparse.patterns"]
    ),
)
_NORMS = {"gLN": "global", "cLN": "channel"}
_NORM = Special(
    lambda norm, rate: {"norm": _NORMS.get(norm, norm)},
    lambda fields, rate: {ours: theirs for theirs, ours in _NORMS.items()}[fields["norm"]],
)


def _groups(path: str) -> Special:
    """A number of groups of a normalisation, where true is one group and false none."""
    return Special(
        lambda groups, rate: {path: int(groups)},
        lambda fields, rate: {0: False, 1: True}.get(fields[path], fields[path]),
    )


def _named(count: int) -> tuple[str, ...]:
    musdb = ("drums", "bass", "other", "vocals")
    return musdb if count == len(musdb) else tuple(f"source {n + 1}" for n in range(count))


_U_NET = {
    "audio_channels": "audio_channels",
    "channels": "channels",
    "growth": "growth",
    "depth": "depth",
    "rewrite": "rewrite",
    "kernel_size": "kernel_size",
    "stride": "stride",
    "context": "context",
    "rescale": "rescale",
    "samplerate": "sample_rate",
}
_WAVE = _U_NET | {"glu": "glu", "lstm_layers": "lstm_layers"}
_BRANCHES = {
    "norm_starts": "norm_from_layer",
    "norm_groups": "norm_groups",
    "dconv_depth": "dconv.depth",
    "dconv_comp": "dconv.compress",
    "dconv_init": "dconv.initial_scale",
}
_DEEP = {"dconv_attn": "attention_from_layer", "dconv_lstm": "lstm_from_layer"}
_HYBRID = {
    "channels_time": "time_channels",
    "nfft": "n_fft",
    "wiener_iters": "wiener_iterations",
    "end_iters": "training_wiener_iterations",
    "wiener_residual": "wiener_residual",
    "cac": "complex_as_channels",
    "multi_freqs_depth": "banded_layers",
    "emb_scale": "embedding_scale",
    "emb_smooth": "smooth_embedding",
    "time_stride": "time_stride",
    "context_enc": "encoder_context",
}
_TRANSFORMER = {
    "layers": "layers",
    "hidden_scale": "hidden_scale",
    "heads": "heads",
    "dropout": "dropout",
    "layer_scale": "layer_scale",
    "gelu": "gelu",
    "emb": "position",
    "max_positions": "max_steps",
    "max_period": "max_period",
    "weight_pos_embed": "position_weight",
    "cape_mean_normalize": "cape_centred",
    "cape_augment": "cape_augment",
    "cape_glob_loc_scale": "cape_ranges",
    "sin_random_shift": "random_shift",
    "norm_in": "norm_in",
    "norm_first": "norm_first",
    "cross_first": "cross_first",
    "sparse_self_attn": "sparse.in_self_attention",
    "sparse_cross_attn": "sparse.in_cross_attention",
    "mask_random_seed": "sparse.seed",
    "sparse_attn_window": "sparse.window",
    "global_window": "sparse.global_window",
    "sparsity": "sparse.sparsity",
    "auto_sparsity": "sparse.hashed",
}
_SOURCES = {"sources": "sources"}
_HYBRID_SPECIAL = {
    "segment": _SEGMENT,
    "dconv_mode": _MODES,
    "multi_freqs": _BANDS,
    "freq_emb": _EMBEDDING,
}

DEMUCS_V1 = Translation(
    "demucs_v1",
    "demucs.model.Demucs",
    _WAVE | {"upsample": "upsample"},
    {"sources": _COUNTED},
)
DEMUCS_V2 = Translation(
    "demucs_v2",
    "demucs.model.Demucs",
    _SOURCES
    | _WAVE
    | {"resample": "resample", "normalize": "normalize", "segment_length": "segment_samples"},
)
DEMUCS_V3 = Translation(
    "demucs_v3",
    "demucs.demucs.Demucs",
    _SOURCES
    | _WAVE
    | _BRANCHES
    | _DEEP
    | {"gelu": "gelu", "normalize": "normalize", "resample": "resample"},
    {"segment": _SEGMENT, "dconv_mode": _MODES},
)
HDEMUCS = Translation(
    "hdemucs",
    "demucs.hdemucs.HDemucs",
    _SOURCES
    | _U_NET
    | _HYBRID
    | _BRANCHES
    | _DEEP
    | {"hybrid": "hybrid", "hybrid_old": "shifted_spectrogram"},
    _HYBRID_SPECIAL,
)
HTDEMUCS = Translation(
    "htdemucs",
    "demucs.htdemucs.HTDemucs",
    _SOURCES
    | _U_NET
    | _HYBRID
    | _BRANCHES
    | {"bottom_channels": "bottom_channels", "use_train_segment": "fixed_segment"}
    | {f"t_{theirs}": f"transformer.{ours}" for theirs, ours in _TRANSFORMER.items()},
    _HYBRID_SPECIAL
    | {
        "t_mask_type": _PATTERNS,
        "t_norm_in_group": _groups("transformer.norm_in_groups"),
        "t_group_norm": _groups("transformer.group_norm_groups"),
        "t_norm_out": _groups("transformer.norm_out_groups"),
    },
    fixed={"t_weight_decay": None, "t_lr": None},
    defaults={"bottom_channels": 0, "dconv_mode": 1, "t_dropout": 0.0, "segment": 10},
)
CONV_TASNET = Translation(
    "conv_tasnet",
    "demucs.tasnet.ConvTasNet",
    _SOURCES
    | {
        "N": "filters",
        "L": "filter_samples",
        "B": "bottleneck",
        "H": "hidden",
        "P": "kernel_size",
        "X": "blocks",
        "R": "repeats",
        "audio_channels": "audio_channels",
        "causal": "causal",
        "mask_nonlinear": "mask",
        "samplerate": "sample_rate",
        "segment_length": "segment_samples",
    },
    {"norm_type": _NORM},
    order=("sources", "N", "L", "B", "H", "P", "X", "R"),
)
TRANSLATIONS = (DEMUCS_V1, DEMUCS_V2, DEMUCS_V3, HDEMUCS, HTDEMUCS, CONV_TASNET)

ALIASES = {"demucs.wdemucs.WDemucs": "demucs.hdemucs.HDemucs"}
"""Older names of published classes."""


def translation_of(published: str, kwargs: Arguments, source: str) -> Translation:
    """The table for a published class. Raises: CheckpointError for one that we do not have."""
    name = ALIASES.get(published, published)
    if name == DEMUCS_V1.published:
        return DEMUCS_V1 if isinstance(kwargs.get("sources", 4), int) else DEMUCS_V2
    for translation in TRANSLATIONS:
        if translation.published == name:
            return translation
    raise CheckpointError(f"{source} is a model of the class {published}, which is not known")


_V2_KEYS = KeyMap(
    [
        (f"{half}.{{i}}.2.{kind}", f"{half}.{{i}}.3.{kind}")
        for half in ("encoder", "decoder")
        for kind in ("weight", "bias")
    ]
    + [("{same}", "{same}")]
)
"""v3 counts a normalisation, which may do nothing, before what v2 has in second place."""


def our_tensors(
    translation: Translation, config: Any, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors of a published state dict under our names.

    Only weights of v2, loaded into v3, are renamed. One kind of v3 has tensors in that place, a
    normalisation in the decoder; the published package cannot load it again.
    """
    if translation is not DEMUCS_V3 or (config.dconv_in_decoder and not config.rewrite):
        return dict(tensors)
    renamed = _V2_KEYS.to_ours(tensors)
    return {renamed[name]: tensor for name, tensor in tensors.items()}
