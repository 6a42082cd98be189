"""Debian packages as a source of audio: download by name, unpack without installing."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

from sonorant.errors import DependencyError, FormatError, SonorantError


def download_package(name: str, cache: Path) -> Path:
    """The package file of `name` in the folder `cache`, downloaded with apt-get unless it is there.

    Raises: DependencyError without apt-get; SonorantError if the download fails; FormatError if
    what came is not a Debian package.
    """
    present = _newest(name, cache)
    if present is None:
        cache.mkdir(parents=True, exist_ok=True)
        command = ["apt-get", "--quiet", "download", name]
        _run(command, cache, f"cannot download the package {name}", SonorantError)
        present = _newest(name, cache)
        if present is None:
            raise SonorantError(f"apt-get reported no error but left no {name}_*.deb in {cache}")
    command = ["dpkg-deb", "--info", str(present)]
    _run(command, cache, f"{present} is not a Debian package: delete it", FormatError)
    return present


def unpack_package(package: Path, folder: Path, archives: Sequence[str] = ()) -> Path:
    """Unpack a package file into `folder` unless that is done; also the ZIP files in it that match.

    Raises: DependencyError without dpkg-deb; FormatError if the package or a ZIP file in it is
    damaged.
    """
    if folder.is_dir():
        return folder
    unfinished = folder.with_name(folder.name + ".part")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = ["dpkg-deb", "--extract", str(package), str(unfinished)]
    _run(command, package.parent, f"cannot unpack {package}: delete it", FormatError)
    for pattern in archives:
        for archive in sorted(unfinished.glob(pattern)):
            try:
                with zipfile.ZipFile(archive) as opened:
                    opened.extractall(archive.with_name(archive.name + ".unpacked"))
            except zipfile.BadZipFile as error:
                raise FormatError(f"{archive} in {package} is damaged: {error}") from error
    unfinished.rename(folder)
    return folder


def _newest(name: str, cache: Path) -> Path | None:
    found = sorted(cache.glob(f"{name}_*.deb"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def _run(command: list[str], folder: Path, failure: str, kind: type[SonorantError]) -> None:
    """Run a command of the package tools; raise `kind` with its last line of complaint."""
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise DependencyError(
            f"{command[0]} is needed: packages are fetched on Debian, Ubuntu and their kin; "
            "elsewhere, give folders of your own"
        ) from error
    if result.returncode != 0:
        reason = (result.stderr.strip() or result.stdout.strip() or "no reason given").splitlines()
        raise kind(f"{failure} ({reason[-1]})")
