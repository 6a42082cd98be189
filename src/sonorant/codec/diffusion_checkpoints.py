"""The published layout of Multi-Band Diffusion, in and out.

A torch pickle {"sample_rate": Hz, "n_bands": n, 0: band, 1: band, ...}, each band {"cfg": an
OmegaConf config, "model_state": the network's state dict, "processor_state": the equaliser's}.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor

from sonorant.codec.checkpoints import write_pickle
from sonorant.codec.diffusion_bands import EqualizerConfig
from sonorant.codec.diffusion_schedule import ScheduleConfig
from sonorant.codec.diffusion_unet import BottleneckName, UNetConfig
from sonorant.codec.multiband_diffusion import (
    BandConfig,
    DiffusionBand,
    MultiBandDiffusion,
    MultiBandDiffusionConfig,
)
from sonorant.errors import CheckpointError, ConfigError, DependencyError
from sonorant.hub.keys import KeyMap, misfits, summary
from sonorant.hub.pickled_config import read_pickle_with_configs
from sonorant.hub.table import ModelEntry
from sonorant.model import SkipInitialization

# The codec and how many of its codebooks each published model was trained on.
PUBLISHED = {
    "mbd_comp_2": ("encodec_24khz", 2),
    "mbd_comp_4": ("encodec_24khz", 4),
    "mbd_comp_8": ("encodec_24khz", 8),
    "mbd_musicgen_32khz": ("encodec_32khz", 4),
}
PUBLISHED_LATENTS = 128
"""Numbers in a latent of both of these codecs (dimension in their configs)."""

# Ours, and theirs, of the fields that mean the same.
_SAME_UNET_FIELDS = (
    "hidden",
    "depth",
    "growth",
    "max_channels",
    "kernel",
    "stride",
    "res_blocks",
    "norm_groups",
    "dropout",
)
_BUFFERS = {
    "sounds": "counts",
    "sum": "sum_x",
    "sum_square": "sum_x2",
    "noise_sum_square": "sum_target_x2",
}
_FILTERS = "split_bands.lowpass.filters"  # follow from the config, and are computed here


class _PublishedUNet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `diffusion_unet`; the defaults are those of its public config."""

    hidden: int = 48
    depth: int = 4
    res_blocks: int = 1
    norm_groups: int = 4
    kernel: int = 8
    stride: int = 4
    growth: float = 4.0
    max_channels: int = 10_000
    dropout: float = 0.0
    emb_all_layers: bool = True
    bilstm: bool = False
    codec_dim: int | None = None
    transformer: bool = False
    cross_attention: bool = False

    @property
    def bottleneck(self) -> BottleneckName:
        if self.bilstm and self.transformer:
            raise CheckpointError("a network with both an LSTM and a transformer is unknown")
        if self.transformer:
            return "cross_attention" if self.cross_attention else "transformer"
        return "lstm" if self.bilstm else "none"


class _PublishedSchedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The section `schedule`."""

    beta_t0: float
    beta_t1: float
    num_steps: int
    beta_exp: float = 1.0
    variance: str = "beta"
    clip: float | None = 5.0
    rescale: float = 1.0
    noise_scale: float = 1.0
    repartition: str = "power"
    n_bands: int | None = None
    alpha_sigmoid: dict[str, Any] = {}

    def __post_init__(self) -> None:
        if self.repartition != "power" or self.n_bands is not None:
            raise CheckpointError(
                f"a schedule of the kind {self.repartition!r} with n_bands {self.n_bands} is "
                "unknown; the published ones are 'power' without"
            )


class _PublishedEqualizer(msgspec.Struct, frozen=True):
    """The section `processor`."""

    use: bool = False
    name: str = "multi_band_processor"
    n_bands: int = 8
    num_samples: int = 10_000
    power_std: float = 1.0


class _PublishedBand(msgspec.Struct, frozen=True):
    """The parts of a band's config that matter here; the rest is about its training."""

    schedule: _PublishedSchedule
    diffusion_unet: _PublishedUNet = _PublishedUNet()
    channels: int = 1
    processor: _PublishedEqualizer = _PublishedEqualizer()


