"""Sound in containers that libsndfile does not know."""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from sonorant.audio import Audio, blocks, info, read
from sonorant.errors import AudioError, DependencyError

RATE = 44100


def tones(seconds: float = 2.0, channels: int = 2, rate: int = RATE) -> torch.Tensor:
    time = torch.arange(int(seconds * rate)) / rate
    return torch.stack(
        [0.4 * torch.sin(2 * torch.pi * (300 + 200 * c) * time) for c in range(channels)]
    )


def encode(path: Path, samples: torch.Tensor, codec: str, rate: int = RATE) -> Path:
    layout = "stereo" if len(samples) == 2 else "mono"
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples.numpy().astype(np.float32), "fltp", layout)
        frame.sample_rate, frame.pts = rate, 0
        stream.codec_context.open()
        size = stream.codec_context.frame_size or 1024
        convert = av.AudioResampler(stream.codec_context.format, layout, rate, size)
        for part in (*convert.resample(frame), *convert.resample(None)):
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "rate"),
    [
        ("a.m4a", "aac", 44100),
        ("a.mp4", "aac", 22050),
        ("a.aac", "aac", 44100),
        ("a.webm", "libopus", 48000),
        ("a.mkv", "flac", 44100),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_other_containers_are_read(
    tmp_path: Path, name: str, codec: str, rate: int, channels: int
) -> None:
    samples = tones(channels=channels, rate=rate)
    path = encode(tmp_path / name, samples, codec, rate)
    audio = read(path)
    assert (audio.sample_rate, audio.channels) == (rate, channels)
    assert audio.samples.shape[1] == pytest.approx(samples.shape[1], abs=2200)
    middle = slice(4410, rate)  # .aac does not say by how much its decoder comes late
    late = 1024 if name.endswith(".aac") else 0
    found = audio.samples[:, middle.start + late : middle.stop + late]
    error = (found - samples[:, middle]).square().mean() / samples.square().mean()
    assert error < 0.005  # a shift of two samples would give more
    assert info(path).frames == audio.samples.shape[1]
    assert info(path).sample_rate == rate
    joined = torch.cat([block.samples for block in blocks(path, 5000)], dim=1)
    assert torch.equal(joined, audio.samples)


def test_a_file_cut_short_is_refused_or_taken_as_far_as_it_goes(tmp_path: Path) -> None:
    path = encode(tmp_path / "whole.mkv", tones(20), "flac")
    content = path.read_bytes()
    short = tmp_path / "short.mkv"
    short.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match="cut short"):
        read(short)
    assert 5 < read(short, tolerant=True).samples.shape[1] / RATE < 15


def test_what_is_no_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "noise.m4a").write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(AudioError, match="not a sound file"):
        read(tmp_path / "noise.m4a")
    with av.open(str(tmp_path / "film.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with pytest.raises(AudioError, match="has no sound in it"):
        info(tmp_path / "film.mp4")


def test_without_pyav_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = encode(tmp_path / "a.m4a", tones(0.2), "aac")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DependencyError, match=r"sonorant\[formats\]"):
        read(path)


def test_a_wav_of_another_name_is_read_as_one(tmp_path: Path) -> None:
    from sonorant.audio import write

    write(tmp_path / "a.wav", Audio(tones(0.1), RATE))
    (tmp_path / "a.wav").rename(tmp_path / "a.m4a")
    assert info(tmp_path / "a.m4a").format == "WAV"
