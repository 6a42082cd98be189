from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

from sonorant.cli.data import data
from sonorant.data.manifest import read_manifest
from sonorant.data.songs import read_songs
from sonorant.errors import ConfigError
from sonorant.separation.remix import read_extracts
from sonorant.separation.silence_detector import DetectorConfig, SilenceDetector
from tests.data.test_packages import build_package, stand_in_for_apt
from tests.separation.songs import write_song


def run(*arguments: object) -> str:
    result = CliRunner().invoke(data, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def noise_file(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, round(seconds * 24_000))
    soundfile.write(path, samples, 24_000)
    return path


def test_folders_become_a_corpus_with_licences(tmp_path: Path) -> None:
    noise_file(tmp_path / "songs: mine" / "a.wav", 60.0)
    noise_file(tmp_path / "sounds" / "rain" / "b.wav", 30.0)
    (tmp_path / "folders.yaml").write_text(
        f"- path: {tmp_path}/sounds\n  domain: sound\n  licence: CC-BY-3.0\n  source: weather\n"
        "  attribution: someone\n  group: folder\n  test: [rain]\n"
    )
    one = f"{tmp_path}/songs: mine:music:CC0-1.0"
    output = run(
        *("fetch", "--folder", one, "--folders", tmp_path / "folders.yaml"),
        *("--out", tmp_path / "out"),
    )
    assert "1.0 min     1" in output
    items = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert [(item.domain, item.licence) for item in items] == [
        ("music", "CC0-1.0"),
        ("sound", "CC-BY-3.0"),
    ]
    assert read_manifest(tmp_path / "out" / "manifest.jsonl", "test")[0].group == "sound: rain"
    lines = run("licences", tmp_path / "out" / "manifest.jsonl").splitlines()
    assert lines == [
        "songs: mine (music, 1.0 min): CC0-1.0; ",
        "weather (sound, 0.5 min): CC-BY-3.0; someone",
    ]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="packages need a Debian system")
def test_a_package_becomes_a_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sounds = {
        f"usr/share/klettres/{name}": noise_file(tmp_path / "a.wav").read_bytes()
        for name in ("fr/alpha/a.wav", "lt/alpha/a.wav", "hu/syllab/ba.wav", "icons/click.wav")
    }
    package = build_package(tmp_path, "klettres-data", sounds)
    stand_in_for_apt(tmp_path, f"cp {package} .", monkeypatch)
    run("fetch", "--corpus", "klettres-data", "--out", tmp_path / "out")
    items = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert [(item.group, item.split) for item in items] == [
        ("language: fr", "train"),
        ("language: hu", "valid"),
        ("language: lt", "test"),
    ]
    assert os.listdir(tmp_path / "out" / "audio") == ["klettres-data"]


def test_the_list_names_every_corpus() -> None:
    output = run("list")
    assert "wesnoth-1.16-music" in output
    assert "music+sound    atmospheric" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to fetch"),
        (["--corpus", "librispeech"], "unknown corpus 'librispeech'"),
        (["--folder", "sounds"], "PATH:DOMAIN:LICENCE"),
        (["--folder", "sounds:noise:CC0-1.0"], "noise"),
        (["--folder", "nowhere:sound:CC0-1.0"], "nowhere does not exist"),
        (["--folders", "none.yaml"], "cannot read"),
        (["--folders", "bad.yaml"], "unknown field `mood`"),
    ],
)
def test_wrong_requests_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("- path: x\n  domain: sound\n  licence: x\n  mood: sad\n")
    with pytest.raises(ConfigError, match=message):
        run("fetch", *arguments, "--out", "out")
    assert not (tmp_path / "out").exists()


def test_songs_in_stems_get_a_manifest(tmp_path: Path) -> None:
    write_song(tmp_path / "train" / "One")
    write_song(tmp_path / "test" / "Two")
    output = run("songs", tmp_path, "--out", tmp_path / "songs.jsonl", "--licence", "CC0-1.0")
    assert "2 songs, 0.1 minutes" in output
    songs = read_songs(tmp_path / "songs.jsonl")
    assert [(song.name, song.split, song.licence) for song in songs] == [
        ("One", "train", "CC0-1.0"),
        ("Two", "test", "CC0-1.0"),
    ]


def test_silent_sources_are_found_by_a_detector(tmp_path: Path) -> None:
    detector = SilenceDetector(DetectorConfig(channels=4, depth=3, sample_rate=24_000))
    with torch.no_grad():
        detector.head.weight.zero_()
        detector.head.bias.copy_(torch.tensor([5.0, -5.0, -5.0, 5.0]))
    detector.save_pretrained(tmp_path / "detector")
    noise_file(tmp_path / "music" / "track.wav", 2.5)
    out = tmp_path / "silent.jsonl"
    output = run("silent", tmp_path / "detector", tmp_path / "music", "--out", out, "--seconds", 1)
    assert "4 extracts" in output
    found = [(each.source, each.start_seconds) for each in read_extracts(out)]
    assert found == [("drums", 0.0), ("vocals", 0.0), ("drums", 1.0), ("vocals", 1.0)]
    (tmp_path / "music" / "broken.wav").write_bytes(b"RIFF and nothing")
    arguments = ("silent", tmp_path / "detector", tmp_path / "music", "--out", out)
    output = run(*arguments, "--seconds", 1)
    assert "left out: " in output
    assert "broken.wav" in output
    assert "4 extracts" in output
    with pytest.raises(ConfigError, match="a length of nan"):
        run(*arguments, "--seconds", "nan")
    assert not list(tmp_path.glob("*.part"))
    assert len(read_extracts(out)) == 4
