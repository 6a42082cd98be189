from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch

from sonorant.audio import Audio, AudioWriter, info, read, write
from sonorant.errors import AudioError, ConfigError
from sonorant.model import load
from sonorant.separation.files import Selection, separate_file
from sonorant.separation.separator import Separator
from sonorant.separation.settings import Settings
from sonorant.separation.stem_files import Encoding
from tests.separation.toys import Gains, Ramps, ToyConfig

RATE = 1000
CONFIG = ToyConfig(sample_rate=RATE, segment_samples=640, surroundings=11)
FLOAT = Encoding(samples="float32")


def song(folder: Path, seconds: float = 9.0, channels: int = 2, rate: int = RATE) -> Path:
    generator = torch.Generator().manual_seed(4)
    samples = 0.2 * torch.randn(channels, int(seconds * rate), generator=generator).clamp(-4, 4)
    write(folder / "song.wav", Audio(samples, rate), float_samples=True)
    return folder / "song.wav"


def targets(folder: Path, ending: str = "wav"):
    return lambda stem: folder / "stems" / f"{stem}.{ending}"


def left_over(folder: Path) -> list[str]:
    """Everything but the song and its stems."""
    return [
        path.name
        for path in folder.rglob("*")
        if path.name not in ("song.wav", "stems") and not path.name.startswith(("source", "no_"))
    ]


class StopError(Exception):
    """What a user's Ctrl-C is here."""


def stop_after(seconds: float):
    def progress(done: float, total: float) -> None:
        if done >= seconds:
            raise StopError

    return progress


@pytest.mark.parametrize("shifts", [0, 2])
def test_stems_from_the_disk_are_those_from_memory(tmp_path: Path, shifts: int) -> None:
    source, model = song(tmp_path, rate=1500), Ramps(CONFIG)
    settings = Settings(shifts=shifts)
    paths = separate_file(source, targets(tmp_path), model, settings=settings, encoding=FLOAT)
    expected = model.separate(read(source), shifts=shifts)
    assert list(paths) == list(expected)
    for name, path in paths.items():
        torch.testing.assert_close(read(path).samples, expected[name].samples, atol=1e-6, rtol=1e-5)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("rest", ["add", "minus"])
def test_what_is_cut_short_goes_on_where_it_stopped(tmp_path: Path, rest: str) -> None:
    source = song(tmp_path)
    selection = Selection(("source1",), rest)  # type: ignore[arg-type]
    arguments = {"selection": selection, "encoding": FLOAT, "settings": Settings(shifts=1)}
    with pytest.raises(StopError):
        separate_file(source, targets(tmp_path), Ramps(CONFIG), progress=stop_after(6), **arguments)
    assert not list(tmp_path.rglob("*.wav"))[1:]
    model = Ramps(CONFIG)
    resumed = separate_file(source, targets(tmp_path), model, **arguments)
    again = Ramps(CONFIG)
    whole = separate_file(source, targets(tmp_path / "whole"), again, **arguments)
    assert len(model.inputs) < len(again.inputs) / 2
    for name in whole:
        torch.testing.assert_close(read(resumed[name]).samples, read(whole[name]).samples)


@pytest.mark.parametrize("change", ["sound", "settings", "weights"])
def test_stems_of_something_else_are_not_gone_on_with(tmp_path: Path, change: str) -> None:
    source, model = song(tmp_path), Gains(CONFIG)
    with pytest.raises(StopError):
        separate_file(source, targets(tmp_path), model, encoding=FLOAT, progress=stop_after(6))
    settings = Settings(overlap=0.5 if change == "settings" else 0.25)
    if change == "sound":
        write(source, Audio(-read(source).samples, RATE), float_samples=True)
    if change == "weights":
        model.gains.data += 0.1
    paths = separate_file(source, targets(tmp_path), model, settings=settings, encoding=FLOAT)
    expected = model.separate(read(source))["source0"].samples
    torch.testing.assert_close(read(paths["source0"]).samples, expected)


