"""The interface of the Music Demixing Challenge's starter kit, so that submissions run unchanged.

A submission is a class with `prediction_setup` and `prediction` that derives from the kit's
`evaluator.music_demixing.MusicDemixingPredictor`, and a script that calls its `run`. `run_script`
lets that script find the class below under the kit's name. Folders, time limits and a choice of
songs come from the environment, as in the kit.

Source: the kit's documentation, and arXiv 2108.13559, section 2.
"""

from __future__ import annotations

import inspect
import os
import runpy
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import ClassVar

from sonorant.errors import AudioError, ConfigError, SonorantError

SOURCES = ("bass", "drums", "other", "vocals")
"""In the kit's order."""
SETUP_SECONDS = 900
SONG_SECONDS = 240
"""The challenge's limits."""
KIT_MODULE = "evaluator.music_demixing"


class TimeLimitError(SonorantError):
    """A submission took longer than the challenge allows."""


class MusicDemixingPredictor:
    """What submissions derive from; attributes and methods are named as in the kit.

    The environment is read when one is made: TEST_DATASET_PATH with SONG/mixture.wav (by default
    data/test), RESULTS_DATASET_PATH for SONG/SOURCE.wav (data/results),
    INFERENCE_SETUP_TIMEOUT_SECONDS (900), INFERENCE_PER_MUSIC_TIMEOUT_SECONDS (240), and
    PARTIAL_RUN_MUSIC_NAMES, songs separated by commas; without it all songs.
    """

    separated: ClassVar[list[str]] = []
    """Songs that all submissions of this process have separated."""

    def __init__(self) -> None:
        here = Path.cwd() / "data"
        self.test_data_path = os.environ.get("TEST_DATASET_PATH", str(here / "test"))
        self.results_data_path = os.environ.get("RESULTS_DATASET_PATH", str(here / "results"))
        self.inference_setup_timeout = _seconds("INFERENCE_SETUP_TIMEOUT_SECONDS", SETUP_SECONDS)
        self.inference_per_music_timeout = _seconds(
            "INFERENCE_PER_MUSIC_TIMEOUT_SECONDS", SONG_SECONDS
        )
        self.partial_run = os.environ.get("PARTIAL_RUN_MUSIC_NAMES")

    def prediction_setup(self) -> None:
        """Load the model; called once. A submission need not have it."""

    def prediction(
        self,
        mixture_file_path: str,
        bass_file_path: str,
        drums_file_path: str,
        other_file_path: str,
        vocals_file_path: str,
    ) -> None:
        """Separate one song: read the mixture's file and write the four others.

        Raises: ConfigError here; a submission has its own.
        """
        raise ConfigError(f"{type(self).__name__} has no `prediction`, which a submission needs")

    def get_all_music_names(self) -> list[str]:
        """The songs to separate, in alphabetical order."""
        root = Path(self.test_data_path)
        if not root.is_dir():
            raise ConfigError(f"there is no folder {root}; set TEST_DATASET_PATH")
        names = sorted(path.name for path in root.iterdir() if (path / "mixture.wav").is_file())
        if self.partial_run:
            wanted = self.partial_run.split(",")
            names = [name for name in names if name in wanted]
        if not names:
            raise ConfigError(f"there is no song to separate in {root}, as SONG/mixture.wav")
        return names

    def get_music_folder_location(self, music_name: str) -> str:
        """Where a song is."""
        return os.path.join(self.test_data_path, music_name)

    def get_music_file_location(self, music_name: str, instrument: str | None = None) -> str:
        """A song's mixture, or where a source's estimate goes, in a folder that is then made."""
        if instrument is None:
            return os.path.join(self.test_data_path, music_name, "mixture.wav")
        folder = os.path.join(self.results_data_path, music_name)
        os.makedirs(folder, exist_ok=True)
        return os.path.join(folder, f"{instrument}.wav")

    def evaluation(self) -> None:
        """Set up, and separate all songs.

        Raises: TimeLimitError if that takes too long, AudioError if a file is not written.
        """
        setup_limit = time_limit(self.inference_setup_timeout, "prediction_setup")
        with setup_limit:
            try:
                self.prediction_setup()
            except NotImplementedError as error:  # the kit's way to say that there is nothing to do
                warnings.warn(f"prediction_setup is taken as not there: {error!r}", stacklevel=2)
        takes_name = "music_name" in inspect.signature(self.prediction).parameters
        for name in self.get_all_music_names():
            files = {
                f"{source}_file_path": self.get_music_file_location(name, source)
                for source in SOURCES
            }
            first = {"music_name": name} if takes_name else {}  # in the kit's first release
            with time_limit(self.inference_per_music_timeout, f"prediction of {name}"):
                self.prediction(
                    mixture_file_path=self.get_music_file_location(name), **files, **first
                )
            if not self.verify_results(name):
                raise AudioError(f"prediction did not write all of {', '.join(files.values())}")
            MusicDemixingPredictor.separated.append(name)

    def verify_results(self, music_name: str) -> bool:
        """Whether all four files of a song are there."""
        return all(
            os.path.isfile(self.get_music_file_location(music_name, source)) for source in SOURCES
        )

    def unscored(self) -> list[str]:
        """Songs without their true sources beside the mixture, as in the challenge's own test."""
        return [
            name
            for name in self.get_all_music_names()
            if not all(
                os.path.isfile(os.path.join(self.test_data_path, name, f"{source}.wav"))
                for source in SOURCES
            )
        ]

    def scoring(self) -> dict[str, dict[str, float]]:
        """By song the SDR of every source, such as `sdr_bass`, and their mean `sdr`."""
        from sonorant.audio import read
        from sonorant.separation.metrics import fit_length, global_sdr

        scores: dict[str, dict[str, float]] = {}
        for name in self.get_all_music_names():
            values = {}
            for source in SOURCES:
                true = read(os.path.join(self.test_data_path, name, f"{source}.wav")).samples
                guess = read(self.get_music_file_location(name, source)).samples
                values[f"sdr_{source}"] = global_sdr(true, fit_length(guess, true.shape[-1])).item()
            scores[name] = {**values, "sdr": sum(values.values()) / len(values)}
        return scores

    def run(self) -> None:
        """What a submission's script calls."""
        self.evaluation()


