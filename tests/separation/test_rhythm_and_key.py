"""Tempo, onsets and key of songs that are known, and how two songs fit together."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import soundfile

from sonorant.errors import AudioError, ConfigError
from sonorant.separation.rhythm_and_key import (
    Features,
    analyse,
    lag_seconds,
    offset_seconds,
    pitch_change,
    tempo_change,
)
from tests.separation.click_songs import RATE, SECONDS, beat_times, drums, write_click_song

SILENCE = np.zeros(int(SECONDS * RATE), np.float32)


def features(tempo_bpm: float = 120.0, first_seconds: float = 0.5, root: int = 0) -> Features:
    """Those of a song that is not heard: strokes with an accent on each fourth, one bass note."""
    beats = beat_times(tempo_bpm, first_seconds)
    return Features(
        key="",
        name="",
        sounding=("drums", "bass"),
        tempo_bpm=tempo_bpm,
        onsets_seconds=beats.tolist(),
        strengths=[0.5 if number % 4 else 1.0 for number in range(len(beats))],
        chroma=np.roll([0.5, *[0.0] * 6, 0.3, *[0.0] * 3, 0.2], root).tolist(),
    )


@pytest.mark.parametrize(("tempo_bpm", "first_seconds"), [(120.0, 0.5), (97.3, 0.31)])
def test_tempo_and_onsets_are_found(tmp_path: Path, tempo_bpm: float, first_seconds: float) -> None:
    found = analyse(write_click_song(tmp_path / "song", tempo_bpm, first_seconds))
    assert found.tempo_bpm == pytest.approx(tempo_bpm, rel=1e-3)
    beats = beat_times(tempo_bpm, first_seconds)
    np.testing.assert_allclose(found.onsets_seconds, beats, atol=0.01)
    assert np.mean(found.strengths[::4]) > 1.2 * np.mean(found.strengths[1::4])
    assert found.sounding == ("drums", "bass", "other", "vocals")


def test_the_bass_tells_the_key(tmp_path: Path) -> None:
    one, higher = (analyse(write_click_song(tmp_path / str(root), root=root)) for root in (0, 3))
    assert pitch_change(one, higher) == -3
    assert pitch_change(higher, one) == 3
    assert set(np.argsort(one.chroma)[-3:]) == {0, 4, 7}  # the notes of C major's triad


@pytest.mark.parametrize(
    ("base_bpm", "other_bpm", "change"),
    [
        (120, 120, 1.0),
        (120, 100, 1.2),
        (120, 63, 60 / 63),
        (60, 230, 240 / 230),
        (200, 55, 10 / 11),
    ],
)
def test_tempos_are_compared_up_to_powers_of_two(
    base_bpm: float, other_bpm: float, change: float
) -> None:
    assert tempo_change(features(base_bpm), features(other_bpm)) == pytest.approx(change)


@pytest.mark.parametrize("root", range(-6, 6))
def test_the_pitch_changes_by_half_an_octave_at_most(root: int) -> None:
    assert pitch_change(features(root=root), features()) == root


@pytest.mark.parametrize(
    ("base", "other", "tempo"),
    [
        (features(120, 0.5), features(120, 1.23), 1.0),
        (features(120, 1.7), features(110, 0.4), 120 / 110),
        (features(93, 0.2), features(100, 0.4), 0.93),
    ],
)
def test_accents_fall_on_accents_within_10_ms(
    base: Features, other: Features, tempo: float
) -> None:
    offset = offset_seconds(base, other, tempo)
    bar = 4 * 60 / base.tempo_bpm
    late = offset + other.onsets_seconds[0] / tempo - base.onsets_seconds[0]
    assert abs(late - bar * round(late / bar)) < 0.01
    assert abs(offset) <= 4.0


def test_heard_songs_are_aligned_within_10_ms(tmp_path: Path) -> None:
    base = analyse(write_click_song(tmp_path / "base", 120, 0.3))
    other = analyse(write_click_song(tmp_path / "other", 110, 0.71))
    tempo = tempo_change(base, other)
    late = offset_seconds(base, other, tempo) + 0.71 * 110 / 120 - 0.3
    assert abs(late - 2.0 * round(late / 2.0)) < 0.01  # a bar of four beats has two seconds


@pytest.mark.parametrize(("tempo", "lag"), [(1.0, 0.012), (1.15, 0.031), (0.87, -0.02)])
def test_a_lag_is_found_where_the_sound_gets_louder(tempo: float, lag: float) -> None:
    beats = beat_times(120, 0.5, seconds=10)
    original, changed = drums(beats), drums(beats / tempo + lag)
    assert lag_seconds(original[None], changed[None], RATE, tempo) == pytest.approx(lag, abs=0.002)
    hum = np.ones((2, RATE), np.float32)
    assert lag_seconds(hum, hum[:, : RATE // 2], RATE, 2.0) == 0.0


def test_songs_without_beat_or_bass_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="the drums of still are silent: it has no tempo"):
        analyse(write_click_song(tmp_path / "still", drums=SILENCE))
    with pytest.raises(AudioError, match="the bass of high are silent: it has no key"):
        analyse(write_click_song(tmp_path / "high", bass=SILENCE))
    bass = soundfile.read(write_click_song(tmp_path / "one").files["bass"], dtype="float32")[0]
    opposite = write_click_song(tmp_path / "opposite", bass=bass * [1, -1])
    with pytest.raises(AudioError, match="the bass of opposite, mixed down, is silent"):
        analyse(opposite)
    once = drums(np.array([3.0]))
    with pytest.raises(AudioError, match="the drums of once have no beat"):
        analyse(write_click_song(tmp_path / "once", drums=once))
    song = write_click_song(tmp_path / "song")
    files = {source: file for source, file in song.files.items() if source != "vocals"}
    with pytest.raises(ConfigError, match="has no vocals"):
        analyse(msgspec.structs.replace(song, files=files))


def test_a_song_whose_halves_are_differently_fast_is_refused(tmp_path: Path) -> None:
    half = SECONDS / 2
    beats = np.concatenate([np.arange(0, half, 60 / 90), half + np.arange(0, half, 60 / 110)])
    with pytest.raises(AudioError, match="the drums of faster keep no tempo"):
        analyse(write_click_song(tmp_path / "faster", drums=drums(beats)))


def test_silent_vocals_do_not_sound(tmp_path: Path) -> None:
    assert "vocals" not in analyse(write_click_song(tmp_path / "song", vocals=SILENCE)).sounding
