import os
import re
import resource
import signal
import struct
import subprocess
import sys
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonorant import audio as sound_files
from sonorant.audio import Audio, AudioWriter, blocks, read, write
from sonorant.errors import AudioError

EXACT = ["wav", "flac"]
LOSSY = ["mp3", "ogg", "opus"]


def tone(samples: int = 24_017, channels: int = 1, rate: int = 24_000) -> Audio:
    time = torch.arange(samples) / rate
    noise = torch.rand(channels, samples, generator=torch.Generator().manual_seed(0)) - 0.5
    return Audio(0.4 * torch.sin(2 * torch.pi * 440 * time) + 0.1 * noise, rate)


def wav_bytes(
    data: bytes, rate: int = 24_000, channels: int = 1, data_bytes: int | None = None
) -> bytes:
    size = len(data) if data_bytes is None else data_bytes
    form = struct.pack("<IHHIIHH", 16, 1, channels, rate, 0, channels * 2, 16)
    riff = struct.pack("<I", min(36 + size, 2**32 - 1))
    return b"RIFF" + riff + b"WAVEfmt " + form + b"data" + struct.pack("<I", size) + data


def write_all(path: Path, pieces: list[Audio]) -> None:
    with AudioWriter(path, 24_000, 1) as writer:
        for piece in pieces:
            writer.write(piece)


def refused(path: Path) -> str:
    """The one line with which `read` and `blocks` refuse a file."""
    with pytest.raises(AudioError) as whole:
        read(path)
    with pytest.raises(AudioError) as pieces:
        list(blocks(path, frames=1000))
    message = str(whole.value)
    assert str(pieces.value).split(":")[0].split(" near ")[0] in message
    assert str(path) in message
    assert "\n" not in message
    return message


# Audio


