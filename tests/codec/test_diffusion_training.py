"""Training of Multi-Band Diffusion: it learns, resumes exactly, and its bands can be parted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from accelerate import Accelerator

import sonorant
from sonorant.cli.train import SHORT_NAMES
from sonorant.codec.diffusion_bands import EqualizerConfig
from sonorant.codec.diffusion_schedule import ScheduleConfig
from sonorant.codec.diffusion_training import DiffusionSettings, DiffusionTask
from sonorant.codec.diffusion_unet import UNetConfig
from sonorant.codec.multiband_diffusion import BandConfig, MultiBandDiffusion, join_bands
from sonorant.data.dataset import SegmentConfig
from sonorant.errors import ConfigError
from sonorant.training.engine import train
from sonorant.training.recipe import Recipe, TrainingConfig, load_recipe
from sonorant.training.task import StepContext
from tests.codec import test_training as codec_training
from tests.codec.test_multiband_diffusion import RATE, codec
from tests.training.runs import assert_equal_states, final_state, log_lines

manifest = codec_training.manifest
RECIPES = Path(__file__).parents[2] / "recipes"
UNET = UNetConfig(hidden=8, depth=2, growth=2, steps=40)
SCHEDULE = ScheduleConfig(steps=40, first_beta=1e-3, last_beta=0.3, power=2.0)
PLAIN = BandConfig(unet=UNET, schedule=SCHEDULE)
EQUALISED = BandConfig(unet=UNET, schedule=SCHEDULE, equalizer=EqualizerConfig(bands=2, sounds=6))


@pytest.fixture
def settings(manifest: Path, tmp_path: Path) -> DiffusionSettings:
    codec().save_pretrained(tmp_path / "codec")
    return DiffusionSettings(
        manifest=str(manifest),
        codec=str(tmp_path / "codec"),
        bandwidth_kbps=1.6,
        bands=(PLAIN, EQUALISED),
        segments=SegmentConfig(sample_rate=RATE, segment_seconds=0.1),
        valid_items=4,
        sounds=1,
        calls=3,
        learning_rate=5e-3,
    )


def recipe(settings: DiffusionSettings, **training: Any) -> Recipe:
    numbers = {"steps": 6, "batch_size": 2, "device": "cpu", "average_decay": 0.9, **training}
    return Recipe(
        task="multiband_diffusion",
        training=TrainingConfig(**numbers),
        settings=msgspec.to_builtins(settings),
    )


def losses(folder: Path, kind: str) -> list[dict[str, float]]:
    return [line for line in log_lines(folder) if line["kind"] == kind]


@pytest.mark.slow
def test_every_band_learns_to_tell_noise_from_sound(
    settings: DiffusionSettings, tmp_path: Path
) -> None:
    numbers = {"steps": 100, "batch_size": 4, "log_every": 20, "evaluate_every": 100}
    train(recipe(settings, **numbers), tmp_path / "run", short_names=SHORT_NAMES)
    lines = losses(tmp_path / "run", "train")
    for band in ("loss_band_0", "loss_band_1"):
        assert lines[-1][band] < 0.5 * lines[0][band]
    valid = losses(tmp_path / "run", "valid")[-1]
    assert max(valid["loss_band_0"], valid["loss_band_1"]) < 0.6  # 1 is that of silence
    assert {"relative_volume_codec", "relative_volume_diffusion"} <= valid.keys()
    exported = sonorant.load(tmp_path / "run" / "model")
    assert isinstance(exported, MultiBandDiffusion)
    assert exported.config.codebooks == 2


def test_resumed_training_equals_uninterrupted_bit_for_bit(
    settings: DiffusionSettings, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe(settings), whole, short_names=SHORT_NAMES)
    train(recipe(settings, steps=3), parts, short_names=SHORT_NAMES)
    train(recipe(settings), parts, resume=True, short_names=SHORT_NAMES)
    assert_equal_states(final_state(whole), final_state(parts))


def test_one_band_trains_as_it_would_beside_the_others(settings: DiffusionSettings) -> None:
    """Only its own target and figures; and what was trained apart can be joined."""
    models = []
    for only in (0, 1):
        task = DiffusionTask(msgspec.structs.replace(settings, only_band=only))
        assert list(task.make_optimizers()) == [f"band_{only}"]
        assert list(step(task)) == [f"loss_band_{only}"]
        models.append(task.diffusion)
    whole = DiffusionTask(settings)
    step(whole)
    assert join_bands(models).config == whole.diffusion.config
    alone = DiffusionTask(msgspec.structs.replace(settings, only_band=1))
    step(alone)
    with torch.no_grad():
        figures = [task.evaluate(torch.randn(2, 1, 800)) for task in (whole, alone)]
    assert {"loss_band_0", "loss_band_1", "relative_volume_diffusion"} <= figures[0].keys()
    assert list(figures[1]) == ["loss_band_1"]


def step(task: DiffusionTask) -> dict[str, Any]:
    context = StepContext(Accelerator(cpu=True), task.make_optimizers(), 1, None)
    context.begin(0, 0, seed=0)
    data = task.training_data(0)
    return dict(task.step(torch.stack([data[0], data[1]]), context))


def test_the_codec_and_the_latents_of_the_bandwidth_stay_as_they_are(
    settings: DiffusionSettings,
) -> None:
    task = DiffusionTask(settings)
    before = {name: tensor.clone() for name, tensor in task.codec.state_dict().items()}
    step(task)
    after = task.codec.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    x = torch.randn(2, 1, 800)
    tokens = task.codec.encode_batch(x, 1.6).tokens
    assert tokens.shape[1] == 2
    assert torch.equal(task.latents(x), task.codec.quantizer.decode(tokens))


def test_impossible_settings_are_refused(settings: DiffusionSettings) -> None:
    for change, told in (
        ({"only_band": 2}, "none of the 2 bands"),
        ({"bandwidth_kbps": 5.0}, "no bandwidth of 5"),
        ({"segments": SegmentConfig(sample_rate=16_000)}, "set segments.sample_rate"),
    ):
        with pytest.raises(ConfigError, match=told):
            DiffusionTask(msgspec.structs.replace(settings, **change))


@pytest.mark.parametrize("name", ["multiband-diffusion-24khz", "multiband-diffusion-small"])
def test_recipes_fit_their_task(name: str) -> None:
    found = load_recipe(RECIPES / f"{name}.yaml")
    assert SHORT_NAMES[found.task].endswith("DiffusionTask")
    read = msgspec.convert(found.settings, DiffusionSettings, strict=False)
    assert len(read.bands) == 4
