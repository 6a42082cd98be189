"""Submissions to the 2021 challenge run as they are, within its limits."""

import sys
import time
from pathlib import Path

import pytest

from sonorant.errors import AudioError, ConfigError
from sonorant.separation.starter_kit import (
    MusicDemixingPredictor,
    SeparatorPredictor,
    TimeLimitError,
    kit_environment,
    run_script,
    time_limit,
)
from tests.separation.song_folders import SONGS, SOURCES, write_songs
from tests.separation.test_evaluation import tiny_model

SCRIPT = """
import shutil
from helper_of_submission import WORDS
from evaluator.music_demixing import MusicDemixingPredictor


class CopyPredictor(MusicDemixingPredictor):
    def prediction_setup(self):
        self.words = WORDS

    def prediction(
        self,
        mixture_file_path,
        bass_file_path,
        drums_file_path,
        other_file_path,
        vocals_file_path,
    ):
        for path in (bass_file_path, drums_file_path, other_file_path, vocals_file_path):
            shutil.copy(mixture_file_path, path)


submission = CopyPredictor()
submission.run()
print(submission.words)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a submission in `tmp_path`, with its script and songs."""
    write_songs(tmp_path / "test")
    (tmp_path / "predict.py").write_text(SCRIPT)
    (tmp_path / "helper_of_submission.py").write_text("WORDS = 'all done'\n")
    return {
        "TEST_DATASET_PATH": str(tmp_path / "test"),
        "RESULTS_DATASET_PATH": str(tmp_path / "results"),
    }


def test_a_submission_runs_unchanged(
    tmp_path: Path, environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path, modules = list(sys.path), set(sys.modules)
    assert run_script(tmp_path / "predict.py", environment) == sorted(SONGS)
    assert capsys.readouterr().out == "all done\n"
    for song in SONGS:
        for source in SOURCES:
            copied = (tmp_path / "results" / song / f"{source}.wav").read_bytes()
            assert copied == (tmp_path / "test" / song / "mixture.wav").read_bytes()
    assert sys.path == path
    assert not {name for name in sys.modules.keys() - modules if name.startswith("evaluator")}


def test_only_some_songs_are_separated_and_scored(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    environment["PARTIAL_RUN_MUSIC_NAMES"] = "Second,Third"
    assert run_script(tmp_path / "predict.py", environment) == ["Second"]
    with kit_environment(environment):
        scores = MusicDemixingPredictor().scoring()
    assert list(scores) == ["Second"]
    assert list(scores["Second"]) == [*(f"sdr_{source}" for source in SOURCES), "sdr"]
    # Four sources of one loudness: the rest of the mixture is three times as strong as a source.
    assert scores["Second"]["sdr"] == pytest.approx(-4.77, abs=0.2)


def test_the_first_release_s_song_name_is_given_where_it_is_asked_for(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    script = tmp_path / "predict.py"
    script.write_text(
        SCRIPT.replace("        self,\n", "        self,\n        music_name,\n").replace(
            "        for path", "        print(music_name)\n        for path"
        )
    )
    assert run_script(script, environment) == sorted(SONGS)


def test_one_of_our_models_is_a_submission(tmp_path: Path, environment: dict[str, str]) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    with kit_environment(environment):
        predictor = SeparatorPredictor(str(tmp_path / "model"))
    predictor.run()
    assert predictor.verify_results("First")
    assert predictor.scoring()["First"]["sdr"] < 5


def test_a_script_with_one_of_our_models_that_exits_is_a_submission(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    tiny_model().save_pretrained(tmp_path / "tiny")
    script = tmp_path / "ours.py"
    start = "import sys\nfrom sonorant.separation.starter_kit import SeparatorPredictor\n"
    script.write_text(f"{start}SeparatorPredictor({str(tmp_path / 'tiny')!r}).run()\nsys.exit(0)\n")
    assert run_script(script, environment) == sorted(SONGS)
    script.write_text("raise SystemExit('no model')")
    with pytest.raises(ConfigError, match="exit code no model"):
        run_script(script, environment)


def test_other_modules_of_the_kit_are_found_beside_the_script(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "evaluator").mkdir()
    (tmp_path / "evaluator" / "aicrowd_helpers.py").write_text("STARTED = True\n")
    script = tmp_path / "predict.py"
    script.write_text("from evaluator import aicrowd_helpers\n" + script.read_text())
    assert run_script(script, environment) == sorted(SONGS)


def test_what_takes_too_long_is_stopped() -> None:
    begun = time.monotonic()
    with (
        pytest.raises(TimeLimitError, match="the nap took longer than 1 s"),
        time_limit(1, "the nap"),
    ):
        time.sleep(30)
    assert time.monotonic() - begun < 20
    with time_limit(1, "nothing"):
        pass


def test_limits_are_those_of_the_environment(tmp_path: Path, environment: dict[str, str]) -> None:
    script = tmp_path / "predict.py"
    script.write_text(SCRIPT.replace("self.words = WORDS", "import time; time.sleep(30)"))
    environment["INFERENCE_SETUP_TIMEOUT_SECONDS"] = "1"
    with pytest.raises(TimeLimitError, match="prediction_setup took longer than 1 s"):
        run_script(script, environment)
    environment["INFERENCE_SETUP_TIMEOUT_SECONDS"] = "soon"
    with pytest.raises(ConfigError, match="must be a number of seconds, not 'soon'"):
        run_script(script, environment)


def test_a_submission_that_writes_nothing_or_never_runs_is_refused(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    script = tmp_path / "predict.py"
    script.write_text(SCRIPT.replace("shutil.copy(mixture_file_path, path)", "pass"))
    with pytest.raises(AudioError, match="did not write all of"):
        run_script(script, environment)
    script.write_text(SCRIPT.partition("submission.run()")[0])
    with pytest.raises(ConfigError, match="must call run"):
        run_script(script, environment)
    with pytest.raises(ConfigError, match="there is no script"):
        run_script(tmp_path / "none.py")


def test_a_submission_without_setup_runs_and_one_without_prediction_is_told(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="MusicDemixingPredictor has no `prediction`"):
        MusicDemixingPredictor().evaluation()

    class Unfinished(MusicDemixingPredictor):
        def prediction_setup(self) -> None:
            raise NotImplementedError("no kernel")

    with pytest.warns(UserWarning, match="no kernel"), pytest.raises(ConfigError):
        Unfinished().evaluation()
