"""`sonorant data curate` and `automix`: what they write, what they tell, and what they refuse."""

import json
import sys

import pytest
import soundfile

from sonorant.data.folder_lock import only_run_in
from sonorant.data.songs import read_songs
from tests.cli.running import CommandLine, sonorant
from tests.separation.click_songs import write_click_song
from tests.separation.song_folders import SOURCES
from tests.separation.songs import write_song
from tests.separation.test_evaluation import tiny_model

__all__ = ["sonorant"]  # the fixture

CURATE = ("data", "curate", "songs", "--out", "good.jsonl", "--model", "separator")
AUTOMIX = ("data", "automix", "songs", "--out", "mixes")


@pytest.fixture
def separator(sonorant: CommandLine) -> None:
    """A separator that was never trained, and a song that has what it separates."""
    tiny_model().save_pretrained(sonorant.folder / "separator")
    write_song(sonorant.folder / "songs" / "train" / "Jam", sources=(*SOURCES, "more"))


@pytest.mark.usefixtures("separator")
def test_curation_goes_on_from_what_is_measured(sonorant: CommandLine) -> None:
    write_song(sonorant.folder / "songs" / "train" / "Duo")
    write_song(sonorant.folder / "songs" / "test" / "Exam")
    (sonorant.folder / "songs" / "train" / "Torn").mkdir()
    (sonorant.folder / "songs" / "train" / "Torn" / "bass.wav").write_bytes(b"RIFF and nothing")
    assert sonorant.run(*CURATE) == 2
    assert "error: no song passes; good.measured.jsonl says why" in sonorant.err
    assert "left out: Duo has no vocals, other, more: it has bass, drums" in sonorant.err
    assert "Torn/bass.wav" in sonorant.err
    assert not (sonorant.folder / "good.jsonl").exists()
    path = sonorant.folder / "good.measured.jsonl"
    measured = json.loads(path.read_text())
    assert measured["name"] == "Jam"
    assert all(share == 1.0 for share in measured["active"].values())
    assert measured["heard"].keys() == {*SOURCES, "more"}
    path.write_text(json.dumps({**measured, "kept": True}) + "\n")  # as if it had been found
    assert sonorant.run(*CURATE, "--licence", "CC0-1.0") == 0
    assert "1 of 1 songs kept" in sonorant.out
    kept = read_songs(sonorant.folder / "good.jsonl")
    assert [(song.name, song.licence) for song in kept] == [
        ("Jam", "CC0-1.0"),
        ("Exam", "CC0-1.0"),
    ]


def test_automix_writes_songs_of_several_songs(sonorant: CommandLine) -> None:
    train = sonorant.folder / "songs" / "train"
    write_click_song(train / "a", 120, 0.3)
    write_click_song(train / "b", 110, 0.7)
    write_click_song(sonorant.folder / "songs" / "valid" / "kept", 120, 0.3)
    write_song(train / "duo")
    torn = write_click_song(train / "torn", 120, 0.3)
    samples, rate = soundfile.read(torn.files["vocals"])
    samples[100] = float("nan")
    soundfile.write(torn.files["vocals"], samples, rate, "FLOAT")
    assert sonorant.run(*AUTOMIX, "--passes", "2") == 0, sonorant.err
    assert "wrote mixes/songs.jsonl: 4 mixes" in sonorant.out
    told = [line for line in sonorant.err.splitlines() if line.startswith("left out: ")]
    assert [line.split()[2] for line in told] == [torn.files["vocals"], "duo"]
    songs = read_songs(sonorant.folder / "mixes" / "songs.jsonl")
    assert [song.name for song in songs] == ["a.mix1", "a.mix2", "b.mix1", "b.mix2", "kept"]
    assert songs[-1].split == "valid"
    made = {path.name for path in (sonorant.folder / "mixes").iterdir()}
    assert made == {"train", "songs.jsonl", "features.jsonl"}
    before = sonorant.content()
    assert sonorant.run(*AUTOMIX, "--passes", "2") == 0
    assert sonorant.content() == before
    assert "made of other stems" in sonorant_error(sonorant, *AUTOMIX, "--seed", "7")


def test_what_lies_in_the_output_is_neither_overwritten_nor_shared(sonorant: CommandLine) -> None:
    train = sonorant.folder / "songs" / "train"
    for name, bpm, first in (("a", 120, 0.3), ("b", 110, 0.7)):
        write_click_song(train / name, bpm, first)
    assert sonorant.run("data", "songs", "songs", "--out", "list.jsonl") == 0
    assert "holds stems of SONGS" in sonorant.fails(
        "data", "automix", "list.jsonl", "--out", "songs"
    )
    with only_run_in(sonorant.folder / "mixes" / ".unfinished"):
        assert "another run is at work" in sonorant_error(sonorant, *AUTOMIX)
    assert sonorant.run(*AUTOMIX, "--passes", "1") == 0
    stem = sonorant.folder / "mixes" / "train" / "a.mix1" / "vocals.flac"
    stem.unlink()  # as if somebody had
    assert sonorant.run(*AUTOMIX, "--passes", "1") == 0
    assert stem.is_file()


