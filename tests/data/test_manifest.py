from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sonorant.data.manifest import Item, check_groups, read_manifest, write_manifest
from sonorant.errors import AudioError, ConfigError


def make_item(path: Path, **changes: object) -> Item:
    soundfile.write(path, np.zeros(2400, np.float32), 24_000)
    fields: dict[str, object] = {
        "path": str(path),
        "duration_seconds": 0.1,
        "sample_rate": 24_000,
        "channels": 1,
        "domain": "speech",
        "split": "train",
        "source": "test",
        "licence": "CC0-1.0",
        "group": "language: fr",
        "attribution": "nobody",
    }
    return Item(**(fields | changes))  # type: ignore[arg-type]


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    items = [
        make_item(tmp_path / "a.wav"),
        make_item(tmp_path / "b.wav", group="language: de", split="test", original="x/é.ogg"),
    ]
    write_manifest(tmp_path / "manifest.jsonl", items)
    assert read_manifest(tmp_path / "manifest.jsonl") == items
    assert read_manifest(tmp_path / "manifest.jsonl", "test") == items[1:]


def test_a_manifest_moves_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    write_manifest(tmp_path / "old" / "m.jsonl", [make_item(tmp_path / "old" / "a.wav")])
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_manifest(tmp_path / "new" / "m.jsonl")[0].path == str(tmp_path / "new" / "a.wav")


def test_a_group_in_two_splits_is_refused(tmp_path: Path) -> None:
    items = [make_item(tmp_path / "a.wav"), make_item(tmp_path / "b.wav", split="test")]
    with pytest.raises(ConfigError, match="language: fr"):
        check_groups(items)
    with pytest.raises(ConfigError, match="put all of it into one"):
        write_manifest(tmp_path / "manifest.jsonl", items)
    assert not (tmp_path / "manifest.jsonl").exists()


def test_a_missing_audio_file_is_named(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.jsonl", [make_item(tmp_path / "gone.wav")])
    (tmp_path / "gone.wav").unlink()
    with pytest.raises(AudioError, match=r"gone\.wav"):
        read_manifest(tmp_path / "manifest.jsonl")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"domain":"speech"', '"domain":"noise"', "line 1"),
        ('"licence":"CC0-1.0"', '"license":"CC0-1.0"', "line 1"),
        ('"channels":1', '"channels":0', "channels is 0"),
        ('"channels":1', '"channels":1,"mood":"sad"', "mood"),
        ("{", "", "line 1"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, [make_item(tmp_path / "a.wav")])
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=message):
        read_manifest(path)


def test_missing_empty_and_one_sided_manifests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_manifest(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="no items"):
        read_manifest(tmp_path / "empty.jsonl")
    write_manifest(tmp_path / "manifest.jsonl", [make_item(tmp_path / "a.wav")])
    with pytest.raises(ConfigError, match="'valid'"):
        read_manifest(tmp_path / "manifest.jsonl", "valid")
    with pytest.raises(ConfigError, match="unknown split"):
        read_manifest(tmp_path / "manifest.jsonl", "dev")  # type: ignore[arg-type]
