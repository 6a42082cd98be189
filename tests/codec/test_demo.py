"""The demo's trials: files that can be used, and figures that are those of the files."""

import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest
import torch

from sonorant.audio import info, read
from sonorant.codec import metrics
from sonorant.codec.container import ContainerReader
from sonorant.codec.demo import run_trials
from sonorant.codec.files import decompress_file
from sonorant.codec.metrics import mel_distance, si_snr
from sonorant.sample_clips import Clip, shipped_clips
from tests.codec.test_encodec import BANDWIDTHS, RATE, tiny
from tests.codec.test_files import sound_file


@pytest.fixture
def without_visqol(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    metrics._visqol_api.cache_clear()
    monkeypatch.setitem(sys.modules, "visqol", None)
    yield
    metrics._visqol_api.cache_clear()


def test_shipped_clips_are_sounds_whose_makers_are_named() -> None:
    licences = (resources.files("sonorant") / "clips" / "LICENCES.md").read_text("utf-8")
    makers = {"speech": "Linda Johnson", "music": "David Reeves", "sound": "ra_gun"}
    for clip in shipped_clips():
        assert 3 < info(clip.path).duration_seconds < 15
        assert makers[clip.name] in clip.credit
        assert makers[clip.name] in licences
    assert [clip.name for clip in shipped_clips()] == list(makers)


@pytest.mark.usefixtures("without_visqol")
def test_trials_cover_every_clip_at_every_bandwidth(tmp_path: Path) -> None:
    model = tiny()
    clips = [
        Clip(name, sound_file(tmp_path / f"{name}.wav", 2000, 2 * RATE, channels=2), "nobody")
        for name in ("one", "two")
    ]
    trials = list(run_trials(clips, model, tmp_path))
    assert [(trial.clip.name, trial.bandwidth_kbps) for trial in trials] == [
        (name, bandwidth) for name in ("one", "two") for bandwidth in BANDWIDTHS
    ]
    trial = trials[1]
    original, decoded = (read(p).to(RATE, 1) for p in (trial.clip.path, trial.decoded))
    assert ContainerReader(trial.container).header.codebooks == 2
    decompress_file(trial.container, tmp_path / "again.flac", model)
    assert torch.equal(read(tmp_path / "again.flac").samples, read(trial.decoded).samples)
    assert trial.si_snr == si_snr(original, decoded)
    assert trial.mel_distance == mel_distance(original, decoded)
    assert trial.visqol is None
    assert trial.kbps == trial.size_bytes * 8 / 1.25 / 1000
    assert trial.times_smaller == 8000 / trial.size_bytes