def test_audio_knows_its_length_and_channels() -> None:
    audio = tone(48_000, channels=2)
    assert (audio.channels, audio.duration_seconds) == (2, 2.0)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (torch.zeros(100), 24_000, "shape"),
        (torch.zeros(1, 100, dtype=torch.int16), 24_000, "floating-point"),
        (np.zeros((1, 100), np.float32), 24_000, "torch tensor"),
        (torch.zeros(1, 100), 0, "sample rate 0"),
        (torch.zeros(1, 100), 768_001, "sample rate 768001"),
        (torch.zeros(1, 100), 44_100.0, "whole number"),
    ],
)
def test_audio_refuses_what_is_not_a_sound(samples: torch.Tensor, rate: int, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        Audio(samples, rate)


def test_check_names_the_first_sample_that_is_not_finite() -> None:
    samples = torch.zeros(2, 100)
    samples[0, 70] = float("inf")
    samples[1, 42] = float("nan")
    with pytest.raises(AudioError, match="nan at sample 42 of channel 1"):
        Audio(samples, 8000).check()
    with pytest.raises(AudioError, match="empty"):
        Audio(samples[:, :0], 8000).check()


def test_mono_is_the_mean_and_stereo_two_copies() -> None:
    stereo = tone(channels=2)
    mono = stereo.to(channels=1)
    torch.testing.assert_close(mono.samples[0], stereo.samples.mean(0))
    assert torch.equal(mono.to(channels=2).samples, mono.samples.expand(2, -1))
    with pytest.raises(AudioError, match="cannot turn 8 channels into 2"):
        tone(channels=8).to(channels=2)


def test_a_tone_keeps_its_pitch_and_level_at_another_rate() -> None:
    time = torch.arange(44_100).double() / 44_100
    audio = Audio(torch.sin(2 * torch.pi * 1000 * time)[None], 44_100).to(24_000)
    assert audio.samples.shape == (1, 24_000)
    expected = torch.sin(2 * torch.pi * 1000 * torch.arange(24_000).double() / 24_000)
    difference = (audio.samples[0] - expected)[200:-200].abs().max()
    assert difference < 1e-4


def test_one_sample_does_not_vanish() -> None:
    audio = Audio(torch.full((1, 1), 0.5), 48_000).to(8000, channels=2)
    assert audio.samples.tolist() == [[0.5], [0.5]]


# Round trips


@pytest.mark.parametrize("ending", EXACT)
@pytest.mark.parametrize("channels", [1, 2])
def test_sixteen_bits_survive_unchanged(tmp_path: Path, ending: str, channels: int) -> None:
    first, second = tmp_path / f"a.{ending}", tmp_path / f"b.{ending}"
    write(first, tone(channels=channels))
    audio = read(first)
    assert (audio.samples - tone(channels=channels).samples).abs().max() <= 0.5 / 32768 + 1e-7
    write(second, audio)
    assert torch.equal(read(second).samples, audio.samples)


@pytest.mark.parametrize("ending", LOSSY)
@pytest.mark.parametrize("samples", [1, 100, 24_017])
def test_lossy_files_keep_length_rate_and_place(tmp_path: Path, ending: str, samples: int) -> None:
    path, audio = tmp_path / f"a.{ending}", tone(samples, channels=2)
    write(path, audio)
    back = read(path)
    assert (back.samples.shape, back.sample_rate) == (audio.samples.shape, 24_000)
    if samples > 100:
        error = (back.samples - audio.samples).square().sum() / audio.samples.square().sum()
        assert error < 0.1  # a shift by ten samples already gives 1


def test_float_files_keep_every_bit(tmp_path: Path) -> None:
    path, loud = tmp_path / "a.wav", Audio(tone().samples * 5, 24_000)
    write(path, loud, float_samples=True)
    assert torch.equal(read(path).samples, loud.samples)
    with pytest.raises(AudioError, match=r"only \.wav"):
        write(tmp_path / "a.flac", loud, float_samples=True)


def test_loud_sound_is_clamped_or_rescaled(tmp_path: Path) -> None:
    path, loud = tmp_path / "a.wav", Audio(torch.tensor([[0.5, -2.0, 0.1]]), 8000)
    step = 1 / 32768
    write(path, loud)
    torch.testing.assert_close(
        read(path).samples, torch.tensor([[0.5, -0.99, 0.1]]), rtol=0, atol=step
    )
    write(path, loud, clip="rescale")
    torch.testing.assert_close(read(path).samples, loud.samples * 0.99 / 2, rtol=0, atol=step)
    write(path, tone(), clip="rescale")
    torch.testing.assert_close(read(path).samples, tone().samples, rtol=0, atol=step)


@pytest.mark.parametrize(
    ("ending", "rate", "stored"),
    [("opus", 44_100, 48_000), ("opus", 96_000, 48_000), ("mp3", 40_000, 44_100)],
)
def test_rates_an_encoding_lacks_become_the_next_one(
    tmp_path: Path, ending: str, rate: int, stored: int
) -> None:
    path = tmp_path / f"a.{ending}"
    write(path, tone(rate, rate=rate))
    assert read(path).samples.shape == (1, stored)
    assert read(path).sample_rate == stored


@pytest.mark.parametrize("ending", EXACT + LOSSY)
def test_info_tells_what_read_finds(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    write(path, tone(12_001, channels=2))
    about = sound_files.info(path)
    assert (about.frames, about.channels, about.sample_rate) == (12_001, 2, 24_000)
    assert about.duration_seconds == 12_001 / 24_000
    assert about.format in ("WAV", "FLAC", "MP3", "OGG")


# Blocks


@settings(deadline=None, max_examples=20)
@given(frames=st.integers(1, 3000), data=st.data())
def test_blocks_hold_what_read_finds(
    tmp_path_factory: pytest.TempPathFactory, frames: int, data: st.DataObject
) -> None:
    frames += 200
    overlap = data.draw(st.integers(0, frames - 150))
    rate = data.draw(st.sampled_from([None, 16_000, 24_000, 44_100]))
    channels = data.draw(st.sampled_from([None, 1]))
    path = tmp_path_factory.mktemp("blocks") / "a.wav"
    write(path, tone(data.draw(st.integers(1, 8000)), channels=2))
    expected = read(path).to(rate, channels).samples
    pieces = list(blocks(path, frames, overlap, rate, channels))
    assert [len(piece.samples[0]) for piece in pieces[:-1]] == [frames] * (len(pieces) - 1)
    new = [piece.samples[:, overlap if index else 0 :] for index, piece in enumerate(pieces)]
    assert torch.equal(torch.cat(new, dim=1), expected)
    for before, after in pairwise(pieces):
        assert torch.equal(before.samples[:, frames - overlap :], after.samples[:, :overlap])


@pytest.mark.parametrize("ending", LOSSY)
def test_blocks_of_lossy_files_join_without_seams(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    write(path, tone(200_000))
    pieces = [block.samples for block in blocks(path, frames=3001)]
    assert torch.equal(torch.cat(pieces, dim=1), read(path).samples)


def test_blocks_of_a_long_file_need_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with AudioWriter(path, 48_000, 2) as writer:
        for _ in range(100):
            writer.write(torch.zeros(2, 48_000))
    tracemalloc.start()
    count = sum(block.samples.shape[1] for block in blocks(path, 1000, 0, 24_000, 1))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2_400_000
    assert peak_bytes < 8e6  # the file as float32 takes 38 MB


def test_blocks_refuse_an_overlap_of_a_whole_block(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="cannot overlap by 10"):
        next(blocks(tmp_path / "a.wav", 10, overlap=10))


# Writing, whole or not at all


@pytest.mark.parametrize("ending", EXACT)
def test_the_writer_appends_blocks(tmp_path: Path, ending: str) -> None:
    audio, one, many = tone(channels=2), tmp_path / f"1.{ending}", tmp_path / f"2.{ending}"
    write(one, audio)
    with AudioWriter(many, audio.sample_rate, 2) as writer:
        for piece in audio.samples.split(1234, dim=1):
            writer.write(piece)
    assert one.read_bytes() == many.read_bytes()


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"before")
    with AudioWriter(path, 24_000, 1) as writer:
        writer.write(tone())
        assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.wav"]
    assert read(path).samples.shape == (1, 24_017)


def test_an_error_while_writing_leaves_nothing(tmp_path: Path) -> None:
    bad = tone()
    bad.samples[0, 23] = float("nan")
    with pytest.raises(AudioError, match="sample 23"):
        write(tmp_path / "a.wav", bad)
    with pytest.raises(AudioError, match="sample 24040 of"):
        write_all(tmp_path / "a.wav", [tone(), bad])
    with pytest.raises(AudioError, match="takes 1 channels at 24000 Hz"):
        write_all(tmp_path / "a.wav", [tone(), tone(channels=2)])
    with pytest.raises(AudioError, match="nothing was written"):
        write_all(tmp_path / "a.wav", [])
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"a.{ending}") for ending in EXACT + LOSSY]
    code = f"""
import torch
from sonorant.audio import Audio, write
from sonorant.errors import AudioError
for path in {paths}:
    try:
        write(path, Audio(torch.rand(1, 400_000) - 0.5, 48_000))
    except AudioError as error:
        print(error)
"""

    def allow_only_small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=allow_only_small_files,
    )
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"cannot write {path}" for path in paths]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.xyz", "must end in one of"), ("none/a.wav", "does not exist"), ("folder.wav", "folder")],
)
def test_names_that_cannot_be_written_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioError, match=message):
        write(tmp_path / name, tone())


