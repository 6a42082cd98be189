"""Songs from MIDI, recorded drums and voices: which notes go where, and whole songs."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pytest
import soundfile

from sonorant.data.compositions import (
    RATE,
    Composition,
    hits,
    midi_files,
    notes_of,
    split_by_stem,
    stem_of,
    styles,
)
from sonorant.data.corpora import Selection
from sonorant.data.prepare import Candidate
from sonorant.data.rendered_songs import Plan, Recordings, finish, render, share_out
from sonorant.data.songs import read_songs, read_stem
from sonorant.errors import AudioError, ConfigError, DependencyError
from tests.data.test_drum_kits import write_kit


def piece(seconds: float = 2.0) -> Any:
    """A bar of drums, bass and piano; and a choir, which is no voice."""
    midi = mido.MidiFile()
    programs = {9: (0, 36), 0: (33, 40), 1: (0, 60), 2: (52, 64)}
    for channel, (program, note) in programs.items():
        track = mido.MidiTrack()
        track.append(mido.Message("program_change", channel=channel, program=program))
        for _ in range(int(4 * seconds)):
            for velocity in (100, 0):
                track.append(
                    mido.Message("note_on", channel=channel, note=note, velocity=velocity, time=120)
                )
        midi.tracks.append(track)
    return midi


def test_notes_go_to_their_stems_at_their_times() -> None:
    whole = piece()
    parts = split_by_stem(whole, np.random.default_rng(0))
    assert {stem: {note for _, note, _ in hits(part)} for stem, part in parts.items()} == {
        "drums": {36},
        "bass": {40},
        "other": {60},
    }
    drums = [second for second, note, _ in hits(whole) if note == 36]
    assert [second for second, _, _ in hits(parts["drums"])] == pytest.approx(drums)


def test_channels_programmes_and_names_tell_the_stem() -> None:
    programs = {0: 33, 1: 0, 2: 53}
    assert [stem_of(channel, programs) for channel in (9, 0, 1, 2)] == [
        "drums",
        "bass",
        "other",
        "",
    ]
    assert stem_of(1, programs, "Bass-Guitar") == "bass"


def test_midi_is_found_in_folders_and_game_archives(tmp_path: Path) -> None:
    piece().save(tmp_path / "song.mid")
    midi = (tmp_path / "song.mid").read_bytes()
    entries = struct.pack("<ii8s", 12, len(midi), b"D_E1M1") + struct.pack("<ii8s", 0, 4, b"TEXT")
    archive = b"PWAD" + struct.pack("<ii", 2, 12 + len(midi)) + midi + entries
    (tmp_path / "game.wad").write_bytes(archive)
    found = midi_files(tmp_path, "CC0", "someone")
    assert [each.name for each in found] == ["game-d_e1m1", "song"]
    assert found[0].midi == midi
    assert notes_of(found[0], 1, np.random.default_rng(0)).length == pytest.approx(2.0)
    (tmp_path / "game.wad").write_bytes(b"nothing")
    with pytest.raises(AudioError, match="not a WAD"):
        midi_files(tmp_path, "CC0", "someone")


def test_damaged_midi_is_refused() -> None:
    broken = Composition(name="broken", licence="", attribution="", midi=b"MThd nothing")
    with pytest.raises(AudioError, match="broken is not a MIDI file"):
        notes_of(broken, 1, np.random.default_rng(0))


def test_styles_need_their_library(tmp_path: Path) -> None:
    with pytest.raises(DependencyError, match="install the package mma"):
        styles(tmp_path / "none")
    (tmp_path / "pop.mma").write_text(
        "Drum Sequence\nBass Sequence\nDefGroove PopIntro\nDefGroove Pop\n"
    )
    (tmp_path / "harp.mma").write_text("DefGroove Harp\n")
    assert [(each.name, each.style) for each in styles(tmp_path)] == [
        (f"{tmp_path.name}-pop", "Pop")
    ]


def test_a_piece_is_always_in_the_same_split() -> None:
    pieces = [
        Composition(name=f"piece{number}", licence="", attribution="") for number in range(200)
    ]
    parts = share_out(pieces)
    assert parts == share_out(pieces)
    assert sum(map(len, parts.values())) == 200
    assert all(8 <= len(parts[split]) <= 35 for split in ("valid", "test"))


def recordings(folder: Path) -> Recordings:
    piece().save(folder / "song.mid")
    wave = 0.3 * np.sin(2 * np.pi * 150 / RATE * np.arange(RATE // 2))
    soundfile.write(folder / "voice.wav", wave, RATE)
    kit = write_kit(folder / "kit", {"Kick": [0.9], "Snare": [0.5], "HiHat": [0.5]})
    spoken = Candidate(
        path=folder / "voice.wav",
        source="voices",
        original="voice.wav",
        group="language: xx",
        split="train",
        selection=Selection(domain="speech", licence="CC0", attribution="a speaker"),
    )
    return Recordings(
        compositions=tuple(midi_files(folder, "CC0", "a composer")),
        soundfonts=((folder / "none.sf2", "MIT"),),
        kits=(kit,),
        loops=(spoken,),
        voices=(spoken,),
    )


def stand_in_for_fluidsynth(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name that plays a second of a tone for any MIDI file."""
    tone = folder / "tone.wav"
    wave = 0.2 * np.sin(2 * np.pi * 220 / RATE * np.arange(RATE))
    soundfile.write(tone, np.stack([wave, wave], 1), RATE, "FLOAT")
    program = folder / "bin" / "fluidsynth"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nwhile [ "$1" != -F ]; do shift; done\ncp "{tone}" "$2"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


def test_songs_are_whole_levelled_and_say_whose_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_fluidsynth(tmp_path, monkeypatch)
    plan = Plan(out=tmp_path / "out", songs={"train": 2}, seconds=6.0, seed=1)
    made = {"train": recordings(tmp_path)}
    songs = read_songs(finish(plan, render(plan, made)))
    assert [song.name for song in songs] == ["train0000", "train0001"]
    for song in songs:
        stems = [read_stem(song, source) for source in ("drums", "bass", "other", "vocals")]
        assert all(stem.shape == (2, 6 * RATE) for stem in stems)
        assert all(np.abs(stem).max() > 0.01 for stem in stems)
        assert np.abs(np.sum(stems, axis=0)).max() <= 0.91
        assert "none: MIT" in song.licence
        assert "a composer" in song.attribution
    before = [read_stem(song, "vocals") for song in songs]
    notes = json.loads((tmp_path / "out/train/train0000/made_of.json").read_text())
    assert notes["piece"] == ["song"]
    # A song that was not finished is made again, and is the same.
    shutil.rmtree(tmp_path / "out/train/train0001")
    again = list(render(plan, made))
    np.testing.assert_array_equal(read_stem(again[1], "vocals"), before[1])


def test_a_split_without_voices_says_so(tmp_path: Path) -> None:
    plan = Plan(out=tmp_path / "out", songs={"train": 1})
    silent = recordings(tmp_path)
    nothing = Recordings(
        **{**{n: getattr(silent, n) for n in silent.__struct_fields__}, "voices": ()}
    )
    with pytest.raises(ConfigError, match="there are no voices to make train songs of"):
        list(render(plan, {"train": nothing}))
