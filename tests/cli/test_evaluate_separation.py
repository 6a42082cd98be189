"""`sonorant evaluate separation`, `leaderboard` and `submission`: tables, JSON, faults."""

import json
import re

import pytest

from tests.cli.running import CommandLine, sonorant
from tests.separation.song_folders import SONGS, SOURCES, write_estimates, write_songs
from tests.separation.test_evaluation import tiny_model
from tests.separation.test_starter_kit import SCRIPT

__all__ = ["sonorant"]  # the fixture


@pytest.fixture(autouse=True)
def songs(sonorant: CommandLine) -> None:
    write_songs(sonorant.folder / "songs")
    write_estimates(sonorant.folder / "good", leakage=0.05)
    write_estimates(sonorant.folder / "bad", leakage=0.5)


def cells(line: str) -> list[str]:
    return re.split(r"  +", line.strip())


def test_a_folder_is_measured_as_table_json_and_picture(sonorant: CommandLine) -> None:
    command = ("evaluate", "separation", "good", "songs")
    assert sonorant.run(*command, "--json", "out.json", "--picture", "out.png") == 0
    lines = [cells(line) for line in sonorant.out.splitlines()]
    assert lines[0] == ["dB", *SOURCES, "all"]
    assert [line[0] for line in lines[1:]] == ["SDR", "ISR", "SIR", "SAR", "SDR of songs"]
    figures = json.loads((sonorant.folder / "out.json").read_text())
    assert lines[1][1] == f"{figures['totals']['bass']['sdr']['median']:.2f}"
    assert lines[5][5] == f"{figures['totals']['all']['global_sdr']['mean']:.2f}"
    assert [song["name"] for song in figures["songs"]] == sorted(SONGS)
    assert (sonorant.folder / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_is_measured_while_it_separates(sonorant: CommandLine) -> None:
    tiny_model().save_pretrained(sonorant.folder / "separator")
    command = ("evaluate", "separation", "separator", "songs", "--no-bss", "--shifts", "1")
    assert sonorant.run(*command) == 0
    *table, note = sonorant.out.splitlines()
    assert [cells(line)[0] for line in table] == ["dB", "SDR of songs"]
    assert "converted to the songs' rate and channels: First (8000 Hz, 2 channel(s))" in note


def test_silent_frames_are_told(sonorant: CommandLine) -> None:
    import torch

    from sonorant.audio import Audio, write
    from tests.separation.song_folders import RATE, SAMPLES

    sound = torch.randn(1, SAMPLES, generator=torch.Generator().manual_seed(0))
    sound[:, :RATE] = 0
    write(sonorant.folder / "good" / "First" / "bass.wav", Audio(0.1 * sound, RATE))
    assert sonorant.run("evaluate", "separation", "good", "songs") == 0
    assert "frames not scored, as a source is silent in them: First (1 of 3)" in sonorant.out


def test_the_leaderboard_has_two_boards_with_baselines(sonorant: CommandLine) -> None:
    entries = ("Mine=bad", "good")
    command = ("evaluate", "leaderboard", "songs", *entries, "--only-musdb", "Mine")
    assert sonorant.run(*command, "--json", "boards.json") == 0
    first, second = sonorant.out.split("Board B")
    assert "Board A: trained on the training songs of MUSDB18-HQ only" in first
    ranks = [cells(line)[:2] for line in second.splitlines()[2:] if line]
    assert ranks[:2] == [["good", "1"], ["Mine", "2"]]
    assert {name for name, rank in ranks[2:]} == {"mixture", "ibm1", "irm1", "mwf"}
    assert {rank for name, rank in ranks[2:]} == {"-"}
    boards = json.loads((sonorant.folder / "boards.json").read_text())
    assert [row["name"] for row in boards["a"] if row["rank"]] == ["Mine"]


def test_a_source_that_a_song_lacks_is_told(sonorant: CommandLine) -> None:
    songs = sonorant.folder / "songs"
    command = ("evaluate", "separation", "irm1", "songs", "--no-bss", "--json", "out.json")
    assert sonorant.run(*command) == 0
    whole = json.loads((sonorant.folder / "out.json").read_text())["songs"][0]["sources"]["bass"]
    assert "not measured" not in sonorant.err
    (songs / "Second" / "vocals.wav").unlink()
    assert sonorant.run(*command) == 0
    assert "not measured: vocals, for not all songs have it: Second (lacks it)" in sonorant.err
    found = json.loads((sonorant.folder / "out.json").read_text())["songs"][0]["sources"]
    assert "vocals" not in found
    assert found["bass"]["global_sdr"] == pytest.approx(whole["global_sdr"], abs=1e-6)


def test_a_submission_to_songs_without_truth_is_run(sonorant: CommandLine) -> None:
    (sonorant.folder / "predict.py").write_text(SCRIPT)
    (sonorant.folder / "helper_of_submission.py").write_text("WORDS = 'all done'\n")
    write_songs(sonorant.folder / "set" / "test")
    (sonorant.folder / "set" / "test" / "First" / "bass.wav").unlink()
    command = ("evaluate", "submission", "predict.py", "--songs", "set", "--results", "made")
    assert sonorant.run(*command) == 0
    assert "not scored: First (no true stems)" in sonorant.err
    assert (sonorant.folder / "made" / "First" / "bass.wav").is_file()


def test_a_submission_is_run_and_scored(sonorant: CommandLine) -> None:
    (sonorant.folder / "predict.py").write_text(SCRIPT)
    (sonorant.folder / "helper_of_submission.py").write_text("WORDS = 'all done'\n")
    command = ("evaluate", "submission", "predict.py", "--songs", "songs", "--results", "made")
    assert sonorant.run(*command, "--only", "First") == 0
    lines = [cells(line) for line in sonorant.out.splitlines()]
    assert lines[0] == ["all done"]
    assert lines[1] == ["dB", *(f"sdr_{source}" for source in SOURCES), "sdr"]
    assert [line[0] for line in lines[2:]] == ["First", "mean"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("separation", "good", "model"), "holds no songs"),
        (("separation", "nothing", "songs"), "nothing"),
        (("separation", "good", "songs", "--json", "none/out.json"), "no folder"),
        (("separation", "good", "songs", "--picture", "out.gif"), "name ends in"),
        (("separation", "good", "songs", "--window", "0"), "above 0"),
        (("leaderboard", "songs", "good", "--only-musdb", "Mine"), "names no entry: Mine"),
        (("separation", "good", "songs", "--window", "nan"), "above 0"),
        (("separation", "good", "songs", "--window", "0.00001"), "a sample or more"),
        (("separation", "good", "songs", "--hop", "0"), "above 0"),
        (("submission", "none.py", "--songs", "songs"), "there is no script none.py"),
    ],
)
def test_mistakes_are_one_line(
    sonorant: CommandLine, arguments: tuple[str, ...], words: str
) -> None:
    assert words in sonorant.fails("evaluate", *arguments)