def band_config(published: Mapping[str, Any]) -> BandConfig:
    """Our config of one band from its published one, as plain data.

    Raises: CheckpointError for a field that is missing, unknown or of the wrong kind.
    """
    try:
        band = msgspec.convert(dict(published), _PublishedBand, strict=False)
        unet, schedule, equalizer = band.diffusion_unet, band.schedule, band.processor
        same = {name: getattr(unet, name) for name in _SAME_UNET_FIELDS}
        return BandConfig(
            unet=UNetConfig(
                channels=band.channels,
                condition_dimension=unet.codec_dim,
                steps=schedule.num_steps,
                step_at_every_level=unet.emb_all_layers,
                bottleneck=unet.bottleneck,
                **same,
            ),
            schedule=_schedule_config(schedule),
            equalizer=_equalizer_config(equalizer) if equalizer.use else None,
        )
    except (msgspec.ValidationError, ConfigError) as error:
        raise CheckpointError(f"not a published diffusion config: {error}") from error


def _schedule_config(published: _PublishedSchedule) -> ScheduleConfig:
    fields = {
        "steps": published.num_steps,
        "first_beta": published.beta_t0,
        "last_beta": published.beta_t1,
        "power": published.beta_exp,
        "clip": published.clip or None,
        "rescale": published.rescale,
        "noise_scale": published.noise_scale,
        "variance": published.variance,
    }
    return msgspec.convert(fields, ScheduleConfig)


def _equalizer_config(published: _PublishedEqualizer) -> EqualizerConfig:
    return EqualizerConfig(
        bands=published.n_bands, power=published.power_std, sounds=published.num_samples
    )


def published_config(config: BandConfig) -> dict[str, Any]:
    """The published config, as plain data, of one of our bands."""
    unet, schedule, equalizer = config.unet, config.schedule, config.equalizer
    transformer = unet.bottleneck in ("transformer", "cross_attention")
    return {
        "channels": unet.channels,
        "diffusion_unet": {name: getattr(unet, name) for name in _SAME_UNET_FIELDS}
        | {
            "emb_all_layers": unet.step_at_every_level,
            "bilstm": unet.bottleneck == "lstm",
            "codec_dim": unet.condition_dimension,
            "transformer": transformer,
            "cross_attention": unet.bottleneck == "cross_attention",
        },
        "schedule": {
            "repartition": "power",
            "beta_t0": schedule.first_beta,
            "beta_t1": schedule.last_beta,
            "beta_exp": schedule.power,
            "num_steps": schedule.steps,
            "variance": schedule.variance,
            "clip": schedule.clip or 0.0,
            "rescale": schedule.rescale,
            "noise_scale": schedule.noise_scale,
            "n_bands": None,
        },
        "processor": {
            "name": "multi_band_processor",
            "use": equalizer is not None,
            **(
                {}
                if equalizer is None
                else {
                    "n_bands": equalizer.bands,
                    "num_samples": equalizer.sounds,
                    "power_std": equalizer.power,
                }
            ),
        },
    }