def test_a_second_run_on_the_same_stems_is_refused_and_harms_neither(tmp_path: Path) -> None:
    source, model, refused = song(tmp_path), Gains(CONFIG), []

    def meanwhile(done: float, total: float) -> None:
        with pytest.raises(AudioError, match="another run is making the same stems"):
            separate_file(source, targets(tmp_path), model, encoding=FLOAT)
        refused.append(done)

    paths = separate_file(source, targets(tmp_path), model, encoding=FLOAT, progress=meanwhile)
    assert len(refused) > 1
    expected = model.separate(read(source))["source0"].samples
    torch.testing.assert_close(read(paths["source0"]).samples, expected)
    assert not left_over(tmp_path)


def test_no_stem_is_there_before_all_are_done(tmp_path: Path) -> None:
    source, seen = song(tmp_path), []
    separate_file(
        source,
        targets(tmp_path),
        Gains(CONFIG),
        progress=lambda done, total: seen.append(len(list(tmp_path.rglob("source*")))),
    )
    assert set(seen) == {0}


def test_an_interrupt_stops_the_encoding_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, model, consumed = song(tmp_path), Ramps(CONFIG), []

    def interrupted(path, pieces, stem, encoding):
        if path.name.startswith("0"):
            raise KeyboardInterrupt
        path.write_bytes(b"half")
        for piece in pieces:
            consumed.append(piece)
            time.sleep(0.2)

    with monkeypatch.context() as patch:
        patch.setattr("sonorant.separation.files.write_stem", interrupted)
        patch.setattr("sonorant.separation.files.PIECE_SECONDS", 1)
        with pytest.raises(KeyboardInterrupt):
            separate_file(source, targets(tmp_path), model, encoding=FLOAT, jobs=2)
    assert len(consumed) < 5  # of nine
    assert [path.name for path in tmp_path.rglob("*.wav") if "unfinished" not in str(path)] == [
        source.name
    ]
    seen: list[float] = []
    paths = separate_file(
        source,
        targets(tmp_path),
        model,
        encoding=FLOAT,
        progress=lambda done, total: seen.append(done),
    )
    assert not seen  # nothing was separated again
    assert not list(tmp_path.rglob("*.unfinished"))
    expected = model.separate(read(source))
    torch.testing.assert_close(read(paths["source0"]).samples, expected["source0"].samples)


def test_packed_models_separate_files(tmp_path: Path) -> None:
    model = load("sonorant/htdemucs-small")
    assert isinstance(model, Separator)
    plain = model.checksum()
    model.optimize("int8")
    assert model.checksum() != plain
    source = song(tmp_path, seconds=1, rate=44100)
    paths = separate_file(source, targets(tmp_path), model, encoding=FLOAT)
    expected = model.separate(read(source))
    torch.testing.assert_close(read(paths["bass"]).samples, expected["bass"].samples)


@pytest.mark.parametrize(
    "target", [lambda stem: "same.wav", lambda stem: "song.wav", lambda stem: f"{stem}.flac"]
)
def test_targets_that_do_not_fit_are_refused(tmp_path: Path, target) -> None:
    source = song(tmp_path)
    before = source.read_bytes()
    with pytest.raises(ConfigError, match=r"file of its own|of that ending"):
        separate_file(source, lambda stem: tmp_path / target(stem), Gains(CONFIG))
    assert source.read_bytes() == before
    assert list(tmp_path.iterdir()) == [source]


def test_a_sound_that_is_refused_leaves_no_folder(tmp_path: Path) -> None:
    source = song(tmp_path)
    samples = read(source).samples
    samples[0, 5000] = torch.nan
    soundfile.write(tmp_path / "nan.wav", samples.T.numpy(), RATE, "FLOAT")
    with pytest.raises(AudioError, match="sample 5000"):
        separate_file(tmp_path / "nan.wav", targets(tmp_path), Gains(CONFIG))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nan.wav", "song.wav"]


def test_the_rest_is_the_sum_or_what_is_left(tmp_path: Path) -> None:
    source = song(tmp_path)
    model = Gains(ToyConfig(gains=(0.2, 0.3, 0.1), sample_rate=RATE, segment_samples=640))
    samples = read(source).samples
    for rest, share in (("add", 0.3), ("minus", 0.7)):
        selection = Selection(("source1",), rest)  # type: ignore[arg-type]
        paths = separate_file(source, targets(tmp_path), model, selection=selection, encoding=FLOAT)
        name = {"add": "no_source1", "minus": "minus_source1"}[rest]
        assert list(paths) == ["source1", name]
        other = read(paths[name]).samples
        torch.testing.assert_close(
            other - other.mean(), share * (samples - samples.mean()), atol=1e-4, rtol=0
        )


