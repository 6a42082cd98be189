from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

from sonorant.data.dataset import Mixing, SegmentConfig, SegmentDataset, read_segment
from sonorant.data.manifest import DOMAINS, Domain, Item
from sonorant.errors import AudioError, ConfigError

LEVELS: dict[Domain, float] = {"speech": 0.1, "music": 0.02, "sound": 0.004}
PLAIN = SegmentConfig(sample_rate=8000, segment_seconds=0.05, gain_db=None)


def make_item(path: Path, samples: Any, domain: Domain = "speech", rate: int = 8000) -> Item:
    soundfile.write(path, np.asarray(samples, np.float32), rate, subtype="FLOAT")
    samples = np.atleast_2d(np.asarray(samples).T)
    return Item(
        path=str(path),
        duration_seconds=samples.shape[1] / rate,
        sample_rate=rate,
        channels=samples.shape[0],
        domain=domain,
        split="train",
        source="test",
        licence="CC0-1.0",
        group=path.stem,
    )


@pytest.fixture
def constants(tmp_path: Path) -> list[Item]:
    """One file per domain whose every sample is the domain's level: a segment shows its mixture."""
    return [
        make_item(tmp_path / f"{domain}.wav", np.full(4000, LEVELS[domain]), domain)
        for domain in DOMAINS
    ]


def test_a_segment_depends_on_seed_and_index_alone(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 8000)
    items = [make_item(tmp_path / "a.wav", noise)]
    dataset = SegmentDataset(items, SegmentConfig(sample_rate=8000, segment_seconds=0.05), 7, 100)
    forwards = [dataset[index] for index in range(20)]
    resumed = SegmentDataset(items, dataset.config, 7, 100)
    for index in reversed(range(20)):
        assert torch.equal(resumed[index], forwards[index])
    assert not torch.equal(forwards[0], forwards[1])
    other = SegmentDataset(items, dataset.config, 8, 100)
    assert not torch.equal(other[0], forwards[0])


def test_workers_do_not_change_the_data(constants: list[Item]) -> None:
    config = SegmentConfig(sample_rate=8000, segment_seconds=0.05, mixing=Mixing())
    dataset = SegmentDataset(constants, config, seed=1, size=24)
    alone = torch.stack([dataset[index] for index in range(24)])
    loaded = torch.cat(list(DataLoader(dataset, batch_size=4, num_workers=2)))
    assert torch.equal(alone, loaded)
    assert loaded.shape == (24, 1, 400)
    assert loaded.dtype == torch.float32


def test_domains_come_by_weight(constants: list[Item]) -> None:
    weights: dict[Domain, float] = {"speech": 3, "music": 1, "sound": 0}
    config = SegmentConfig(
        sample_rate=8000, segment_seconds=0.001, gain_db=None, domain_weights=weights
    )
    dataset = SegmentDataset(constants, config, seed=2, size=800)
    levels = torch.stack([dataset[index][0, 0] for index in range(800)])
    assert (levels == 0.1).float().mean().item() == pytest.approx(0.75, abs=0.05)
    assert not (levels == 0.004).any()


def test_items_come_by_duration_and_offsets_reach_both_ends(tmp_path: Path) -> None:
    short = make_item(tmp_path / "short.wav", np.full(500, -0.5))
    long = make_item(tmp_path / "long.wav", np.linspace(0, 0.5, 1500))
    config = SegmentConfig(sample_rate=8000, segment_seconds=0.0125, gain_db=None)
    dataset = SegmentDataset([short, long], config, seed=3, size=800)
    first = torch.stack([dataset[index][0, 0] for index in range(800)])
    assert (first < 0).float().mean().item() == pytest.approx(0.25, abs=0.05)
    starts = first[first >= 0] / 0.5 * 1499
    assert starts.min() < 30
    assert 1370 < starts.max() <= 1400.5


def test_mixtures_have_the_shares_of_the_paper(constants: list[Item]) -> None:
    config = SegmentConfig(sample_rate=8000, segment_seconds=0.001, gain_db=None, mixing=Mixing())
    dataset = SegmentDataset(constants, config, seed=4, size=1200)
    levels = [round(dataset[index][0, 0].item(), 4) for index in range(1200)]
    share = {level: levels.count(level) / 1200 for level in set(levels)}
    assert share[0.02] == pytest.approx(0.32, abs=0.05)
    assert share[0.1] + share[0.004] == pytest.approx(0.32, abs=0.05)
    two = [a + b for a in LEVELS.values() for b in LEVELS.values()]
    assert sum(share[round(level, 4)] for level in set(two)) == pytest.approx(0.24, abs=0.05)
    three = {0.3, 0.204, 0.108, 0.012}
    assert sum(share[level] for level in three) == pytest.approx(0.12, abs=0.05)


