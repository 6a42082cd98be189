"""Packages are built here with dpkg-deb; a stand-in for apt-get plays the archive."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from sonorant.data.packages import download_package, unpack_package
from sonorant.errors import DependencyError, FormatError, SonorantError

pytestmark = pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="packages need a Debian system"
)


def build_package(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    tree = folder / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n"
    )
    for path, content in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    package = folder / f"{name}_1.0_all.deb"
    command = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(package)]
    subprocess.run(command, check=True, capture_output=True)
    shutil.rmtree(tree)
    return package


def stand_in_for_apt(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = folder / "bin" / "apt-get"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")


def test_a_package_is_downloaded_once_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = build_package(tmp_path, "sounds", {"usr/share/a.txt": b"hello"})
    stand_in_for_apt(tmp_path, f"echo called >> {tmp_path}/log; cp {package} .", monkeypatch)
    cache = tmp_path / "cache"
    for _ in range(2):
        found = download_package("sounds", cache)
        root = unpack_package(found, cache / "sounds.unpacked")
        assert (root / "usr/share/a.txt").read_bytes() == b"hello"
    assert (tmp_path / "log").read_text() == "called\n"


def test_archives_inside_are_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pk3", "w") as archive:
        archive.writestr("music/song.ogg", b"song")
    content = (tmp_path / "a.pk3").read_bytes()
    package = build_package(tmp_path, "game", {"base/a.pk3": content})
    root = unpack_package(package, tmp_path / "out", ["base/*.pk3"])
    assert (root / "base/a.pk3.unpacked/music/song.ogg").read_bytes() == b"song"


def test_a_damaged_archive_inside_leaves_nothing(tmp_path: Path) -> None:
    package = build_package(tmp_path, "game", {"base/a.pk3": b"not a zip file"})
    with pytest.raises(FormatError, match=r"a\.pk3"):
        unpack_package(package, tmp_path / "out", ["base/*.pk3"])
    assert not (tmp_path / "out").exists()


def test_what_apt_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_apt(tmp_path, "echo 'E: Unable to locate package x' >&2; exit 100", monkeypatch)
    with pytest.raises(SonorantError, match="Unable to locate package x"):
        download_package("x", tmp_path / "cache")


def test_a_file_that_is_no_package_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x_1_all.deb").write_bytes(b"<html>not found</html>")
    with pytest.raises(FormatError, match=r"x_1_all\.deb"):
        download_package("x", tmp_path)


def test_a_truncated_package_is_refused(tmp_path: Path) -> None:
    package = build_package(tmp_path, "big", {"noise": os.urandom(100_000)})
    package.write_bytes(package.read_bytes()[:50_000])
    with pytest.raises(FormatError, match=r"big_1\.0_all\.deb"):
        unpack_package(package, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_the_tools_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DependencyError, match="apt-get is needed"):
        download_package("x", tmp_path / "cache")
