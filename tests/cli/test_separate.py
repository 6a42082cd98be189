"""`sonorant separate`, file by file and live, and what it says about bad input."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sonorant.audio import Audio, info, read, write
from sonorant.separation.demucs_v3 import DemucsV3, DemucsV3Config
from sonorant.separation.repositories import load_separator
from tests.cli.running import CommandLine, sonorant

__all__ = ["sonorant"]  # the fixture

RATE = 8000
STEMS = ("drums", "bass", "other", "vocals")


@pytest.fixture
def separator(sonorant: CommandLine) -> CommandLine:
    """The command line, with a separator in `tiny` and a stereo sound in `song.wav`."""
    torch.manual_seed(0)
    config = DemucsV3Config(
        channels=4, depth=2, sample_rate=RATE, segment_seconds=0.5, norm_from_layer=9
    )
    DemucsV3(config).save_pretrained(sonorant.folder / "tiny")
    sound(sonorant.folder / "song.wav")
    return sonorant


def sound(path: Path, channels: int = 2, rate: int = RATE, seconds: float = 1.3) -> None:
    generator = torch.Generator().manual_seed(2)
    samples = 0.1 * torch.randn(channels, int(rate * seconds), generator=generator)
    path.parent.mkdir(exist_ok=True, parents=True)
    write(path, Audio(samples, rate))


def made(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_output_tree_is_that_of_demucs(separator: CommandLine) -> None:
    assert separator.run("separate", "song.wav", "-n", "tiny") == 0
    assert made(separator.folder / "separated") == [
        f"tiny/song/{stem}.wav" for stem in sorted(STEMS)
    ]
    assert "separating with tiny on cpu" in separator.err
    assert "times real time" in separator.out


def test_what_demucs_takes_by_default_is_taken(separator: CommandLine) -> None:
    assert separator.run("separate", "song.wav", "-n", "tiny", "-j", "0", "-v") == 0
    assert len(made(separator.folder / "separated")) == len(STEMS)


def test_stems_are_those_of_the_library(separator: CommandLine) -> None:
    assert separator.run("separate", "song.wav", "-n", "tiny", "--float32", "--shifts", "2") == 0
    expected = load_separator("tiny").separate(read("song.wav"), shifts=2)
    for stem in STEMS:
        found = read(separator.folder / "separated" / "tiny" / "song" / f"{stem}.wav")
        torch.testing.assert_close(found.samples, expected[stem].samples, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("add", ["no_vocals", "vocals"]),
        ("minus", ["minus_vocals", "vocals"]),
        ("none", ["vocals"]),
    ],
)
def test_two_stems(separator: CommandLine, method: str, names: list[str]) -> None:
    options = ("-n", "tiny", "--two-stems", "vocals", "--other-method", method, "-o", "out")
    assert separator.run("separate", "song.wav", *options) == 0
    assert made(separator.folder / "out") == [f"tiny/song/{name}.wav" for name in names]


def test_file_names_and_formats(separator: CommandLine) -> None:
    name = "{track}-{trackext}/{stem}.{ext}"
    for flag in ("--flac", "--mp3", "--opus", "--ogg"):
        arguments = ("-n", "tiny", "--filename", name, flag, "-j", "2", "--two-stems", "bass")
        assert separator.run("separate", "song.wav", *arguments) == 0
        path = separator.folder / "separated" / "tiny" / "song-wav" / f"bass.{flag[2:]}"
        assert info(path).channels == 2
    assert separator.run("separate", "song.wav", "-n", "tiny", "--int24") == 0
    assert info("separated/tiny/song/bass.wav").encoding == "PCM_24"


def test_folders_and_several_files(separator: CommandLine) -> None:
    sound(separator.folder / "album" / "one.wav", channels=1)
    sound(separator.folder / "album" / "disc" / "two.flac", rate=RATE * 2)
    (separator.folder / "album" / "cover.jpg").write_bytes(b"no sound")
    options = ("-n", "tiny", "--two-stems", "drums", "--other-method", "none")
    assert separator.run("separate", "song.wav", "album", *options) == 0
    assert made(separator.folder / "separated" / "tiny") == [
        "one/drums.wav",
        "song/drums.wav",
        "two/drums.wav",
    ]
    assert info("separated/tiny/two/drums.wav").sample_rate == RATE


def test_stems_in_the_folder_are_no_sounds_the_next_time(separator: CommandLine) -> None:
    sound(separator.folder / "album" / "one.wav")
    sound(separator.folder / "album" / ".hidden.wav")
    (separator.folder / "album" / "folder.wav").mkdir()
    for _ in range(2):
        assert separator.run("separate", "album", "-n", "tiny", "-o", "album/stems") == 0
        assert separator.out.count("times real time") == 1
    assert len(made(separator.folder / "album" / "stems")) == len(STEMS)


def test_tracks_of_one_name_go_to_folders_of_their_own(separator: CommandLine) -> None:
    for disc in ("d1", "d2"):
        sound(separator.folder / "album" / disc / "01.wav")
    assert separator.run("separate", "album", "-n", "tiny") == 2
    assert "begin --filename with {folder}/" in separator.err
    template = "{folder}/{track}.{stem}.{ext}"
    assert separator.run("separate", "album", "-n", "tiny", "--filename", template) == 0
    assert "tiny/d2/01.bass.wav" in made(separator.folder / "separated")


def test_long_titles_are_separated(separator: CommandLine) -> None:
    name = "長" * 83 + ".wav"  # 253 bytes
    sound(separator.folder / "x.wav")
    (separator.folder / "x.wav").rename(separator.folder / name)
    assert separator.run("separate", name, "-n", "tiny") == 0
    assert len(made(separator.folder / "separated")) == len(STEMS)


def test_existing_stems_are_skipped_on_demand(separator: CommandLine) -> None:
    options = ("separate", "song.wav", "-n", "tiny")
    assert separator.run(*options) == 0
    (separator.folder / "separated" / "tiny" / "song" / "bass.wav").write_bytes(b"mine")
    assert separator.run(*options, "--skip-existing") == 0
    assert "skipped" in separator.out
    assert Path("separated/tiny/song/bass.wav").read_bytes() == b"mine"
    assert separator.run(*options) == 0
    assert info("separated/tiny/song/bass.wav").frames == int(1.3 * RATE)


def test_one_bad_file_does_not_keep_the_others_from_being_separated(
    separator: CommandLine,
) -> None:
    Path("bad.wav").write_text("Dear sir or madam")
    assert separator.run("separate", "bad.wav", "song.wav", "-n", "tiny") == 2
    assert "bad.wav is not a sound file" in separator.err
    assert "1 of 2 sounds could not be separated" in separator.err
    assert len(made(separator.folder / "separated")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.wav",), "missing.wav does not exist"),
        (("song.wav", "--two-stems", "flute"), "no stem flute; it has drums, bass, other, vocals"),
        (("song.wav", "--overlap", "1"), "overlap"),
        (("song.wav", "--shifts", "-1"), "shifts"),
        (("song.wav", "--segment", "0"), "segment_seconds"),
        (("song.wav", "--device", "toaster"), "cannot use the device 'toaster'"),
        (("song.wav", "--filename", "{album}.{ext}"), "and nothing else in braces"),
        (("song.wav", "--filename", "{track}.{ext}"), "would both be written"),
        (("song.wav", "--filename", "{stem}.doc"), "must end in"),
        (("song.wav", "--device", "meta"), "cannot use the device 'meta'"),
        (("song.wav", "--flac", "--float32"), "only WAV holds float"),
        (("song.wav", "--mp3", "--mp3-bitrate", "1000"), "32 to 320 kb/s"),
        (("song.wav", "--segment", "1e9"), "too little memory"),
        (("empty",), "no sound file in the folder"),
        (("song.wav", "--repo", "empty"), "no package of the signature"),
    ],
)
def test_bad_input_is_said_in_one_line(
    separator: CommandLine, arguments: tuple[str, ...], message: str
) -> None:
    (separator.folder / "empty").mkdir()
    before = made(separator.folder)
    assert separator.run("separate", *arguments, "-n", "tiny") == 2
    last = separator.err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert made(separator.folder) == before


def test_a_model_that_is_no_separator_is_refused(separator: CommandLine) -> None:
    assert separator.run("separate", "song.wav", "-n", "model") == 2
    assert "which is no separator" in separator.err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("song.wav", "--stream"),
        ("song.wav", "--int24", "--float32"),
        ("song.wav", "--flac", "--mp3"),
        ("song.wav", "-s", "tiny"),
        ("song.wav", "-j", "-1"),
        ("song.wav", "--hop", "1"),
        ("--stream", "--shifts", "2"),
        ("--stream", "--flac"),
        ("song.wav", "--mp3-preset", "3"),
    ],
)
def test_options_that_exclude_each_other(
    separator: CommandLine, arguments: tuple[str, ...]
) -> None:
    assert separator.run("separate", *arguments, "-n", "tiny") == 2
    assert "Usage" in separator.err


def test_an_output_folder_that_cannot_be_written(separator: CommandLine) -> None:
    Path("separated").write_text("in the way")
    assert separator.run("separate", "song.wav", "-n", "tiny") == 2
    assert "cannot write the stems of song.wav" in separator.err


def test_models_are_listed(separator: CommandLine) -> None:
    assert separator.run("separate", "--list-models") == 0
    listed = [line.partition(":")[0] for line in separator.out.splitlines()]
    assert {"htdemucs", "htdemucs_ft", "mdx_extra_q", "demucs", "tasnet"} <= set(listed)
    assert "encodec_24khz" not in listed


def test_models_of_a_repository_are_listed_by_what_n_takes(separator: CommandLine) -> None:
    folder = separator.folder / "models"
    folder.mkdir()
    for name in ("bag.yaml", "aaaa0001-12345678.th", "b.th.gz", "damaged.safetensors", "notes.txt"):
        (folder / name).write_text("")
    said = {"klass": "demucs.hdemucs.HDemucs"}
    save_file({"a": torch.zeros(1)}, folder / "aaaa0003.safetensors", metadata=said)
    save_file({"a": torch.zeros(1)}, folder / "weights.safetensors")
    assert separator.run("separate", "--list-models", "--repo", "models") == 0
    assert separator.out.split() == ["bag", "aaaa0001", "aaaa0003", "b"]
    assert "no folder nowhere" in separator.fails("separate", "--list-models", "--repo", "nowhere")


def test_live_stems_come_through_pipes(separator: CommandLine) -> None:
    samples = read("song.wav").samples.T.numpy().astype("<f4")
    command = [sys.executable, "-m", "sonorant.cli.main", "separate", "--stream", "-n", "tiny"]
    times = ["--hop", "0.1", "--lookahead", "0.05"]
    done = subprocess.run(command + times, input=samples.tobytes(), capture_output=True, check=True)
    stems = np.frombuffer(done.stdout, "<f4").reshape(-1, 8)
    assert len(stems) == len(samples)
    assert np.isfinite(stems).all()
    assert float(np.abs(stems).max()) > 0
    assert b"latency 0.15 s" in done.stderr


def test_live_stems_as_16_bit_samples(
    separator: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.random.default_rng(1).integers(-3000, 3000, (4000, 2)).astype("<i2")
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(frames.tobytes())))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out))
    options = ("--stream-format", "s16le", "--two-stems", "bass", "--hop", "0.2")
    status = separator.run(
        "separate", "--stream", "-n", "tiny", *options, "--lookahead", "0", "--segment", "0.3"
    )
    assert status == 0
    assert len(out.getvalue()) == 4000 * 4 * 2


def test_live_stems_come_before_more_sound_does(separator: CommandLine) -> None:
    """However the bytes arrive, half frames among them, what is due comes out at once."""
    command = [sys.executable, "-m", "sonorant.cli.main", "separate", "--stream", "-n", "tiny"]
    options = ["--two-stems", "bass", "--hop", "0.02", "--lookahead", "0", "--segment", "0.1"]
    samples = np.random.default_rng(2).normal(0, 0.1, (170, 2)).astype("<f4").tobytes()
    with subprocess.Popen(
        [*command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for piece in (samples[:5], samples[5:]):  # 170 frames hold one hop of 160
            process.stdin.write(piece)
            process.stdin.flush()
        assert len(process.stdout.read(160 * 4 * 4)) == 160 * 4 * 4
        process.stdin.close()
        assert len(process.stdout.read()) == 10 * 4 * 4
        assert process.wait() == 0
