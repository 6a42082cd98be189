"""Manifests of songs in stems: what is measured, read back, and refused."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sonorant.data.songs import (
    STREAMS,
    Song,
    read_mixture,
    read_songs,
    read_stem,
    song_of,
    write_songs,
)
from sonorant.errors import AudioError, ConfigError
from tests.separation.songs import RATE, write_song


def test_measures_the_mean_and_deviation_of_the_mono_mixture(tmp_path: Path) -> None:
    song = write_song(tmp_path / "song")
    mono = read_mixture(song).mean(axis=0)
    assert song.mean == pytest.approx(mono.mean(), rel=1e-4)
    assert song.std == pytest.approx(mono.std(ddof=1), rel=1e-4)
    assert song.duration_seconds == 2.0


def test_the_recorded_mixture_goes_before_the_sum(tmp_path: Path) -> None:
    song = write_song(tmp_path / "song")
    mixture = tmp_path / "song" / "mixture.wav"
    soundfile.write(mixture, np.full((song.samples, 2), 0.25, np.float32), RATE, "FLOAT")
    whole = song_of("song", "train", {**song.files, "mixture": mixture})
    assert (whole.mean, whole.std) == pytest.approx((0.25, 0.0), abs=1e-6)
    assert bool((read_mixture(whole, 10, 5) == 0.25).all())


def test_parts_of_stems_are_read_as_they_stand_in_the_file(tmp_path: Path) -> None:
    song = write_song(tmp_path / "song")
    whole = read_stem(song, "bass")
    assert whole.shape == (2, song.samples)
    np.testing.assert_array_equal(read_stem(song, "bass", 100, 50), whole[:, 100:150])
    assert read_stem(song, "bass", song.samples - 3, 50).shape == (2, 3)


def test_a_manifest_comes_back_and_moves_with_its_folder(tmp_path: Path) -> None:
    songs = [write_song(tmp_path / "a" / name, seed=seed) for seed, name in enumerate("xy")]
    write_songs(tmp_path / "a" / "songs.jsonl", songs)
    (tmp_path / "a").rename(tmp_path / "b")
    found = read_songs(tmp_path / "b" / "songs.jsonl")
    assert [song.name for song in found] == ["x", "y"]
    assert found[0].files["drums"] == str(tmp_path / "b" / "x" / "drums.wav")
    assert found[0].std == songs[0].std


def test_a_manifest_finds_songs_whose_paths_were_relative_to_where_one_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    song = write_song(Path("band") / "Jam")
    write_songs("lists/songs.jsonl", [song])
    monkeypatch.chdir("lists")
    found = read_songs("songs.jsonl")[0]
    assert Path(found.files["drums"]) == tmp_path / "lists" / ".." / "band" / "Jam" / "drums.wav"


def test_refuses_manifests_that_would_not_work(tmp_path: Path) -> None:
    song = write_song(tmp_path / "song")
    path = tmp_path / "songs.jsonl"
    write_songs(path, [song])
    with pytest.raises(ConfigError, match="no songs of the split 'valid'"):
        read_songs(path, "valid")
    with pytest.raises(ConfigError, match="is in the splits"):
        write_songs(path, [song, Song(**{**_fields(song), "split": "test"})])
    Path(song.files["drums"]).unlink()
    with pytest.raises(AudioError, match="does not exist"):
        read_songs(path)
    path.write_text("{}\n")
    with pytest.raises(ConfigError, match="line 1 is not a song"):
        read_songs(path)


def test_refuses_a_name_that_no_manifest_can_hold(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"'caf\\udce9' is no name in UTF-8"):
        song_of("caf\udce9", "train", {"bass": tmp_path / "bass.wav"})


def test_refuses_stems_of_different_lengths(tmp_path: Path) -> None:
    long, short = write_song(tmp_path / "long"), write_song(tmp_path / "short", seconds=1)
    files = {"drums": long.files["drums"], "bass": short.files["bass"]}
    with pytest.raises(AudioError, match="differ in length or rate: drums 4000"):
        song_of("both", "train", files)


def test_a_song_without_a_source_says_which_it_has(tmp_path: Path) -> None:
    song = write_song(tmp_path / "song")
    with pytest.raises(ConfigError, match="has no vocals: it has drums, bass"):
        read_stem(song, "vocals")


def test_reads_the_streams_of_a_stem_file(tmp_path: Path) -> None:
    """AAC loses little of slow sines, and nothing of where they are."""
    path, rate, samples = tmp_path / "song.stem.mp4", 44_100, 44_100
    tones = 0.3 * np.sin(
        2 * np.pi * np.arange(samples) / rate * 200 * np.arange(1, 6)[:, None]
    ).astype(np.float32)
    _write_stem_file(path, tones, rate)
    song = song_of("song", "test", dict.fromkeys(STREAMS, path))
    assert abs(song.samples - samples) <= 1024
    for source, tone in zip(STREAMS, tones, strict=True):
        read = read_stem(song, source, 10_000, 20_000)
        np.testing.assert_allclose(read[0], tone[10_000:30_000], atol=0.02)
        np.testing.assert_allclose(read[1], -tone[10_000:30_000], atol=0.02)


def test_a_stem_file_that_is_damaged_or_cut_short_is_refused(tmp_path: Path) -> None:
    path, rate = tmp_path / "song.stem.mp4", 44_100
    random = np.random.default_rng(0)
    noise = 0.1 * random.standard_normal((5, 4 * rate)).astype(np.float32)
    _write_stem_file(path, noise, rate)
    whole = path.read_bytes()
    song = song_of("song", "test", dict.fromkeys(STREAMS, path), measure_level=False)
    assert np.abs(read_stem(song, "vocals", 3 * rate, rate // 2)).max() > 0.1
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(AudioError, match=r"song\.stem\.mp4 is (damaged or )?cut short"):
        read_stem(song, "vocals")
    half = len(whole) // 2
    path.write_bytes(whole[:half] + random.bytes(100_000) + whole[half + 100_000 :])
    with pytest.raises(AudioError, match=r"song\.stem\.mp4 is damaged"):
        read_stem(song, "vocals")


def _write_stem_file(path: Path, tones: np.ndarray, rate: int) -> None:
    """Five streams of AAC, each of a tone `[time]` and its opposite; what they are comes first."""
    import av

    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        streams = [container.add_stream("aac", rate=rate, layout="stereo") for _ in STREAMS]
        for stream in streams:
            stream.bit_rate = 256_000
        for stream, tone in zip(streams, tones, strict=True):
            frame = av.AudioFrame.from_ndarray(np.stack([tone, -tone]), "fltp", "stereo")
            frame.sample_rate, frame.pts = rate, 0
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)


def _fields(song: Song) -> dict[str, object]:
    return {name: getattr(song, name) for name in song.__struct_fields__}
