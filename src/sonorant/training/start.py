"""Where the weights of a training start."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from sonorant.errors import ConfigError
from sonorant.model import Model

AnyModel = TypeVar("AnyModel", bound=Model)


def first_model(kind: type[AnyModel], config: msgspec.Struct, start: str | None) -> AnyModel:
    """A model with fresh weights, or the one in the folder `start` to train on.

    Raises: ConfigError if that one has another config; as `load`.
    """
    if start is None:
        return kind(config)
    model = kind.from_pretrained(start)
    if model.config != config:
        raise ConfigError(
            f"{start} has another config than the recipe's model; copy the one from its config.json"
        )
    model.name = None
    return model.train()
