"""Separators as packages that the package demucs reads (`demucs --repo FOLDER -n NAME`)."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import torch
import yaml

from sonorant.errors import CheckpointError, ConfigError
from sonorant.quantization.published import PICKLE
from sonorant.separation.checkpoints import TRANSLATIONS, Translation
from sonorant.separation.packages import CLASSES
from sonorant.separation.separator import Separator


def export_official(model: Separator, folder: Path) -> None:
    """Write the networks as packages SIGNATURE-DIGEST.th, and the bag NAME.yaml that names them.

    Raises: ConfigError for a network that the package does not have; CheckpointError if the folder
    cannot be written.
    """
    parts = model.parts()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        signatures = [_write_package(part.model, folder) for part in parts]
        bag = {"models": signatures, "weights": [list(part.weights) for part in parts]}
        name = Path(model.name or model.system).name
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(bag, default_flow_style=None))
    except OSError as error:
        raise CheckpointError(f"cannot export to {folder}: {error}") from error


def _write_package(model: Separator, folder: Path) -> str:
    """Returns the signature, of the weights."""
    translation = _translation_of(model)
    tensors = {name: tensor.detach().cpu() for name, tensor in model.saved_tensors().items()}
    signature = model.checksum()
    content = {
        "klass": CLASSES[translation.published],
        "args": (),
        "kwargs": translation.arguments(model.config),
        "state": tensors,
        "training_args": {},
    }
    with tempfile.TemporaryDirectory(prefix=".export", dir=folder) as temporary:
        part = Path(temporary) / "package"
        torch.save(content, part, pickle_module=PICKLE)
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.replace(part, folder / f"{signature}-{digest[:8]}.th")
    return signature


def _translation_of(model: Separator) -> Translation:
    for translation in TRANSLATIONS:
        if translation.system == model.system:
            return translation
    raise ConfigError(f"the package demucs has no network like {model.system}")