def _network_keys(config: UNetConfig) -> KeyMap:
    """Their names and ours of a network's tensors."""
    layer, ours = "transformer.layers.{n}.", "bottleneck.transformer.layers.{n}."
    later_levels = [
        (f"embeddings.{level - 1}.weight", f"step_embeddings.{level}.weight")
        for level in range(1, config.depth)
    ]
    return KeyMap(
        [
            ("encoders.{n}.res_blocks.{rest}", "encoder.{n}.blocks.{rest}"),
            ("encoders.{n}.{rest}", "encoder.{n}.{rest}"),
            ("decoders.{n}.res_blocks.{rest}", "decoder.{n}.blocks.{rest}"),
            ("decoders.{n}.convtr.weight", "decoder.{n}.conv.weight"),
            ("decoders.{n}.norm.{rest}", "decoder.{n}.norm.{rest}"),
            ("embedding.weight", "step_embeddings.0.weight"),
            *later_levels,
            ("conv_codec.{rest}", "condition.{rest}"),
            ("bilstm.lstm.{rest}", "bottleneck.lstm.{rest}"),
            ("bilstm.linear.{rest}", "bottleneck.linear.{rest}"),
            (layer + "self_attn.mha.in_proj_weight", ours + "attention.in_proj.weight"),
            (layer + "self_attn.mha.out_proj.weight", ours + "attention.out_proj.weight"),
            (layer + "linear1.weight", ours + "feed_forward.linear_in.weight"),
            (layer + "linear2.weight", ours + "feed_forward.linear_out.weight"),
            (layer + "norm1.{rest}", ours + "attention_norm.{rest}"),
            (layer + "norm2.{rest}", ours + "feed_forward_norm.{rest}"),
            (layer + "norm_cross.{rest}", ours + "cross_norm.{rest}"),
            # Queries, keys and values in one tensor; parted and joined below.
            (layer + "cross_attention.mha.in_proj_weight", ours + _JOINED_PROJECTION),
            (
                layer + "cross_attention.mha.out_proj.weight",
                ours + "cross_attention.out_proj.weight",
            ),
        ]
    )


_JOINED_PROJECTION = "cross_attention.in_proj.weight"
_PARTED_PROJECTIONS = ("cross_attention.query_proj.weight", "cross_attention.memory_proj.weight")