def test_gain_is_uniform_in_decibels(tmp_path: Path) -> None:
    items = [make_item(tmp_path / "a.wav", np.full(800, 0.1))]
    config = SegmentConfig(sample_rate=8000, segment_seconds=0.001)
    dataset = SegmentDataset(items, config, seed=5, size=800)
    levels = torch.stack([dataset[index][0, 0] for index in range(800)])
    gain_db = 20 * torch.log10(levels / 0.1)
    assert gain_db.min().item() == pytest.approx(-10, abs=0.1)
    assert gain_db.max().item() == pytest.approx(6, abs=0.1)
    assert gain_db.mean().item() == pytest.approx(-2, abs=0.5)


def test_loud_mixtures_are_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 0.9, 80)
    items = [make_item(tmp_path / "a.wav", ramp), make_item(tmp_path / "b.wav", ramp, "music")]
    config = SegmentConfig(
        sample_rate=8000, segment_seconds=0.01, mixing=Mixing(), gain_db=(-3.0, 6.0)
    )
    dataset = SegmentDataset(items, config, seed=6, size=200)
    segments = torch.cat([dataset[index] for index in range(200)])
    peaks = segments.amax(dim=-1, keepdim=True)
    assert peaks.max() <= 1
    assert peaks.min() > 0.9 * 10 ** (-3 / 20) - 1e-4
    assert torch.allclose(segments, peaks * torch.linspace(0, 1, 80), atol=1e-5)


def test_a_short_file_is_padded_and_another_rate_resampled(tmp_path: Path) -> None:
    short = make_item(tmp_path / "short.wav", np.full(100, 0.25))
    segment = read_segment(short, 0.9, PLAIN)
    assert segment.shape == (1, 400)
    assert np.array_equal(segment[0], np.repeat(np.float32([0.25, 0]), [100, 300]))
    tone = np.sin(2 * np.pi * 440 * np.arange(44_100) / 44_100)
    item = make_item(tmp_path / "tone.wav", 0.5 * tone, rate=44_100)
    resampled = read_segment(item, 0.0, PLAIN)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(400) / 8000)
    assert resampled.shape == (1, 400)
    assert np.abs(resampled[0] - expected)[40:-40].max() < 1e-3


def test_channels_are_mixed_down_and_copied(tmp_path: Path) -> None:
    stereo = make_item(tmp_path / "stereo.wav", np.tile([0.4, 0.2], (800, 1)))
    mono = make_item(tmp_path / "mono.wav", np.full(800, 0.3))
    down = SegmentDataset([stereo], PLAIN, seed=0, size=1)[0]
    assert torch.allclose(down, torch.full((1, 400), 0.3))
    config = SegmentConfig(sample_rate=8000, segment_seconds=0.05, gain_db=None, channels=2)
    assert torch.allclose(SegmentDataset([stereo], config, 0, 1)[0][:, 0], torch.tensor([0.4, 0.2]))
    assert torch.allclose(SegmentDataset([mono], config, 0, 1)[0], torch.full((2, 400), 0.3))


def test_impossible_configs_are_refused(constants: list[Item]) -> None:
    for wrong in (
        {"segment_seconds": 0.0},
        {"sample_rate": 0},
        {"channels": 3},
        {"gain_db": (6.0, -10.0)},
        {"domain_weights": {"noise": 1.0}},
        {"domain_weights": {"music": -1.0}},
    ):
        with pytest.raises(ConfigError):
            SegmentConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="loudness"):
        SegmentConfig(loudness=1)  # type: ignore[call-arg]
    speech = [item for item in constants if item.domain == "speech"]
    with pytest.raises(ConfigError, match="music"):
        SegmentDataset(speech, SegmentConfig(mixing=Mixing()), 0, 1)
    with pytest.raises(ConfigError, match="no item is that"):
        SegmentDataset(speech, SegmentConfig(domain_weights={"music": 1.0}), 0, 1)
    with pytest.raises(ConfigError, match="no items"):
        SegmentDataset([], PLAIN, 0, 1)
    with pytest.raises(ConfigError, match="empty"):
        SegmentDataset(speech, PLAIN, 0, 0)


def test_a_file_that_vanishes_or_breaks_is_named(tmp_path: Path) -> None:
    item = make_item(tmp_path / "a.wav", np.zeros(800))
    dataset = SegmentDataset([item], PLAIN, 0, 5)
    with pytest.raises(IndexError):
        dataset[5]
    (tmp_path / "a.wav").write_text("not audio")
    with pytest.raises(AudioError, match=r"a\.wav"):
        dataset[0]
