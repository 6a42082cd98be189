"""Training of separators: a run learns, resumes, keeps the best weights, and pays its penalties."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from sonorant.data.songs import song_of, write_songs
from sonorant.errors import ConfigError
from sonorant.model import load
from sonorant.separation.htdemucs import HTDemucs, HTDemucsConfig
from sonorant.separation.training import (
    Averages,
    Best,
    Network,
    OptimizerSettings,
    SeparationSettings,
    SeparationTask,
    first_model,
    make_optimizer,
)
from sonorant.training.engine import train
from sonorant.training.recipe import Recipe, TrainingConfig
from tests.separation.songs import RATE, write_manifest
from tests.training.runs import assert_equal_states, final_state, log_lines

TINY = {
    "sources": ["drums", "bass"],
    "sample_rate": RATE,
    "segment_samples": 1000,
    "filters": 8,
    "filter_samples": 20,
    "bottleneck": 8,
    "hidden": 16,
    "blocks": 2,
    "repeats": 1,
}
ADDRESS = "sonorant.separation.training:SeparationTask"


def settings(songs: Path, **others: Any) -> dict[str, Any]:
    return {
        "songs": str(songs),
        "network": {"system": "conv_tasnet", "config": TINY},
        "segment_seconds": 0.4,
        "stride_seconds": 0.1,
        "augmentation": {"shift_samples": 100, "remix_group": 2},
        "optimizer": {"learning_rate": 3e-3},
        "sounds": 0,
        **others,
    }


def run(folder: Path, songs: Path, steps: int, resume: bool = False, **others: Any) -> None:
    training = {"batch_size": 2, "device": "cpu", "log_every": 5, "evaluate_every": steps}
    training |= {"checkpoint_every": 4, "keep_checkpoints": 100} | others.pop("training", {})
    recipe = Recipe(
        task=ADDRESS,
        training=TrainingConfig(steps=steps, **training),
        settings=settings(songs, **others),
        quantization=others.pop("quantization", None),
    )
    train(recipe, folder, resume)


def two_tones(folder: Path) -> Path:
    """Songs whose sources a network tells apart by their pitch alone."""
    songs = []
    for number in range(3):
        files, random = {}, np.random.default_rng(number)
        for source, hz in (("drums", 90), ("bass", 700)):
            phase = 2 * np.pi * (hz * np.arange(2 * RATE) / RATE + random.random())
            files[source] = folder / f"{source}{number}.wav"
            soundfile.write(files[source], np.stack([np.sin(phase)] * 2, 1) * 0.3, RATE)
        songs.append(song_of(f"song{number}", "valid" if number == 0 else "train", files))
    write_songs(folder / "songs.jsonl", songs)
    return folder / "songs.jsonl"


def test_learns_to_tell_two_pitches_apart(tmp_path: Path) -> None:
    run(tmp_path / "run", two_tones(tmp_path), 60, optimizer={"learning_rate": 1e-2}, sounds=1)
    lines = log_lines(tmp_path / "run")
    valid = [line for line in lines if any(key.endswith("plain/sdr") for key in line)]
    figures = {key.removeprefix("valid/"): value for key, value in valid[-1].items()}
    assert figures["sdr_gain/drums"] > 1.5
    assert figures["sdr_gain/bass"] > 1.5
    assert load(tmp_path / "run" / "model").sources == ("drums", "bass")
    sounds = sorted(path.name for path in (tmp_path / "run" / "samples").rglob("*.wav"))
    assert sounds == ["song0_bass.wav", "song0_drums.wav"]


def test_a_resumed_run_equals_one_that_went_through(tmp_path: Path) -> None:
    songs = write_manifest(tmp_path)
    averages = {"epoch_steps": 2}
    run(tmp_path / "through", songs, 8, averages=averages)
    run(tmp_path / "cut", songs, 4, averages=averages)
    run(tmp_path / "cut", songs, 8, resume=True, averages=averages)
    through, cut = (final_state(tmp_path / name) for name in ("through", "cut"))
    # Validation came after 4 steps as well in one of them, and may have seen the best there.
    for state in (through, cut):
        del state["process-0"]["task"]["best"]
    assert_equal_states(through, cut)


def test_the_best_weights_of_all_averages_are_exported(tmp_path: Path) -> None:
    songs = write_manifest(tmp_path)
    task = SeparationTask(as_settings(songs, averages={"epoch_steps": 1, "step_decays": [0.5]}))
    assert task.bank is not None
    with torch.no_grad():
        for value in (1.0, 2.0):
            for weight in task.model.parameters():
                weight.fill_(value)
            task.bank.step()
    figures = {"plain/loss": 0.3, "step_0.5/loss": 0.2}
    task.validated(figures)
    task.validated({"plain/loss": 0.25, "step_0.5/loss": 0.4})  # not better than before
    task.export(tmp_path / "model")
    average = (2 + 0.5 * 1) / 1.5
    for weight in load(tmp_path / "model").parameters():
        torch.testing.assert_close(weight, torch.full_like(weight, average))
    assert all(bool((weight == 2).all()) for weight in task.model.parameters())


def test_by_sdr_the_highest_is_best(tmp_path: Path) -> None:
    songs = write_manifest(tmp_path)
    task = SeparationTask(as_settings(songs, averages={"epoch_steps": 9}, by_sdr=True))
    for sdr in (1.0, 3.0, 2.0):
        task.validated({"plain/sdr": sdr})
    assert task.best.worse == -3.0


def as_settings(songs: Path, **others: Any) -> SeparationSettings:
    from sonorant.training.recipe import convert_section

    return convert_section(settings(songs, **others), SeparationSettings, "test")


def test_sources_weigh_in_validation_as_in_the_loss(tmp_path: Path) -> None:
    songs = write_manifest(tmp_path)
    only = SeparationTask(as_settings(songs, loss={"sources": [0.0, 1.0]}))
    mix, stems = torch.ones(2, 400), torch.stack([torch.full((2, 400), 0.25), torch.ones(2, 400)])
    only._separated = lambda mix: torch.stack([mix, 0.9 * mix])  # type: ignore[method-assign]
    figures = only._figures_of(mix, stems, "plain")
    assert figures["plain/loss"] == pytest.approx(0.1, abs=1e-5)
    assert figures["plain/sdr"] == pytest.approx(20, abs=1e-3)
    assert figures["sdr/bass"] == pytest.approx(20, abs=1e-3)


def test_averages_count_steps_not_their_parts(tmp_path: Path) -> None:
    songs = write_manifest(tmp_path)
    counts = []
    for parts in (1, 3):
        training = {"accumulate": parts}
        averages = {"epoch_steps": 2, "step_decays": [0.9]}
        run(tmp_path / str(parts), songs, 4, training=training, averages=averages)
        state = final_state(tmp_path / str(parts))["process-0"]["task"]["bank"]
        counts.append({name: float(average["count"]) for name, average in state.items()})
    assert counts[0] == counts[1]


def test_two_kinds_of_averages_exclude_each_other(tmp_path: Path) -> None:
    songs = write_manifest(tmp_path)
    with pytest.raises(ConfigError, match="averages of their own"):
        run(
            tmp_path / "run",
            songs,
            2,
            training={"average_decay": 0.9},
            averages={"epoch_steps": 1},
        )


@pytest.mark.parametrize(
    ("loss", "message"),
    [({"l1": 0}, "the loss is nothing"), ({"sources": [0.0, 0.0]}, "one source or more")],
)
def test_a_loss_of_nothing_is_refused(tmp_path: Path, loss: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_settings(tmp_path / "songs.jsonl", loss=loss)


def test_the_penalty_on_singular_values_shrinks_them(tmp_path: Path) -> None:
    songs = write_manifest(tmp_path)

    def largest(name: str, **others: Any) -> float:
        run(tmp_path / name, songs, 10, **others)
        weights = load(tmp_path / name / "model").parameters()
        matrices = [weight.detach().flatten(1) for weight in weights if weight.ndim > 1]
        return max(float(torch.linalg.matrix_norm(matrix, 2)) for matrix in matrices)

    heavy = {"weight": 10.0, "min_size_mb": 0.0}
    assert largest("penalised", weight_penalty=heavy) < largest("free")


def test_weights_of_few_bits_are_learned_with_the_recipes_switch(tmp_path: Path) -> None:
    songs = write_manifest(tmp_path)
    recipe = Recipe(
        task=ADDRESS,
        training=TrainingConfig(steps=2, batch_size=2, device="cpu", evaluate_every=2),
        settings=settings(songs),
        quantization=_small_diffq(),
    )
    train(recipe, tmp_path / "run")
    assert any("size_mb/model" in str(line) for line in log_lines(tmp_path / "run"))
    assert load(tmp_path / "run" / "model").sources == ("drums", "bass")
    averaged = Recipe(
        task=ADDRESS,
        training=recipe.training,
        settings=settings(songs, averages={"epoch_steps": 1}),
        quantization=recipe.quantization,
    )
    with pytest.raises(ConfigError, match="averages are not kept"):
        train(averaged, tmp_path / "averaged")


def _small_diffq() -> Any:
    from sonorant.quantization import Choice
    from sonorant.training.quantization import DiffQSettings

    return DiffQSettings(choice=Choice(min_size_mb=0.0001))


def test_networks_that_do_not_pad_get_longer_extracts(tmp_path: Path) -> None:
    config = {"sources": ["drums", "bass"], "sample_rate": RATE, "channels": 4, "depth": 2}
    network = {"system": "demucs_v2", "config": config}
    songs = write_manifest(tmp_path)
    task = SeparationTask(as_settings(songs, network=network, to_valid_length=True))
    model = task.model
    assert task.extracts.samples == model.valid_length(800) + 100
    assert model(torch.zeros(1, 2, task.extracts.samples - 100)).shape[-1] >= 800


def test_the_transformer_has_numbers_of_its_own() -> None:
    config = HTDemucsConfig(n_fft=256, depth=2, channels=8, segment_seconds=0.1)
    model = HTDemucs(config)
    optimizer = make_optimizer(
        model,
        OptimizerSettings(
            decoupled=True, transformer_learning_rate=1e-4, transformer_weight_decay=0.05
        ),
    )
    outside, inside = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (outside["lr"], outside["weight_decay"]) == (3e-4, 0.0)
    assert (inside["lr"], inside["weight_decay"]) == (1e-4, 0.05)
    assert len(inside["params"]) == len(list(model.crosstransformer.parameters()))
    assert len(outside["params"]) + len(inside["params"]) == len(list(model.parameters()))


def test_training_goes_on_from_a_model(tmp_path: Path) -> None:
    model = first_model(Network(system="conv_tasnet", config=TINY))
    model.save_pretrained(tmp_path)
    again = first_model(Network(model=str(tmp_path)))
    for old, new in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(old, new)


def test_refuses_networks_that_are_none() -> None:
    with pytest.raises(ConfigError, match="either a `system`"):
        Network()
    with pytest.raises(ConfigError, match=r"network\.config"):
        first_model(Network(system="conv_tasnet", config={"colour": "blue"}))
    with pytest.raises(ConfigError, match="not one separating network"):
        first_model(Network(system="encodec"))


def test_best_leaves_a_model_alone_until_it_has_weights() -> None:
    layer, best = nn.Linear(2, 2), Best()
    before = layer.weight.clone()
    with best.applied(layer):
        assert torch.equal(layer.weight, before)


def test_defaults_of_the_averages_are_the_published_ones() -> None:
    averages = Averages(epoch_steps=1)
    assert averages.step_decays == (0.9995, 0.9999)
    assert averages.epoch_decays == (0.9, 0.95)
