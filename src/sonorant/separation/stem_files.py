"""Writing stems as the package demucs writes them: its clipping, its rounding, its bytes.

WAV and FLAC hold whole numbers cut off towards zero (or floats, in WAV); MP3, Ogg Vorbis and Opus
go through their encoders. A file appears whole or not at all.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soundfile  # type: ignore[import-untyped]
import torch
from torch import Tensor

from sonorant.audio import AudioWriter
from sonorant.audio.reading import reason_of
from sonorant.audio.streams import pyav
from sonorant.audio.writing import MP3_KBPS
from sonorant.errors import AudioError, ConfigError

CLAMP = 0.99
HEADROOM = 1.01
"""What `rescale` leaves above the highest sample."""
WAV_LIMIT = 2**32 - 1  # bytes; sizes in a WAV header have 32 bits
BITS = {"int16": 16, "int24": 24}
ENDINGS = ("wav", "flac", "mp3", "ogg", "opus")
PRESET = "an MP3 preset"
MP3_PRESETS = (2, 7)
"""LAME's qualities that demucs offers, from best to fastest."""


def _rescaled(samples: Tensor, peak: Tensor) -> Tensor:
    return samples / (HEADROOM * peak).clamp(min=1)


CLIPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "rescale": _rescaled,
    "clamp": lambda samples, peak: samples.clamp(-CLAMP, CLAMP),
    "tanh": lambda samples, peak: samples.tanh(),
    "none": lambda samples, peak: samples,
}
"""What is done with samples beyond +-1: all made quieter, cut off, bent, or left to the encoding.

Each takes samples `[channels, time]` and the highest absolute sample of the whole stem.
"""


@dataclass(frozen=True)
class Encoding:
    """How stems are written.

    ending: of the file's name; says the kind of file. samples: of WAV, and whole ones of FLAC.
    clip: one of `CLIPS`. mp3_kbps: bitrate of MP3. mp3_preset: LAME's quality, 2 (best) to 7
        (fastest), None for libsndfile's; needs PyAV (the extra `formats`).
    Raises: ConfigError for what is not to be had.
    """

    ending: str = "wav"
    samples: Literal["int16", "int24", "float32"] = "int16"
    clip: str = "rescale"
    mp3_kbps: int = 320
    mp3_preset: int | None = None

    def __post_init__(self) -> None:
        if self.ending not in ENDINGS:
            raise ConfigError(f"stems can be {', '.join(ENDINGS)}, not {self.ending!r}")
        if self.clip not in CLIPS:
            raise ConfigError(f"clip is one of {', '.join(CLIPS)}, not {self.clip!r}")
        if self.samples == "float32" and self.ending != "wav":
            raise ConfigError(f"only WAV holds float samples, not {self.ending}")
        if self.samples == "int24" and self.ending not in ("wav", "flac"):
            raise ConfigError(f"only WAV and FLAC hold 24-bit samples, not {self.ending}")
        low, high = MP3_PRESETS
        if self.mp3_preset is not None and not low <= self.mp3_preset <= high:
            raise ConfigError(f"mp3_preset is from {low} to {high}, got {self.mp3_preset}")
        slowest, fastest = MP3_KBPS
        if not slowest <= self.mp3_kbps <= fastest:
            raise ConfigError(f"an MP3 has {slowest} to {fastest} kb/s in all, got {self.mp3_kbps}")

    def check(self, stem: Stem) -> None:
        """See that a stem can be written so, before it is made.

        Raises: AudioError for one that does not fit; DependencyError for an MP3 preset without
        PyAV.
        """
        if self.ending == "wav":
            wav_header(stem, self)
        if self.ending == "mp3" and self.mp3_preset is not None:
            pyav(PRESET)

    def clipped(self, samples: Tensor, peak: float) -> Tensor:
        """Samples `[channels, time]` of a stem with that highest absolute sample."""
        return CLIPS[self.clip](samples, torch.tensor(peak))


@dataclass(frozen=True)
class Stem:
    """A stem to be written: its rate in Hz, channels, samples each, highest absolute sample."""

    sample_rate: int
    channels: int
    frames: int
    peak: float


def write_stem(path: Path, pieces: Iterable[Tensor], stem: Stem, encoding: Encoding) -> None:
    """Write a stem that comes in pieces `[channels, time]`.

    Raises: AudioError if the file cannot be written; DependencyError for an MP3 preset without
    PyAV.
    """
    clipped = (encoding.clipped(piece, stem.peak) for piece in pieces)
    if encoding.ending == "wav":
        _write_wav(path, clipped, stem, encoding)
    elif encoding.ending == "flac":
        _write_flac(path, clipped, stem, encoding)
    elif encoding.ending == "mp3" and encoding.mp3_preset is not None:
        _write_mp3(path, clipped, stem, encoding)
    else:
        kbps = encoding.mp3_kbps if encoding.ending == "mp3" else None
        with AudioWriter(path, stem.sample_rate, stem.channels, bitrate_kbps=kbps) as writer:
            for piece in clipped:
                writer.write(piece)


