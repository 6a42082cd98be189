"""Tracks without stems: the detector, the extracts it finds, and the weak loss on their remix."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from sonorant.errors import ConfigError
from sonorant.model import load
from sonorant.separation import remix
from sonorant.separation.silence_detector import (
    DetectorConfig,
    DetectorTask,
    SilenceDetector,
    is_silent,
    silence_some,
    threshold_for,
    thresholds_of,
)
from sonorant.training.engine import train
from sonorant.training.recipe import Recipe, TrainingConfig
from tests.separation.songs import RATE, write_manifest
from tests.separation.test_training import run
from tests.training.runs import log_lines

SMALL = {
    "sources": ["drums", "bass"],
    "sample_rate": RATE,
    "channels": 4,
    "depth": 3,
}


def test_a_source_20_db_below_the_mixture_is_silent() -> None:
    loud, quiet = torch.ones(2, 100), torch.full((2, 100), 0.05)
    stems = torch.stack([torch.stack([loud, quiet]), torch.stack([loud, 4 * quiet])])
    assert is_silent(stems).tolist() == [[False, True], [False, False]]


def test_a_threshold_keeps_the_precision_asked_for() -> None:
    probabilities = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    silent = torch.tensor([True, True, False, True, False])
    assert threshold_for(probabilities, silent, 1.0) == pytest.approx(0.8)
    assert threshold_for(probabilities, silent, 0.75) == pytest.approx(0.6)
    with pytest.raises(ConfigError, match="no threshold"):
        threshold_for(probabilities, ~silent, 1.0)


def test_thresholds_of_a_precision_come_from_validation_songs(tmp_path: Path) -> None:
    songs = write_manifest(tmp_path)
    detector = SilenceDetector(DetectorConfig(**SMALL)).eval()
    found = thresholds_of(detector, songs, precision=0.2, seconds=0.5, extracts=64)
    assert found.keys() == {"drums", "bass"}
    assert found == thresholds_of(detector, songs, precision=0.2, seconds=0.5, extracts=64)
    assert all(0 < threshold < 1 for threshold in found.values())
    higher = thresholds_of(detector, songs, precision=0.4, seconds=0.5, extracts=64)
    assert all(higher[source] >= found[source] for source in found)
    with pytest.raises(ConfigError, match="a length of nan"):
        thresholds_of(detector, songs, precision=0.2, seconds=float("nan"))
    with pytest.raises(ConfigError, match="precision of 1"):
        thresholds_of(detector, songs, precision=1.1, seconds=0.5, extracts=8)


def test_stems_are_silenced_as_often_as_asked() -> None:
    torch.manual_seed(0)
    gains = silence_some(torch.ones(500, 2, 1, 1), 0.5).flatten()
    changed = gains[gains != 1]
    assert len(changed) == pytest.approx(500, abs=60)
    assert float(changed.max()) <= 0.1
    assert 0.3 < float((changed == 0).float().mean()) < 0.7


def test_the_detector_learns_what_is_missing(tmp_path: Path) -> None:
    songs = tones(tmp_path)
    recipe = Recipe(
        task="sonorant.separation.silence_detector:DetectorTask",
        training=TrainingConfig(
            steps=60, batch_size=8, device="cpu", log_every=10, evaluate_every=0
        ),
        settings={
            "songs": str(songs),
            "detector": SMALL,
            "segment_seconds": 0.3,
            "augmentation": {"shift_samples": 0, "remix_group": 4},
            "learning_rate": 1e-2,
        },
    )
    train(recipe, tmp_path / "run")
    accuracies = [
        value
        for line in log_lines(tmp_path / "run")
        for key, value in line.items()
        if key.endswith("accuracy")
    ]
    assert accuracies[-1] > 0.9 > accuracies[0]
    detector = load(tmp_path / "run" / "model")
    assert isinstance(detector, SilenceDetector)
    found = list(remix.find_silent(detector, [tmp_path / "bass1.wav"], 0.3, {"drums": 0.8}))
    assert found
    assert {each.source for each in found} == {"drums"}


def tones(folder: Path) -> Path:
    from tests.separation.test_training import two_tones

    return two_tones(folder)


def test_validation_counts_silence(tmp_path: Path) -> None:
    songs = write_manifest(tmp_path)
    task = DetectorTask(
        DetectorTask.Settings(songs=str(songs), detector=DetectorConfig(**_tuples()))
    )
    stems = torch.randn(2, 2, 2, 600)
    stems[:, 1] = 0
    assert float(task.evaluate(stems)["silent"]) == 0.5


def _tuples() -> dict[str, object]:
    return {**SMALL, "sources": ("drums", "bass")}


def test_the_weak_loss_knows_the_added_source_and_the_sum_of_the_others() -> None:
    torch.manual_seed(0)
    added, rests = torch.randn(2, 2, 50), torch.randn(2, 2, 50)
    estimates = torch.randn(2, 4, 2, 50)
    estimates[0, 2], estimates[1, 0] = added[0], added[1]
    others: Tensor = estimates.sum(1) - torch.stack([added[0], added[1]])
    estimates[0, 1] += rests[0] - others[0]
    estimates[1, 3] += rests[1] - others[1]
    assert float(remix.weak_loss(estimates, added, rests, [2, 0])) == pytest.approx(0, abs=1e-5)
    # How the rest is shared among the others is free; leaving it out is not.
    estimates[0, 0] += 1
    estimates[0, 1] -= 1
    assert float(remix.weak_loss(estimates, added, rests, [2, 0])) == pytest.approx(0, abs=1e-5)
    assert float(remix.weak_loss(estimates, added, rests + 1, [2, 0])) == pytest.approx(1, abs=1e-4)


def extracts_file(folder: Path, **others: object) -> Path:
    noise = np.random.default_rng(0).standard_normal((2 * RATE, 2)) * 0.1
    soundfile.write(folder / "track.wav", noise, RATE)
    fields = {"path": str(folder / "track.wav"), "source": "drums", "start_seconds": 0.5}
    fields |= {"seconds": 1.0, "probability": 0.99, "std": 0.07} | others
    path = folder / "silent.jsonl"
    remix.write_extracts(path, [remix.SilentExtract(**fields)])
    return path


def test_remixed_tracks_join_a_run(tmp_path: Path) -> None:
    songs, path = write_manifest(tmp_path), extracts_file(tmp_path)
    run(tmp_path / "run", songs, 2, silenced={"extracts": str(path), "items": 2})
    keys = {key for line in log_lines(tmp_path / "run") for key in line}
    assert any(key.endswith("weak") for key in keys)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"source": "choir"}, "no source 'choir'"), ({"seconds": 0.2}, "are shorter than")],
)
def test_refuses_extracts_that_do_not_fit(
    tmp_path: Path, wrong: dict[str, object], told: str
) -> None:
    songs, path = write_manifest(tmp_path), extracts_file(tmp_path, **wrong)
    with pytest.raises(ConfigError, match=told):
        run(tmp_path / "run", songs, 1, silenced={"extracts": str(path)})
