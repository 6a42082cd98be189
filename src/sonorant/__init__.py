"""Sonorant: neural audio as streams of tokens.

Attributes are imported on first use, so that `import sonorant` stays quick and loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sonorant.audio import Audio, blocks, read, write
    from sonorant.errors import SonorantError
    from sonorant.model import Model, load

__version__ = "0.1.0"

_HOMES = {
    "Audio": "sonorant.audio",
    "blocks": "sonorant.audio",
    "read": "sonorant.audio",
    "write": "sonorant.audio",
    "SonorantError": "sonorant.errors",
    "Model": "sonorant.model",
    "load": "sonorant.model",
}
__all__ = ["Audio", "Model", "SonorantError", "blocks", "load", "read", "write"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sonorant' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