def test_songs_of_which_a_stem_is_gone_are_left_out(sonorant: CommandLine) -> None:
    train = sonorant.folder / "songs" / "train"
    for name, bpm, first in (("a", 120, 0.3), ("b", 110, 0.7), ("gone", 120, 0.3)):
        write_click_song(train / name, bpm, first)
    assert sonorant.run("data", "songs", "songs", "--out", "list.jsonl") == 0
    (train / "gone" / "bass.wav").unlink()
    assert sonorant.run("data", "automix", "list.jsonl", "--out", "more", "--passes", "1") == 0
    assert "gone/bass.wav is named in list.jsonl but does not exist" in sonorant.err
    songs = read_songs(sonorant.folder / "more" / "songs.jsonl")
    assert [song.name for song in songs] == ["a.mix1", "b.mix1"]


def test_a_song_named_as_a_mix_is_told_before_the_mixing(sonorant: CommandLine) -> None:
    songs = sonorant.folder / "songs"
    for name, bpm in (("train/a", 120), ("train/b", 110), ("valid/a.mix1", 120)):
        write_click_song(songs / name, bpm, 0.3)
    assert "a.mix1 is a song, and would be a mix too" in sonorant_error(sonorant, *AUTOMIX)
    assert {path.name for path in (sonorant.folder / "mixes").iterdir()} == {"features.jsonl"}


def test_a_validation_song_that_is_not_finite_is_left_out(sonorant: CommandLine) -> None:
    for name, bpm, first in (("a", 120, 0.3), ("b", 110, 0.7)):
        write_click_song(sonorant.folder / "songs" / "train" / name, bpm, first)
    torn = write_click_song(sonorant.folder / "songs" / "valid" / "torn", 120, 0.3)
    samples, rate = soundfile.read(torn.files["bass"])
    samples[7] = float("inf")
    soundfile.write(torn.files["bass"], samples, rate, "FLOAT")
    assert sonorant.run(*AUTOMIX, "--passes", "1") == 0
    assert f"left out: {torn.files['bass']} holds inf at sample 7" in sonorant.err
    songs = read_songs(sonorant.folder / "mixes" / "songs.jsonl")
    assert [song.name for song in songs] == ["a.mix1", "b.mix1"]


def sonorant_error(sonorant: CommandLine, *arguments: str) -> str:
    """The last line of a command that tells of songs before it fails."""
    assert sonorant.run(*arguments) == 2
    return sonorant.err.splitlines()[-1]


def test_songs_of_which_none_can_be_used_are_an_error(sonorant: CommandLine) -> None:
    write_song(sonorant.folder / "songs" / "train" / "duo")
    assert sonorant_error(sonorant, *AUTOMIX) == "error: none of the 1 songs go together"
    tiny_model().save_pretrained(sonorant.folder / "separator")
    assert sonorant_error(sonorant, *CURATE) == "error: none of the 1 songs could be measured"


@pytest.mark.usefixtures("separator")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("curate", "model", "--out", "out.jsonl", "--model", "separator"), "holds no songs"),
        (("curate", "songs", "--out", "out.jsonl", "--model", "model"), "is no separator"),
        (("curate", "songs", "--out", "out.jsonl", "--model", "nothing"), "nothing"),
        (("curate", "songs", "--out", "songs", "--model", "separator"), "neither a folder"),
        (("curate", "model/config.json", "--out", "o.jsonl", "--model", "separator"), "not a song"),
        ((*CURATE[1:], "--device", "abacus"), "cannot use the device 'abacus'"),
        (("automix", "model", "--out", "mixes"), "holds no songs"),
        (("automix", "songs", "--out", "songs"), "a folder of its own"),
    ],
)
def test_mistakes_are_one_line(
    sonorant: CommandLine, arguments: tuple[str, ...], words: str
) -> None:
    assert words in sonorant.fails("data", *arguments)


@pytest.mark.usefixtures("separator")
@pytest.mark.parametrize("command", [CURATE, AUTOMIX])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    sonorant: CommandLine, command: tuple[str, ...]
) -> None:
    (sonorant.folder / "file").write_text("")
    arguments = [f"file/{each}" if each in ("good.jsonl", "mixes") else each for each in command]
    assert "file" in sonorant.fails(*arguments)


@pytest.mark.usefixtures("separator")
@pytest.mark.parametrize(("package", "extra"), [("librosa", "automix"), ("av", "formats")])
def test_a_missing_package_is_named(
    sonorant: CommandLine, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install 'sonorant[{extra}]'" in sonorant.fails(*AUTOMIX)
