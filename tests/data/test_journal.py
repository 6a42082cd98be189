"""Journals of long work: what is in them after a stop, and what is refused."""

from pathlib import Path

import msgspec
import pytest

from sonorant.data.journal import Journal
from sonorant.errors import ConfigError


class Found(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    key: str
    value: float


def test_what_was_found_is_there_after_a_stop(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "found.jsonl"
    Journal(path, Found).add(Found("one", 0.1))
    Journal(path, Found).add(Found("two", 0.2))
    again = Journal(path, Found)
    assert again.get("one") == Found("one", 0.1)
    assert again.get("two") == Found("two", 0.2)
    assert again.get("three") is None


def test_a_line_that_was_cut_short_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "found.jsonl"
    path.write_text('{"key":"one","value":0.1}\n{"key":"two","va')
    journal = Journal(path, Found)
    assert journal.get("two") is None
    journal.add(Found("two", 0.2))
    assert path.read_text().splitlines() == [
        '{"key":"one","value":0.1}',
        '{"key":"two","value":0.2}',
    ]


def test_only_what_is_kept_stays(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "found.jsonl", Found)
    for number in range(3):
        journal.add(Found(str(number), number))
    journal.keep([Found("2", 2.0), Found("0", 0.0)])
    assert [line[8] for line in journal.path.read_text().splitlines()] == ["2", "0"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "songs.jsonl").write_text('{"name":"Jam"}\n')
    with pytest.raises(ConfigError, match=r"songs\.jsonl, line 1 is none of this work's"):
        Journal(tmp_path / "songs.jsonl", Found)