def test_only_a_single_stem_has_a_rest() -> None:
    with pytest.raises(ConfigError, match="single stem"):
        Selection(None, "add")


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3", "ogg", "opus"])
def test_stems_are_written_in_every_format(tmp_path: Path, ending: str) -> None:
    config = ToyConfig(sample_rate=44100, segment_samples=20000)
    source = song(tmp_path, seconds=1, rate=44100)
    paths = separate_file(
        source, targets(tmp_path, ending), Gains(config), encoding=Encoding(ending), jobs=2
    )
    for path in paths.values():
        assert info(path).duration_seconds == pytest.approx(1.0, abs=0.06)
        assert info(path).channels == 2


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    source = song(tmp_path)
    (tmp_path / "stems").write_text("in the way")
    with pytest.raises(AudioError, match="cannot write the stems"):
        separate_file(source, targets(tmp_path), Gains(CONFIG))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["song.wav", "stems"]


def test_a_full_disk_loses_nothing_that_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, model = song(tmp_path), Ramps(CONFIG)
    room = 5

    def full(*arguments: object) -> bool:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(28, "No space left on device")
        return False

    with monkeypatch.context() as patch:
        patch.setattr("sonorant.separation.unfinished.os.replace", _replacing_until(full))
        with pytest.raises(AudioError, match=r"No space left.*same command goes on"):
            separate_file(source, targets(tmp_path), model, encoding=FLOAT)
    assert not list(tmp_path.rglob("*.wav"))[1:]
    paths = separate_file(source, targets(tmp_path), model, encoding=FLOAT)
    expected = model.separate(read(source))
    torch.testing.assert_close(read(paths["source0"]).samples, expected["source0"].samples)


def test_a_disk_that_is_full_while_stems_are_encoded_leaves_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, model = song(tmp_path), Ramps(CONFIG)

    def second_fails(path, pieces, stem, encoding):
        if path.name.startswith("1"):
            raise AudioError(f"cannot write {path}: No space left on device")
        path.write_bytes(b"whole")

    with monkeypatch.context() as patch:
        patch.setattr("sonorant.separation.files.write_stem", second_fails)
        with pytest.raises(AudioError, match=r"No space left.*same command goes on"):
            separate_file(source, targets(tmp_path), model, encoding=FLOAT)
    assert not list(tmp_path.rglob("source*"))
    paths = separate_file(source, targets(tmp_path), model, encoding=FLOAT)
    expected = model.separate(read(source))
    torch.testing.assert_close(read(paths["source1"]).samples, expected["source1"].samples)


def _replacing_until(full):
    import os

    replace = os.replace

    def limited(old: str, new: str) -> None:
        full()
        replace(old, new)

    return limited


def test_damaged_sounds_are_refused(tmp_path: Path) -> None:
    path = song(tmp_path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(AudioError, match="cut short"):
        separate_file(path, targets(tmp_path), Gains(CONFIG))
    assert left_over(tmp_path) == []


MEASURE = """
import resource, sys
from pathlib import Path
from sonorant.separation.files import separate_file
from tests.separation.toys import Forgetful, ToyConfig

source = Path(sys.argv[1])
model = Forgetful(ToyConfig(sample_rate=8000, segment_samples=40_000))
separate_file(source, lambda stem: source.parent / "stems" / f"{stem}.wav", model)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_kilobytes(folder: Path, minutes: int) -> int:
    """Memory of a process of its own that separates silence of that length."""
    folder.mkdir()
    with AudioWriter(folder / "song.wav", 8000, 1) as writer:
        for _ in range(minutes):
            writer.write(torch.zeros(1, 60 * 8000))
    command = [sys.executable, "-c", MEASURE, str(folder / "song.wav")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert info(folder / "stems" / "source0.wav").frames == minutes * 60 * 8000
    return int(done.stdout)


@pytest.mark.slow
def test_two_hours_take_no_more_memory_than_two_minutes(tmp_path: Path) -> None:
    short, long = (peak_kilobytes(tmp_path / str(m), minutes=m) for m in (2, 120))
    sound_kilobytes = 120 * 60 * 8000 * 4 / 1000
    assert long - short < sound_kilobytes / 10
