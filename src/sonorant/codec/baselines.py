"""Opus and MP3 at given rates: what a neural codec has to be better than.

By their reference encoders, which make the most of few bits: `opusenc` looks ahead over seconds of
sound to choose its mode, and `lame` its sample rate. What an encoder without look-ahead can do, as
in a call, is `opus_live`; libsndfile and FFmpeg encode that way too.
"""

from __future__ import annotations

import io
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import soundfile  # type: ignore[import-untyped]
import torch
import torch.nn.functional as F

from sonorant.audio import Audio, read, write
from sonorant.errors import ConfigError, DependencyError, FormatError

OPUS_KBPS = (6.0, 256.0)  # lowest and highest for one channel: RFC 6716, section 2.1.1, libsndfile
OPUS_HEADERS = 2  # packets before the first with sound: RFC 7845, section 3
# ISO/IEC 13818-3, table of layer III at 16 to 24 kHz.
MP3_KBPS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
LAME_DELAY = 576  # samples at the MP3's rate: lame.h, ENCDELAY


@dataclass(frozen=True)
class Coded:
    """A sound after a codec, at its own rate and length, and the kb/s that it really took."""

    sound: Audio
    kbps: float


def opus(audio: Audio, kbps: float) -> Coded:
    """One channel through `opusenc`, constrained to about `kbps`. Counted are packets of sound.

    Raises: ConfigError below 6 kb/s; DependencyError without opusenc.
    """
    _check_opus(audio, kbps)
    with tempfile.TemporaryDirectory() as name:
        source, packed = Path(name) / "in.wav", Path(name) / "out.opus"
        write(source, audio)
        rate = f"{kbps:g}"
        _run(["opusenc", "--quiet", "--cvbr", "--bitrate", rate, source, packed], "opus-tools")
        return Coded(_like(audio, read(packed)), _opus_kbps(audio, packed.read_bytes()))


def opus_live(audio: Audio, kbps: float) -> Coded:
    """One channel through libopus without look-ahead, by libsndfile; otherwise as `opus`."""
    _check_opus(audio, kbps)
    lowest, highest = OPUS_KBPS
    packed = io.BytesIO()
    with soundfile.SoundFile(
        packed,
        "w",
        audio.sample_rate,
        audio.channels,
        "OPUS",
        format="OGG",
        # libsndfile spreads its compression levels evenly over the rates.
        compression_level=1 - (kbps - lowest) / (highest - lowest),
    ) as file:
        file.write(audio.samples.t().numpy())
    data = packed.getvalue()
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return Coded(_like(audio, Audio(torch.from_numpy(samples.T), rate)), _opus_kbps(audio, data))


def mp3(audio: Audio, kbps: int) -> Coded:
    """One channel through `lame` at a constant rate. Counted is the whole file.

    Raises: ConfigError for a rate that MP3 does not have, DependencyError without lame.
    """
    if kbps not in MP3_KBPS:
        raise ConfigError(f"MP3 has no {kbps:g} kb/s; it has {', '.join(map(str, MP3_KBPS))}")
    _check_mono(audio)
    with tempfile.TemporaryDirectory() as name:
        source, packed, back = (Path(name) / part for part in ("in.wav", "out.mp3", "back.wav"))
        write(source, audio)
        _run(["lame", "--quiet", "--cbr", "-b", str(kbps), source, packed], "lame")
        # Its own decoder takes the delay away, except where the encoder chose another rate.
        _run(["lame", "--quiet", "--decode", packed, back], "lame")
        decoded = read(back)
        delay = 0 if decoded.sample_rate == audio.sample_rate else LAME_DELAY
        decoded = Audio(decoded.samples[:, delay:], decoded.sample_rate)
        return Coded(_like(audio, decoded), _kbps(audio, packed.stat().st_size))


def _check_opus(audio: Audio, kbps: float) -> None:
    lowest, highest = OPUS_KBPS
    if not lowest <= kbps <= highest:
        raise ConfigError(f"Opus takes {lowest:g} to {highest:g} kb/s a channel, not {kbps:g}")
    _check_mono(audio)


def _check_mono(audio: Audio) -> None:
    if audio.channels != 1:
        raise ConfigError(f"baselines take one channel, got {audio.channels}; mix it down first")


def _run(command: list[str | Path], package: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise DependencyError(
            f"{command[0]} is not installed: apt-get install {package}"
        ) from error
    except subprocess.CalledProcessError as error:
        raise FormatError(f"{command[0]} failed: {error.stderr.strip()}") from error


def _like(original: Audio, decoded: Audio) -> Audio:
    """The decoded sound at the original's rate and length."""
    samples = decoded.to(original.sample_rate).samples
    missing = original.samples.shape[1] - samples.shape[1]
    return Audio(F.pad(samples, (0, missing)), original.sample_rate)


def _kbps(audio: Audio, size_bytes: int) -> float:
    return size_bytes * 8 / audio.duration_seconds / 1000


def _opus_kbps(audio: Audio, data: bytes) -> float:
    return _kbps(audio, sum(list(ogg_packets(data))[OPUS_HEADERS:]))


def ogg_packets(data: bytes) -> Iterator[int]:
    """Sizes in bytes of the packets of an Ogg file with one stream (RFC 3533, section 6).

    Raises: FormatError if it is none.
    """
    position = size = 0
    while position < len(data):
        header = data[position : position + 27]
        if len(header) < 27 or header[:4] != b"OggS":
            raise FormatError(f"no Ogg page at byte {position}")
        lacing = data[position + 27 : position + 27 + header[26]]
        for value in lacing:
            size += value
            if value < 255:
                yield size
                size = 0
        position += 27 + header[26] + sum(lacing)
