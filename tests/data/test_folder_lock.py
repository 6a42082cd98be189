"""Folders that one run has at a time, and file systems without locks."""

import errno
import os
from pathlib import Path

import filelock
import pytest

from sonorant.data.folder_lock import FolderLock, only_run_in
from sonorant.errors import SonorantError


def test_a_folder_is_one_runs_until_it_ends(tmp_path: Path) -> None:
    with only_run_in(tmp_path / "work"):
        assert not FolderLock(tmp_path / "work").claim()
        with pytest.raises(SonorantError, match="another run is at work"):
            only_run_in(tmp_path / "work").__enter__()
        assert (tmp_path / "work").is_dir()
    assert not list(tmp_path.iterdir())


def test_what_a_run_leaves_stays_without_its_lock(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "half").touch()
    with pytest.raises(KeyboardInterrupt), only_run_in(tmp_path / "work"):
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["half"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_the_work_goes_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", refused)
    with only_run_in(tmp_path / "work"):
        (tmp_path / "work" / "half").touch()
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["half"]


def test_a_folder_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(filelock.FileLock, "acquire", refused)
    with pytest.raises(PermissionError), only_run_in(tmp_path / "work"):
        pass
