"""Datasets of stems: layouts that are found, extracts that are drawn, whole songs."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sonorant.data.songs import Song, read_stem
from sonorant.errors import ConfigError
from sonorant.separation.repitch import Repitch
from sonorant.separation.stems import (
    MUSDB_VALIDATION,
    Extracts,
    StemExtracts,
    WholeSongs,
    count_extracts,
    find_songs,
    read_extract,
    whole_song,
)
from tests.separation.songs import RATE, SOURCES, write_song


def extracts(samples: int = 500, stride: int = 400, **others: object) -> Extracts:
    given: dict[str, object] = {"sources": SOURCES, "sample_rate": RATE, "channels": 2}
    return Extracts(**{**given, "samples": samples, "stride_samples": stride, **others})


@pytest.mark.parametrize("splits_itself", [False, True])
def test_finds_folders_of_stems_and_musdbs_validation(tmp_path: Path, splits_itself: bool) -> None:
    validation = min(MUSDB_VALIDATION)
    places = ["train/One", f"train/{validation}", "test/Two"]
    for place in [*places, "valid/Three"] if splits_itself else places:
        write_song(tmp_path / place)
    found = {song.name: (song.split, song.licence) for song in find_songs(tmp_path, "CC0")}
    others = {"Three": ("valid", "CC0")} if splits_itself else {}
    assert found == {
        "One": ("train", "CC0"),
        validation: ("train" if splits_itself else "valid", "CC0"),
        "Two": ("test", "CC0"),
        **others,
    }
    assert len(MUSDB_VALIDATION) == 14


def test_a_folder_without_songs_says_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(ConfigError, match=r"it needs train/SONG/SOURCE\.wav"):
        list(find_songs(tmp_path))


@pytest.mark.parametrize(
    ("samples", "stride", "count"),
    [(4000, 400, 1), (4001, 400, 1), (500, 400, 10), (3500, 500, 2), (3600, 500, 2)],
)
def test_counts_extracts_as_published(
    tmp_path: Path, samples: int, stride: int, count: int
) -> None:
    song = write_song(tmp_path / "song")  # of 4000 samples
    assert count_extracts(song, extracts(samples, stride)) == count


def test_extracts_are_normalised_by_the_song_and_end_in_zeros(tmp_path: Path) -> None:
    song = write_song(tmp_path / "song")
    last = read_extract(song, 9, extracts())
    read = (read_stem(song, "bass", 3600) - song.mean) / song.std
    np.testing.assert_allclose(last[1, :, :400], read, rtol=1e-5, atol=1e-6)
    assert not last[:, :, 400:].any()


def test_every_extract_comes_once_in_each_turn(tmp_path: Path) -> None:
    songs = [write_song(tmp_path / name, seed=seed) for seed, name in enumerate("abc")]
    data = StemExtracts(songs, extracts(normalize=False), seed=3, size=10_000)
    assert data.different == 30
    firsts = [{float(data[turn * 30 + n][0, 0, 0]) for n in range(30)} for turn in range(2)]
    assert len(firsts[0]) == 30
    assert firsts[0] == firsts[1]
    assert any(not torch.equal(data[n], data[30 + n]) for n in range(30))


def test_an_extract_depends_on_seed_and_index_only(tmp_path: Path) -> None:
    songs = [write_song(tmp_path / "song")]
    one, same, other = (StemExtracts(songs, extracts(), seed, 100) for seed in (1, 1, 2))
    _ = same[0]
    assert torch.equal(one[17], same[17])
    assert any(not torch.equal(one[n], other[n]) for n in range(10))


def test_other_rates_and_channels_are_converted(tmp_path: Path) -> None:
    song = write_song(tmp_path / "song")
    read = read_extract(song, 1, extracts(sample_rate=2 * RATE, channels=1))
    assert read.shape == (2, 1, 500)
    direct = read_extract(song, 1, extracts(samples=250, stride=200, channels=1))
    np.testing.assert_allclose(read[..., 100:400:2], direct[..., 50:200], atol=0.5)


def test_repitched_extracts_keep_their_length(tmp_path: Path) -> None:
    song = write_song(tmp_path / "song")
    for probability in (0.0, 1.0):
        config = extracts(repitch=Repitch(probability=probability))
        data = StemExtracts([song], config, 0, 10)
        assert config.read_samples == 569  # 500 / 0.88, rounded up
        assert data[0].shape == (2, 2, 500)
        assert bool(data[0].isfinite().all())


def test_whole_songs_of_any_length(tmp_path: Path) -> None:
    songs = [write_song(tmp_path / "a"), write_song(tmp_path / "b", seconds=1)]
    data = WholeSongs(songs)
    assert [int(data[n]) for n in range(len(data))] == [0, 1]
    mixture, stems = whole_song(songs[1], extracts())
    assert stems.shape == (2, 2, 2000)
    # Each is normalised by the mixture's mean, so their sum is off by one mean.
    song: Song = songs[1]
    torch.testing.assert_close(stems.sum(0) + song.mean / song.std, mixture, rtol=1e-4, atol=1e-4)


def test_refuses_songs_without_a_source(tmp_path: Path) -> None:
    song = write_song(tmp_path / "song", sources=("drums",))
    with pytest.raises(ConfigError, match="song has no bass"):
        StemExtracts([song], extracts(), 0, 1)
