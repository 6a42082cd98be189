"""A bag: several separators whose weighted mean is better than each, or one for each source.

Source: Demucs for the 2021 challenge (arXiv 2111.03600, section 4.3) and its package, where every
network has a weight for every source; 0 where it has nothing to say about it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec
import torch
from torch import Tensor, nn

from sonorant.errors import ConfigError
from sonorant.hub.table import known, resolve
from sonorant.separation.separator import Part, Separator


class MemberConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A network of a bag: its system, as the table of systems calls it, and its config."""

    system: str
    config: dict[str, Any]


class BagConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Networks, and weights[member][source] of each for each source.

    Raises: ConfigError for weights that do not fit.
    """

    members: tuple[MemberConfig, ...]
    weights: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.members or len(self.weights) != len(self.members):
            raise ConfigError(
                f"a bag needs one row of weights for each of its {len(self.members)} networks, "
                f"got {len(self.weights)}"
            )
        if len({len(row) for row in self.weights}) != 1:
            raise ConfigError("the rows of weights of a bag differ in length")
        columns = list(zip(*self.weights, strict=True))
        if not all(0 <= weight < math.inf for column in columns for weight in column):
            raise ConfigError("the weights of a bag must be finite and not negative")
        if not all(sum(column) > 0 for column in columns):
            raise ConfigError("in a bag every source needs a network with a weight above 0")


class Bag(Separator):
    """Several separators as one.

    Shape: mix [batch, channels, time] -> [batch, sources, channels, time].
    networks: those of the config, where they are there already; None makes them.
    Raises: ConfigError if they differ in sources, rate or channels.
    """

    system: ClassVar[str] = "separation_bag"
    config_type: ClassVar[type[msgspec.Struct]] = BagConfig
    config: BagConfig

    def __init__(self, config: BagConfig, networks: Sequence[Separator] | None = None) -> None:
        super().__init__(config)
        self.members = nn.ModuleList(networks or map(_built, config.members))
        networks = self._networks()
        first = networks[0]
        self.sources = first.sources
        self.sample_rate = first.sample_rate
        self.audio_channels = first.audio_channels
        self.segment_samples = max(network.segment_samples for network in networks)
        for network in networks[1:]:
            for fact in ("sources", "sample_rate", "audio_channels"):
                if getattr(network, fact) != getattr(first, fact):
                    raise ConfigError(
                        f"the networks of a bag differ in {fact}: {getattr(first, fact)} and "
                        f"{getattr(network, fact)}"
                    )
        if len(config.weights[0]) != len(self.sources):
            raise ConfigError(
                f"the bag has weights for {len(config.weights[0])} sources, its networks have "
                f"{', '.join(self.sources)}"
            )

    @property
    def longest_samples(self) -> int | None:
        limits = [network.longest_samples for network in self._networks()]
        return min((limit for limit in limits if limit is not None), default=None)

    def valid_length(self, samples: int) -> int:
        return max(network.valid_length(samples) for network in self._networks())

    def parts(self) -> list[Part]:
        return [
            Part(network, weights)
            for network, weights in zip(self._networks(), self.config.weights, strict=True)
        ]

    def forward(self, mix: Tensor) -> Tensor:
        weights = mix.new_tensor(self.config.weights)
        shares = (weights / weights.sum(dim=0))[..., None, None]
        outputs = [network(mix) for network in self.members]
        return torch.stack([a * b for a, b in zip(shares, outputs, strict=True)]).sum(dim=0)

    def _networks(self) -> list[Separator]:
        return [member for member in self.members if isinstance(member, Separator)]


def bag_of(
    networks: Sequence[Separator], weights: tuple[tuple[float, ...], ...] | None = None
) -> Bag:
    """A bag of separators that are there already; None weighs all the same.

    Raises: as `BagConfig` and `Bag`.
    """
    members = tuple(
        MemberConfig(network.system, msgspec.to_builtins(network.config)) for network in networks
    )
    equal = tuple((1.0,) * len(network.sources) for network in networks)
    return Bag(BagConfig(members=members, weights=weights or equal), networks).eval()


def _built(member: MemberConfig) -> Separator:
    found: type = resolve(known().system(member.system).class_)
    if not issubclass(found, Separator) or found is Bag:
        raise ConfigError(f"a bag cannot hold a model of the system {member.system!r}")
    try:
        return found(msgspec.convert(member.config, found.config_type))
    except msgspec.ValidationError as error:
        raise ConfigError(f"a bag's {member.system}: {error}") from error
