"""Catalogues of songs: what is listed, what is left out and why, and blocks of stems."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sonorant.data.songs import read_stem, write_songs
from sonorant.errors import AudioError, ConfigError, SonorantError
from sonorant.separation.catalogue import key_of, list_songs, read_blocks
from tests.separation.songs import RATE, SOURCES, write_song


def test_lists_the_songs_of_a_manifest_or_a_folder(tmp_path: Path) -> None:
    song = write_song(tmp_path / "train" / "One")
    write_songs(tmp_path / "songs.jsonl", [song])
    left_out: list[SonorantError] = []
    assert list_songs(tmp_path / "songs.jsonl", left_out.append) == [song]
    assert list_songs(tmp_path, left_out.append, "CC0") == [song]
    assert left_out == []


def test_songs_of_a_folder_that_do_not_open_are_told(tmp_path: Path) -> None:
    write_song(tmp_path / "train" / "One")
    write_song(tmp_path / "train" / "Two")
    (tmp_path / "train" / "Two" / "drums.wav").write_bytes(b"RIFF and nothing")
    longer = write_song(tmp_path / "train" / "Three", seconds=3)
    write_song(tmp_path / "train" / "Four")
    Path(longer.files["bass"]).replace(tmp_path / "train" / "Four" / "bass.wav")
    left_out: list[SonorantError] = []
    assert [song.name for song in list_songs(tmp_path, left_out.append)] == ["One", "Three"]
    assert "Four differ in length" in str(left_out[0])
    assert "Two/drums.wav" in str(left_out[1])


def test_blocks_are_the_whole_stem(tmp_path: Path) -> None:
    song = write_song(tmp_path / "song", seconds=21.5)
    blocks = list(read_blocks(song, "bass"))
    assert [block.shape[1] / RATE for block in blocks] == [10, 10, 1.5]
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), read_stem(song, "bass"))


def test_damaged_stems_are_found_in_blocks(tmp_path: Path) -> None:
    song = write_song(tmp_path / "song", seconds=12)
    with pytest.raises(ConfigError, match="has no vocals"):
        list(read_blocks(song, "vocals"))
    bass = read_stem(song, "bass").T.copy()
    bass[11 * RATE, 1] = np.nan
    soundfile.write(song.files["bass"], bass, RATE, "FLOAT")
    with pytest.raises(AudioError, match="holds nan at sample 22000 of channel 1"):
        list(read_blocks(song, "bass"))
    soundfile.write(song.files["drums"], bass[: 10 * RATE], RATE, "FLOAT")
    with pytest.raises(AudioError, match="is cut short: 4000 samples are missing"):
        list(read_blocks(song, "drums"))


def test_a_key_tells_the_files_and_the_facts(tmp_path: Path) -> None:
    song = write_song(tmp_path / "song")
    key = key_of(song, SOURCES, "a model")
    assert key == key_of(song, SOURCES, "a model")
    assert key != key_of(song, SOURCES, "another model")
    assert key != key_of(song, SOURCES[:1], "a model")
    write_song(tmp_path / "song", seconds=3)
    assert key != key_of(song, SOURCES, "a model")