def whole_samples(samples: Tensor, bits: int) -> Tensor:
    """Samples in [-1, 1] as integers of that many bits, int32, cut off towards zero."""
    return (samples.clamp(-1, 1) * (2 ** (bits - 1) - 1)).int()


def wav_header(stem: Stem, encoding: Encoding) -> bytes:
    """The bytes before the samples: RIFF, "fmt " and, for floats, "fact" (RIFF WAVE, 1991/1994)."""
    is_float = encoding.samples == "float32"
    width = 4 if is_float else BITS[encoding.samples] // 8
    size = stem.frames * stem.channels * width
    fact = struct.pack("<4sII", b"fact", 4, stem.frames) if is_float else b""
    total = 4 + 24 + len(fact) + 8 + size
    if total > WAV_LIMIT:
        raise AudioError(
            f"a stem of {size / 1e9:.1f} GB does not fit into a WAV file; write FLAC instead"
        )
    layout = struct.pack(
        "<4sIHHIIHH",
        b"fmt ",
        16,
        3 if is_float else 1,
        stem.channels,
        stem.sample_rate,
        stem.sample_rate * stem.channels * width,
        stem.channels * width,
        8 * width,
    )
    riff = struct.pack("<4sI4s", b"RIFF", total, b"WAVE")
    return riff + layout + fact + struct.pack("<4sI", b"data", size)


def wav_samples(samples: Tensor, encoding: Encoding) -> bytes:
    """Samples `[channels, time]` as WAV has them: channels next to each other, little endian."""
    frames = samples.T
    if encoding.samples == "float32":
        return as_array(frames.clamp(-1, 1), "<f4").tobytes()
    whole = whole_samples(frames, BITS[encoding.samples])
    if encoding.samples == "int16":
        return as_array(whole, "<i2").tobytes()
    four_bytes = as_array(whole, "<i4").view(np.uint8).reshape(*whole.shape, 4)
    return four_bytes[..., :3].tobytes()


def as_array(samples: Tensor, kind: str) -> npt.NDArray[Any]:
    """Samples as numpy calls that kind of number, without gaps."""
    return np.ascontiguousarray(samples.cpu().numpy().astype(kind))


def _write_wav(path: Path, pieces: Iterable[Tensor], stem: Stem, encoding: Encoding) -> None:
    header = wav_header(stem, encoding)
    with _replacing(path) as part, part.open("wb") as file:
        file.write(header)
        for piece in pieces:
            file.write(wav_samples(piece, encoding))


def _write_flac(path: Path, pieces: Iterable[Tensor], stem: Stem, encoding: Encoding) -> None:
    bits = BITS[encoding.samples]
    with _replacing(path) as part:
        arguments = (str(part), "w", stem.sample_rate, stem.channels, f"PCM_{bits}")
        with soundfile.SoundFile(*arguments, format="FLAC") as file:
            for piece in pieces:
                # libsndfile takes the highest bits of a number.
                shift = 16 - bits if bits <= 16 else 32 - bits
                whole = whole_samples(piece.T, bits) << shift
                file.write(as_array(whole, "int16" if bits == 16 else "int32"))


def _write_mp3(path: Path, pieces: Iterable[Tensor], stem: Stem, encoding: Encoding) -> None:
    """MP3 of one bitrate with LAME's quality, which libsndfile does not let one choose."""
    av = pyav(PRESET)
    layout = "mono" if stem.channels == 1 else "stereo"
    options = {"b": f"{encoding.mp3_kbps}k", "compression_level": str(encoding.mp3_preset)}
    with _replacing(path) as part, av.open(str(part), "w", format="mp3") as file:
        stream: Any = file.add_stream(
            "libmp3lame", rate=stem.sample_rate, layout=layout, options=options
        )
        for piece in pieces:
            block = as_array(piece.clamp(-1, 1), "float32")
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
            frame.sample_rate = stem.sample_rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name to write to, which becomes `path` when all went well."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield part
        os.replace(part, path)
    except (OSError, soundfile.LibsndfileError) as error:
        raise AudioError(f"cannot write {path}: {reason_of(error)}") from error
    finally:
        part.unlink(missing_ok=True)
