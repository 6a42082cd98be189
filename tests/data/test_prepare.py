from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sonorant.data.manifest import Item, check_groups
from sonorant.data.prepare import BLOCK_SECONDS, Folder, Limits, collect_folder, prepare, report_of
from sonorant.errors import AudioError, ConfigError

RATE = 24_000


def tone(seconds: float, rate: int, hertz: float = 1000) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def convert(folder: Path, out: Path, workers: int = 1, **fields: object) -> list[Item]:
    source = Folder(path=str(folder), domain="sound", licence="CC0-1.0", **fields)  # type: ignore[arg-type]
    return report_of(prepare(collect_folder(source), out, Limits(), workers)).items


def test_files_become_mono_flac_of_one_rate(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    stereo = np.stack([tone(1.5, 44_100), 0.2 * tone(1.5, 44_100)], axis=1)
    soundfile.write(tmp_path / "in" / "a.wav", stereo, 44_100)
    (item,) = convert(tmp_path / "in", tmp_path / "out", attribution="me", source="mine")
    samples, rate = soundfile.read(item.path)
    assert (item.sample_rate, item.channels, rate, samples.ndim) == (RATE, 1, RATE, 1)
    assert item.duration_seconds == pytest.approx(1.5, abs=1e-3)
    assert soundfile.info(item.path).subtype == "PCM_16"
    assert np.abs(samples - 0.6 * tone(1.5, RATE)[: len(samples)])[100:-100].max() < 1e-3
    assert (item.source, item.original, item.attribution) == ("mine", "a.wav", "me")


def test_blocks_of_a_long_file_join_without_a_seam(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    seconds = 2.5 * BLOCK_SECONDS
    soundfile.write(tmp_path / "in" / "a.wav", tone(seconds, 48_000), 48_000)
    (item,) = convert(tmp_path / "in", tmp_path / "out")
    samples, _ = soundfile.read(item.path)
    assert np.abs(samples - tone(seconds, RATE))[100:-100].max() < 1e-3


def test_what_cannot_be_used_is_skipped_and_counted(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    soundfile.write(source / "good.wav", tone(1, RATE), RATE)
    soundfile.write(source / "low.wav", tone(1, 8000), 8000)
    soundfile.write(source / "short.wav", tone(0.2, RATE), RATE)
    soundfile.write(source / "silent.wav", np.zeros(RATE), RATE)
    broken = tone(1, RATE).astype(np.float32)
    broken[100] = np.nan
    soundfile.write(source / "nan.wav", broken, RATE, subtype="FLOAT")
    (source / "text.wav").write_text("this is not audio")
    (source / "empty.flac").write_bytes(b"")
    (source / "notes.txt").write_text("ignored")
    folder = Folder(path=str(source), domain="sound", licence="CC0-1.0")
    report = report_of(prepare(collect_folder(folder), tmp_path / "out", Limits()))
    assert [item.original for item in report.items] == ["good.wav"]
    assert report.skipped == {
        "recorded below 22050 Hz": 1,
        "shorter than 0.5 s": 1,
        "silent": 1,
        "not finite": 1,
        "unreadable": 2,
    }
    assert "skipped: 2 unreadable" in report.summary()
    left = sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert left == ["good.wav.flac"]


def test_a_second_run_converts_only_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "abc":
        soundfile.write(tmp_path / "in" / f"{name}.wav", tone(0.6, RATE), RATE)
    first = convert(tmp_path / "in", tmp_path / "out", workers=2)
    times = {item.path: Path(item.path).stat().st_mtime_ns for item in first}
    Path(first[1].path).unlink()
    assert convert(tmp_path / "in", tmp_path / "out") == first
    changed = [path for path, time in times.items() if Path(path).stat().st_mtime_ns != time]
    assert changed == [first[1].path]


def test_folders_group_by_file_by_subfolder_or_as_one(tmp_path: Path) -> None:
    for name in ("rain/a.wav", "rain/b.wav", "Dog/a.wav"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "in" / name, tone(0.6, RATE), RATE)

    def groups(**fields: object) -> list[tuple[str, str]]:
        items = convert(tmp_path / "in", tmp_path / "out", source="x", **fields)
        return [(item.group, item.split) for item in items]

    assert groups(group="folder", test={"dog"}) == [
        ("sound: dog", "test"),
        ("sound: rain", "train"),
        ("sound: rain", "train"),
    ]
    assert groups(group="all", valid={"all"}) == [("x: all", "valid")] * 3
    assert {group for group, _ in groups(group="file", test=set())} == {"x: a", "x: b"}


def test_hashed_splits_never_share_a_group(tmp_path: Path) -> None:
    for number in range(60):
        for clip in "ab":
            path = tmp_path / "in" / f"speaker{number}" / f"{clip}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, tone(0.5, RATE), RATE)
    items = convert(tmp_path / "in", tmp_path / "out", group="folder")
    check_groups(items)
    splits = [item.split for item in items]
    assert set(splits) == {"train", "valid", "test"}
    assert splits.count("train") > 90


def test_a_place_that_cannot_be_written_is_not_taken_for_a_bad_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "a.wav", tone(0.6, RATE), RATE)
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(AudioError, match="cannot write"):
        convert(tmp_path / "in", tmp_path / "out")


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(AudioError, match="no usable audio"):
        convert(tmp_path, tmp_path / "out")
