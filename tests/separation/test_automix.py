"""Mixes of stems of several songs: who lends what, what comes out, what a stop leaves."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile
import soxr

from sonorant.data.journal import Journal
from sonorant.data.songs import Samples, Song, read_songs, read_stem, song_of
from sonorant.errors import ConfigError, SonorantError
from sonorant.separation import automix
from sonorant.separation.automix import Known, Mix, Part, analyse_all, finish, mix_all, plan
from sonorant.separation.rhythm_and_key import SOURCES, Features
from sonorant.separation.stems import find_songs
from tests.separation.click_songs import RATE, SECONDS, beat_times, write_click_song
from tests.separation.test_rhythm_and_key import SILENCE, features


def known(
    name: str, tempo_bpm: float = 120.0, root: int = 0, sounding: Sequence[str] = SOURCES
) -> Known:
    """A song without files."""
    song = Song(
        name=name, split="train", files={}, sample_rate=RATE, samples=RATE, mean=0.0, std=1.0
    )
    found = msgspec.structs.replace(
        features(tempo_bpm, root=root), name=name, sounding=tuple(sounding)
    )
    return Known(song, found)


def refuse(error: SonorantError) -> None:
    raise error


def test_every_song_keeps_one_stem_in_each_pass() -> None:
    songs = [known(name) for name in "abcdef"]
    mixes = list(plan(songs, passes=6, seed=0))
    assert len({mix.name for mix in mixes}) == 36
    for mix in mixes:
        assert [part.source for part in mix.parts] == list(SOURCES)
        lenders = {part.source: part.song for part in mix.parts}
        assert lenders.pop(mix.kept) == mix.base
        assert mix.base not in lenders.values()
        assert len(set(lenders.values())) == 3
    assert {mix.kept for mix in mixes} == set(SOURCES)


def test_a_plan_is_a_function_of_the_seed() -> None:
    songs = [known(name) for name in "abcdef"]
    one, same, other = (list(plan(songs, passes=2, seed=seed)) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    # A pass more changes nothing of those before.
    assert set(map(msgspec.json.encode, one)) < set(
        map(msgspec.json.encode, plan(songs, passes=3, seed=1))
    )


def test_few_partners_make_few_mixes_and_none_twice() -> None:
    mixes = list(plan([known("a"), known("b")], 20, 0, refuse))
    of_a = [mix for mix in mixes if mix.base == "a"]
    assert len(of_a) == len({mix.parts for mix in of_a}) == 4  # one for each stem it can keep


def test_only_songs_of_like_tempo_and_key_lend_stems() -> None:
    songs = [
        *(known("base", 100, 0), known("fast", 114, 3), known("half", 57, -3)),
        *(known("faster", 118), known("slower", 86), known("high", 100, 4)),
    ]
    base = songs[0]
    mixes = [mix for mix in plan(songs, 40, 0, lambda reason: None) if mix.base == base.song.name]
    lent = {part.song: part for mix in mixes for part in mix.parts}
    assert lent.keys() == {"base", "fast", "half"}
    assert (lent["fast"].semitones, lent["half"].semitones) == (-3, 3)
    assert lent["fast"].tempo == pytest.approx(100 / 114)
    assert lent["half"].tempo == pytest.approx(50 / 57)


def test_silent_stems_are_neither_kept_nor_lent() -> None:
    instrumental = [known(name, sounding=SOURCES[:3]) for name in "ab"]
    singing = [known(name) for name in "cd"]
    mixes = list(plan([*instrumental, *singing], 20, 0))
    assert {part.song for mix in mixes for part in mix.parts if part.source == "vocals"} == set(
        "cd"
    )


def test_songs_that_go_with_no_others_are_told() -> None:
    songs = [known("a"), known("b"), known("odd", 150)]
    told: list[SonorantError] = []
    assert {mix.base for mix in plan(songs, 1, 0, told.append)} == {"a", "b"}
    assert len(told) == 1
    assert "go with odd (150.0 beats per minute)" in str(told[0])
    with pytest.raises(ConfigError, match="go with odd"):
        list(plan(songs, 1, 0))


@pytest.mark.parametrize(
    ("names", "told"),
    [(("a", "a"), "two songs have one name"), (("a", "../b"), "no folder can be")],
)
def test_names_that_folders_cannot_have_are_refused(names: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        list(plan([known(name) for name in names], 1, 0))


def strokes(samples: Samples) -> np.ndarray:
    """Times in seconds at which drums `[time]` are struck: where they rise out of silence."""
    loud = np.flatnonzero(np.abs(samples) > 0.1 * np.abs(samples).max()) / RATE
    return loud[np.diff(loud, prepend=-1.0) > 0.2]


def test_drums_of_another_tempo_fall_on_the_beats_of_the_base(tmp_path: Path) -> None:
    songs = [
        write_click_song(tmp_path / "base", 120, 0.3),
        write_click_song(tmp_path / "other", 110, 0.71),
    ]
    found = list(analyse_all(songs, Journal(tmp_path / "features.jsonl", Features), refuse))
    mixes = [mix for mix in plan(found, 8, 0) if mix.base == "base" and mix.kept != "drums"]
    stems = automix.render(mixes[0], {song.name: song for song in songs})
    assert stems.shape == (4, 2, int(SECONDS * RATE))
    struck = strokes(stems[0, 0])
    assert len(struck) > 20
    beats = beat_times(120, 0.3)
    nearest = beats[np.abs(struck[:, None] - beats).argmin(axis=1)]
    assert np.abs(struck - nearest).max() < 0.01


@pytest.mark.parametrize("offset", [1.5, -1.5])
def test_stems_begin_where_the_mix_says(tmp_path: Path, offset: float) -> None:
    songs = {name: write_click_song(tmp_path / name) for name in ("base", "other")}
    parts = [Part(source=source, song="base") for source in SOURCES[:3]]
    parts.append(Part(source="vocals", song="other", tempo=1.25, offset_seconds=offset))
    stems = automix.render(Mix(name="m", base="base", kept="bass", parts=tuple(parts)), songs)
    np.testing.assert_array_equal(stems[1], read_stem(songs["base"], "bass"))
    sounds = np.flatnonzero(np.abs(stems[3, 0]) > 0.01) / RATE
    assert sounds[0] == pytest.approx(max(0.0, offset), abs=0.02)
    assert sounds[-1] == pytest.approx(SECONDS / 1.25 + offset, abs=0.02)


@pytest.mark.parametrize("semitones", [3, -2])
def test_a_stem_goes_up_or_down_as_the_mix_says(tmp_path: Path, semitones: int) -> None:
    time = np.arange(int(SECONDS * RATE)) / RATE
    note = (0.2 * np.sin(2 * np.pi * 220 * time)).astype(np.float32)
    songs = {name: write_click_song(tmp_path / name, vocals=note) for name in ("base", "other")}
    parts = [Part(source=source, song="base") for source in SOURCES[:3]]
    parts.append(Part(source="vocals", song="other", semitones=semitones))
    stems = automix.render(Mix(name="m", base="base", kept="bass", parts=tuple(parts)), songs)
    spectrum = np.abs(np.fft.rfft(stems[3, 0]))
    hz = spectrum.argmax() / SECONDS
    assert hz == pytest.approx(220 * 2 ** (semitones / 12), rel=0.01)


def mixed(folder: Path, out: Path, seed: int = 0, gain: float = 1.0) -> list[Song]:
    """Mixes of two songs, written as the command does."""
    if not folder.exists():
        write_click_song(folder / "a", 120, 0.3, gain=gain)
        write_click_song(folder / "b", 110, 0.71, gain=gain, vocals=SILENCE)
        write_click_song(folder / "c", 118, 0.2, gain=gain)
    songs = list(find_songs(folder.parent, "CC0"))
    journal = Journal(out / "features.jsonl", Features)
    found = list(analyse_all(songs, journal, refuse))
    finish(out, mix_all(plan(found, 1, seed), songs, out))
    return read_songs(out / "songs.jsonl", "train")


def test_mixes_are_songs_that_training_reads_and_nothing_clips(tmp_path: Path) -> None:
    made = mixed(tmp_path / "songs" / "train", tmp_path / "out", gain=4.0)
    assert [song.name for song in made] == ["a.mix1", "b.mix1", "c.mix1"]
    assert made[0].licence == "CC0"
    assert [(each.name, each.std) for each in find_songs(tmp_path / "out")] == [
        (each.name, each.std) for each in made
    ]
    for song in made:
        stems = np.stack([read_stem(song, source) for source in SOURCES])
        peak = max(np.abs(stems).max(), np.abs(stems.sum(axis=0)).max())
        assert peak == pytest.approx(1 / 1.01, abs=1e-3)


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    songs, out = tmp_path / "songs" / "train", tmp_path / "out"
    mixed(songs, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    kept = (out / "train" / "a.mix1" / "drums.flac").stat().st_mtime_ns
    (out / "train" / "b.mix1").rename(tmp_path / "gone")
    half = out / ".unfinished" / "b.mix1" / "drums.flac"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"fLaC and nothing")
    mixed(songs, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert (out / "train" / "a.mix1" / "drums.flac").stat().st_mtime_ns == kept


def test_mixes_of_another_seed_need_another_folder(tmp_path: Path) -> None:
    songs, out = tmp_path / "songs" / "train", tmp_path / "out"
    mixed(songs, out)
    with pytest.raises(ConfigError, match="made of other stems"):
        mixed(songs, out, seed=1)
    (out / "train" / "a.mix1" / automix.NOTE).write_text("{}")
    with pytest.raises(ConfigError, match="does not say what a mix is made of"):
        mixed(songs, out)


def test_stems_of_another_rate_and_in_mono_are_converted(tmp_path: Path) -> None:
    base = write_click_song(tmp_path / "base")
    mono = write_click_song(tmp_path / "mono")
    for file in mono.files.values():
        samples, _ = soundfile.read(file)
        soundfile.write(file, soxr.resample(samples[:, 0], RATE, 2 * RATE), 2 * RATE, "FLOAT")
    songs = {"base": base, "mono": song_of("mono", "train", mono.files)}
    parts = [Part(source=source, song="base") for source in SOURCES[:3]]
    parts.append(Part(source="vocals", song="mono", tempo=1.1))
    stems = automix.render(Mix(name="m", base="base", kept="bass", parts=tuple(parts)), songs)
    assert stems.shape == (4, 2, base.samples)
    np.testing.assert_array_equal(stems[3, 0], stems[3, 1])
    sounds = np.flatnonzero(np.abs(stems[3, 0]) > 0.01) / RATE
    assert sounds[-1] == pytest.approx(SECONDS / 1.1, abs=0.02)
