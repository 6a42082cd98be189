"""The published layout of Multi-Band Diffusion, read without the library that wrote it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import sonorant
from sonorant.codec.diffusion_checkpoints import (
    band_config,
    published_config,
    published_tensors,
)
from sonorant.codec.diffusion_unet import BottleneckName, UNetConfig
from sonorant.codec.multiband_diffusion import BandConfig, DiffusionBand, MultiBandDiffusion
from sonorant.errors import CheckpointError
from tests.codec.test_multiband_diffusion import EQUALISED, PLAIN, diffusion


def content(model: MultiBandDiffusion) -> dict[Any, Any]:
    """A published file's content, with plain dicts for configs."""
    parts: dict[Any, Any] = {"sample_rate": model.sample_rate, "n_bands": len(model.bands)}
    for index, band in enumerate(model.bands):
        assert isinstance(band, DiffusionBand)
        network, equalizer = published_tensors(band)
        if band.equalizer is not None:
            equalizer["split_bands.lowpass.filters"] = band.equalizer.filters()
        parts[index] = {
            "cfg": {**published_config(band.config), "solver": "diffusion"},
            "model_state": network,
            "processor_state": equalizer,
        }
    return parts


def load(parts: dict[Any, Any], folder: Path) -> MultiBandDiffusion:
    torch.save(parts, folder / "mbd_comp_8.pt")
    loaded = sonorant.load(folder / "mbd_comp_8.pt")
    assert isinstance(loaded, MultiBandDiffusion)
    return loaded


def test_a_published_file_comes_back_as_it_was(tmp_path: Path) -> None:
    model = diffusion()
    loaded = load(content(model), tmp_path)
    assert loaded.config.bands == model.config.bands
    assert (loaded.config.codec, loaded.config.codebooks) == ("encodec_24khz", 8)
    own, theirs = model.state_dict(), loaded.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)


@pytest.mark.parametrize("bottleneck", ["none", "lstm", "transformer", "cross_attention"])
def test_every_kind_of_network_survives_the_layout(
    bottleneck: BottleneckName,
) -> None:
    unet = UNetConfig(hidden=8, depth=3, growth=2, bottleneck=bottleneck, step_at_every_level=False)
    band = BandConfig(unet=unet)
    assert band_config(published_config(band)) == band


def test_the_export_is_what_the_layout_says(tmp_path: Path) -> None:
    omegaconf = import_module("omegaconf")
    model = diffusion()
    model.export(tmp_path, "original")
    written = torch.load(tmp_path / "multiband_diffusion.pt", weights_only=False)
    assert isinstance(written[0]["cfg"], omegaconf.DictConfig)
    assert written[1]["cfg"].processor.n_bands == 2
    assert written[1]["processor_state"]["split_bands.lowpass.filters"].dim() == 3
    with pytest.warns(UserWarning, match="latents of 8 numbers, not 128; this layout does not say"):
        loaded = sonorant.load(tmp_path / "multiband_diffusion.pt", like="mbd_comp_2")
    assert loaded.config.bands == (PLAIN, EQUALISED)


def set_in(parts: dict[Any, Any], path: list[Any], value: Any) -> None:
    for key in path[:-1]:
        parts = parts[key]
    if value is None:
        del parts[path[-1]]
    else:
        parts[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (["n_bands"], None, "n_bands"),
        (["n_bands"], 3, "3|2"),
        (["n_bands"], 10**9, "n_bands|<= 64"),
        (["sample_rate"], "fast", "int"),
        ([1], None, "1"),
        ([0, "cfg"], None, "cfg"),
        ([0, "cfg", "diffusion_unet", "wings"], 2, "wings"),
        ([0, "cfg", "diffusion_unet", "hidden"], "${hidden}", "int"),
        ([0, "cfg", "diffusion_unet", "norm_groups"], 3, "norm_groups"),
        ([0, "cfg", "diffusion_unet", "transformer"], True, "both"),
        ([0, "cfg", "schedule", "repartition"], "sigmoid", "sigmoid"),
        ([0, "cfg", "schedule", "variance"], "gamma", "gamma"),
        ([0, "model_state", "conv_codec.bias"], None, "missing: conv_codec.bias"),
        ([0, "model_state", "more"], torch.zeros(1), "unexpected: more"),
        ([0, "model_state", "conv_codec.bias"], torch.zeros(3), "another shape"),
        ([0, "model_state", "conv_codec.bias"], 3.0, "not tensors"),
        ([1, "processor_state", "counts"], None, "missing: counts"),
    ],
)
def test_what_does_not_fit_is_named(path: list[Any], value: Any, told: str, tmp_path: Path) -> None:
    parts = content(diffusion())
    set_in(parts, path, value)
    with pytest.raises(CheckpointError, match=told) as caught:
        load(parts, tmp_path)
    assert "mbd_comp_8.pt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bands_of_different_shape_are_refused(tmp_path: Path) -> None:
    unet = msgspec.structs.replace(PLAIN.unet, condition_dimension=4)
    parts = content(diffusion())
    other = DiffusionBand(msgspec.structs.replace(PLAIN, unet=unet), 8000)
    network, equalizer = published_tensors(other)
    parts[1] = {
        "cfg": published_config(other.config),
        "model_state": network,
        "processor_state": equalizer,
    }
    with pytest.raises(CheckpointError, match="same channels"):
        load(parts, tmp_path)