def test_channels_an_encoding_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="3 channels, 24000 Hz"):
        write(tmp_path / "a.mp3", tone(channels=3))
    assert os.listdir(tmp_path) == []


# Bad input


def test_what_is_not_there_or_no_file_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "none.wav")
    assert "not a file" in refused(tmp_path)


@pytest.mark.parametrize("ending", [*EXACT, *LOSSY, "raw", "xyz"])
@pytest.mark.parametrize("content", [b"", b"These are words.\n" * 100, bytes(3000)])
def test_what_is_no_sound_is_refused(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"a.{ending}"
    path.write_bytes(content)
    assert ("not a sound file" if content else "is empty") in refused(path)


@pytest.mark.parametrize("ending", EXACT + LOSSY)
@pytest.mark.parametrize("part", [0.02, 0.5, 0.9])
def test_a_file_cut_short_is_refused(tmp_path: Path, ending: str, part: float) -> None:
    path = tmp_path / f"a.{ending}"
    write(path, tone(100_000))
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    message = refused(path)
    if ending == "wav":
        there = (int(part * len(content)) - 44) // 2
        assert f"{100_000 - there} of 100000 samples are missing" in message
    elif ending == "mp3" and part > 0.1:
        assert "of 100000 samples are missing" in message
    elif part > 0.1:
        assert "cut short" in message
        assert read(path, tolerant=True).samples.shape[1] > 10_000


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "opus"])
def test_a_single_lost_byte_at_the_end_is_found(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    write(path, tone())
    path.write_bytes(path.read_bytes()[:-1])
    assert "cut short" in refused(path)


@pytest.mark.parametrize("data_bytes", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_written_by_a_pipe_is_read(tmp_path: Path, data_bytes: int) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(bytes(1000), data_bytes=data_bytes))
    assert read(path).samples.shape == (1, 500)


@pytest.mark.parametrize("tags", [b"", b"ID3\x03\x00\x00\x00\x00\x01\x02" + bytes(130)])
def test_an_mp3_that_does_not_say_how_long_it_is(tmp_path: Path, tags: bytes) -> None:
    path, loud_first = tmp_path / "a.mp3", tone(72_000).samples
    loud_first[:, 24_000:] *= 0.001
    soundfile.write(path, loud_first[0].numpy(), 24_000, bitrate_mode="VARIABLE")
    path.write_bytes(tags + _without_first_frame(path.read_bytes()))
    message = refused(path)
    assert "does not say how long it is" in message
    assert int(re.findall(r"of its (\d+) samples", message)[0]) >= 72_000
    assert read(path, tolerant=True).samples.shape[1] > 10_000

    constant = {"bitrate_mode": "CONSTANT", "compression_level": 0.5}
    soundfile.write(path, loud_first[0].numpy(), 24_000, **constant)
    path.write_bytes(tags + _without_first_frame(path.read_bytes()))
    assert abs(read(path).samples.shape[1] - 72_000) < 3 * 1152
    assert sound_files.info(path).frames == read(path).samples.shape[1]


def _without_first_frame(mp3: bytes) -> bytes:
    """The first frame holds the Xing or Info tag with the length."""
    assert b"Xing" in mp3[:200] or b"Info" in mp3[:200]
    return mp3[mp3.index(mp3[:2], 4) :]


def test_a_flac_of_unknown_length_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    write(path, tone())
    content = bytearray(path.read_bytes())
    expected = read(path).samples
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count samples (RFC 9639, section 8.2)
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert torch.equal(read(path).samples, expected)
    assert sound_files.info(path).frames == 24_017


@pytest.mark.parametrize(
    ("rate", "channels", "message"),
    [(0, 1, "damaged"), (2_000_000, 1, "sample rate 2000000"), (24_000, 0, "Channel count")],
)
def test_headers_that_cannot_be_true_are_refused(
    tmp_path: Path, rate: int, channels: int, message: str
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(bytes(1000), rate, channels))
    assert message in refused(path)


@pytest.mark.parametrize(("rate", "channels"), [(384_000, 1), (24_000, 8), (768_000, 1)])
def test_unusual_headers_are_read(tmp_path: Path, rate: int, channels: int) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(bytes(1600), rate, channels))
    assert read(path).samples.shape == (channels, 800 // channels)
    assert read(path).sample_rate == rate


def test_a_file_without_samples_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(b""))
    assert "holds no sound" in refused(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_samples_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    path = tmp_path / "a.wav"
    samples = np.zeros((70_000, 2), np.float32)
    samples[69_000, 1] = samples[69_999, 0] = value
    soundfile.write(path, samples, 8000, subtype="FLOAT")
    assert f"{value} at sample 69000 of channel 1" in refused(path)
    assert read(path, tolerant=True).samples.abs().max() == 0