class SeparatorPredictor(MusicDemixingPredictor):
    """A submission of one of our models, by its name or path."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.model = model

    def prediction_setup(self) -> None:
        from sonorant.separation.repositories import load_separator

        self.separator = load_separator(self.model, None)

    def prediction(
        self,
        mixture_file_path: str,
        bass_file_path: str,
        drums_file_path: str,
        other_file_path: str,
        vocals_file_path: str,
    ) -> None:
        from sonorant.audio import read, write

        paths = dict(
            zip(
                SOURCES,
                (bass_file_path, drums_file_path, other_file_path, vocals_file_path),
                strict=True,
            )
        )
        mixture = read(mixture_file_path)
        stems = self.separator.separate(mixture, stems=SOURCES)
        for source, path in paths.items():
            stem = stems[source].to(mixture.sample_rate, mixture.channels)
            write(path, stem, float_samples=True)


def run_script(script: Path, environment: dict[str, str] | None = None) -> list[str]:
    """Run a submission's script as `python SCRIPT` does in the kit; the songs that were separated.

    environment: variables as of `MusicDemixingPredictor`, beside those that are set.
    Raises: ConfigError if the script runs no submission; what the script raises.
    """
    if not script.is_file():
        raise ConfigError(f"there is no script {script}")
    before = len(MusicDemixingPredictor.separated)
    path, known = list(sys.path), set(sys.modules)
    try:
        with kit_environment(environment or {}):
            _install_kit(script.parent)
            sys.path.insert(0, str(script.parent.resolve()))
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as exit_:
        if exit_.code not in (None, 0):
            raise ConfigError(f"{script} ended with the exit code {exit_.code}") from exit_
    finally:
        sys.path[:] = path
        for name in {KIT_MODULE, KIT_MODULE.partition(".")[0]} - known:
            sys.modules.pop(name, None)
    done = MusicDemixingPredictor.separated[before:]
    if not done:
        raise ConfigError(f"{script} separated nothing: it must call run() of a submission")
    return done


@contextmanager
def kit_environment(variables: dict[str, str]) -> Iterator[None]:
    """These environment variables, for a while, beside those that are set."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _install_kit(folder: Path) -> None:
    """Make the class known under the kit's name; the kit's other modules may lie in a folder."""
    package, module = ModuleType(KIT_MODULE.partition(".")[0]), ModuleType(KIT_MODULE)
    package.__path__ = [str(folder / package.__name__)]
    setattr(module, MusicDemixingPredictor.__name__, MusicDemixingPredictor)
    sys.modules.update({package.__name__: package, KIT_MODULE: module})


def _seconds(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"{variable} must be a number of seconds, not {text!r}")
    return int(text)


@contextmanager
def time_limit(seconds: int, what: str) -> Iterator[None]:
    """Raise TimeLimitError in what runs longer, at its next Python instruction.

    Only in a program's main thread, and where the system has alarms (not on Windows); elsewhere
    there is no limit.
    """
    alarm = getattr(signal, "SIGALRM", None)
    if alarm is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeLimitError(f"{what} took longer than {seconds} s")

    former = signal.signal(alarm, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(alarm, former)