def _join_projections(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    query, memory = _PARTED_PROJECTIONS
    joined = {}
    for name, tensor in tensors.items():
        if name.endswith(query):
            prefix = name.removesuffix(query)
            joined[prefix + _JOINED_PROJECTION] = torch.cat([tensor, tensors[prefix + memory]])
        elif not name.endswith(memory):
            joined[name] = tensor
    return joined


def _part_projections(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parted = {}
    for name, tensor in tensors.items():
        if name.endswith(_JOINED_PROJECTION):
            prefix, width = name.removesuffix(_JOINED_PROJECTION), tensor.shape[-1]
            for part, piece in zip(
                _PARTED_PROJECTIONS, (tensor[:width], tensor[width:]), strict=True
            ):
                parted[prefix + part] = piece
        else:
            parted[name] = tensor
    return parted


def published_tensors(band: DiffusionBand) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A band's `model_state` and `processor_state`, without the equaliser's filters."""
    own = _join_projections({k: v.detach() for k, v in band.unet.state_dict().items()})
    names = _network_keys(band.config.unet).to_theirs(own)
    network = {theirs: own[ours] for ours, theirs in names.items()}
    if band.equalizer is None:
        return network, {}
    levels = band.equalizer.state_dict()
    return network, {theirs: levels[ours] for ours, theirs in _BUFFERS.items()}


def band_tensors(
    band: DiffusionBand, network: Mapping[str, Tensor], equalizer: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Our state dict of a band from its `model_state` and `processor_state`.

    Raises: CheckpointError naming what is missing, left over or of another shape.
    """
    equalizer = {name: tensor for name, tensor in equalizer.items() if name != _FILTERS}
    for found, expected in zip((network, equalizer), published_tensors(band), strict=True):
        _check(found, expected)
    names = _network_keys(band.config.unet).to_ours(network)
    own = _part_projections({names[theirs]: tensor for theirs, tensor in network.items()})
    tensors = {f"unet.{name}": tensor for name, tensor in own.items()}
    if band.equalizer is not None:
        tensors |= {f"equalizer.{ours}": equalizer[theirs] for ours, theirs in _BUFFERS.items()}
    return tensors


def _check(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    problems = {
        "missing": expected.keys() - found.keys(),
        "unexpected": found.keys() - expected.keys(),
        "not tensors": [name for name, value in found.items() if not isinstance(value, Tensor)],
    }
    if not any(problems.values()):
        problems["of another shape"] = misfits(expected, found)
    told = "; ".join(f"{word}: {summary(names)}" for word, names in problems.items() if names)
    if told:
        raise CheckpointError(f"a band does not fit its config ({told})")


def load_original(
    files: Sequence[Path], entry: ModelEntry
) -> tuple[MultiBandDiffusionConfig, dict[str, Tensor]]:
    """Config and tensors, by our names, of a published file.

    Raises: CheckpointError if the file is damaged or holds something else.
    """
    content = read_pickle_with_configs(files[0])
    codec, codebooks = PUBLISHED[entry.name]
    try:
        config, tensors = _read_bands(content, codec, codebooks)
    except CheckpointError as error:
        raise CheckpointError(f"{files[0]} is no published diffusion model: {error}") from error
    dimension = config.bands[0].unet.condition_dimension
    if dimension != PUBLISHED_LATENTS:
        warnings.warn(
            f"{files[0]} was trained on another codec than {codec}: on latents of {dimension} "
            f"numbers, not {PUBLISHED_LATENTS}; this layout does not say which, ours does",
            stacklevel=2,
        )
    return config, tensors


class _PublishedFile(msgspec.Struct, frozen=True):
    """The numbers beside the bands."""

    sample_rate: Annotated[int, msgspec.Meta(ge=1)]
    n_bands: Annotated[int, msgspec.Meta(ge=1, le=64)]


class _PublishedParts(msgspec.Struct, frozen=True):
    """One band."""

    cfg: dict[str, Any]
    model_state: dict[str, Any]
    processor_state: dict[str, Any]


def _read_bands(
    content: Any, codec: str, codebooks: int
) -> tuple[MultiBandDiffusionConfig, dict[str, Tensor]]:
    try:
        numbers = {key: content[key] for key in ("sample_rate", "n_bands")}
        stated = msgspec.convert(numbers, _PublishedFile)
        parts = [msgspec.convert(content[i], _PublishedParts) for i in range(stated.n_bands)]
    except (msgspec.ValidationError, LookupError, TypeError) as error:
        raise CheckpointError(f"its parts are not where they belong ({error})") from error
    tensors: dict[str, Tensor] = {}
    bands = []
    for index, part in enumerate(parts):
        bands.append(band_config(part.cfg))
        with SkipInitialization():
            band = DiffusionBand(bands[-1], stated.sample_rate)
        own = band_tensors(band, part.model_state, part.processor_state)
        tensors |= {f"bands.{index}.{name}": tensor for name, tensor in own.items()}
    try:
        config = MultiBandDiffusionConfig(
            codec=codec, codebooks=codebooks, sample_rate=stated.sample_rate, bands=tuple(bands)
        )
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return config, tensors


def export_original(model: MultiBandDiffusion, folder: Path) -> None:
    """Write `MODEL.pt`, which AudioCraft loads.

    Raises: DependencyError without OmegaConf, whose objects the layout holds; CheckpointError if
    the file cannot be written.
    """
    try:
        from omegaconf import OmegaConf
    except ImportError as error:
        raise DependencyError(
            "this layout holds OmegaConf's objects; pip install omegaconf"
        ) from error
    content: dict[Any, Any] = {"sample_rate": model.sample_rate, "n_bands": len(model.bands)}
    for index, band in enumerate(model.bands):
        assert isinstance(band, DiffusionBand)
        network, equalizer = published_tensors(band)
        if band.equalizer is not None:
            equalizer[_FILTERS] = band.equalizer.filters()
        content[index] = {
            "cfg": OmegaConf.create(published_config(band.config)),
            "model_state": network,
            "processor_state": equalizer,
        }
    write_pickle(content, folder / f"{(model.name or model.system).split('/')[-1]}.pt")
