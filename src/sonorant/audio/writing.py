"""Writing sound files through libsndfile: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import soundfile  # type: ignore[import-untyped]
from torch import Tensor

from sonorant.audio.reading import reason_of
from sonorant.audio.sound import (
    BLOCK_FRAMES,
    Audio,
    Converter,
    Samples,
    check_finite,
    check_rate,
    to_numpy,
)
from sonorant.errors import AudioError

PEAK = 0.99  # of written files, as the encodec package writes them
# File name ending -> container and encoding, in libsndfile's names.
ENCODINGS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
}
# Rates in Hz of encodings that take only some (RFC 6716; ISO/IEC 11172-3 and 13818-3, MPEG 2.5).
RATES = {
    "OPUS": (8000, 12000, 16000, 24000, 48000),
    "MPEG_LAYER_III": (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000),
}
MP3_KBPS = (32, 320)


def write(
    path: str | Path,
    audio: Audio,
    clip: Literal["clamp", "rescale"] = "clamp",
    float_samples: bool = False,
) -> None:
    """Write a sound file; its name ends in .wav, .flac, .mp3, .ogg or .opus.

    clip: samples beyond +-0.99 are cut off ("clamp"), or the whole sound is made quieter until
    none is ("rescale"). float_samples: 32-bit float WAV, which is never clipped, instead of 16-bit.
    The file appears whole or not at all. See `AudioWriter` for rates.
    Raises: AudioError if the sound is empty or not finite, or the file cannot be written.
    """
    audio.check()
    samples = audio.samples
    if clip == "rescale" and not float_samples:
        samples = samples * min(1.0, PEAK / max(float(samples.abs().max()), PEAK))
    with AudioWriter(path, audio.sample_rate, audio.channels, float_samples) as writer:
        writer.write(Audio(samples, audio.sample_rate))


class AudioWriter:
    """Write a sound file block by block; samples beyond +-0.99 are cut off.

    Use it in a `with` statement: the file gets its name when the block ends well; after an error
    nothing is left. Encodings that lack the rate (Opus at 44.1 kHz) get the next higher one they
    have, else their highest. bitrate_kbps: of MP3, 32 to 320; None for libsndfile's choice.
    Raises: AudioError if the name, rate, channels or folder cannot be used, or writing fails.
    """

    def __init__(
        self,
        path: str | Path,
        sample_rate: int,
        channels: int,
        float_samples: bool = False,
        bitrate_kbps: int | None = None,
    ) -> None:
        self.path = Path(path)
        container, encoding = _encoding_of(self.path, float_samples)
        check_rate(sample_rate, str(path))
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise AudioError(f"cannot write {path}: it is a folder, or its folder does not exist")
        rates = RATES.get(encoding, (sample_rate,))
        rate = next((rate for rate in rates if rate >= sample_rate), rates[-1])
        self.sample_rate, self.channels = sample_rate, channels
        self._written = 0
        self._float = encoding == "FLOAT"
        self._integers = encoding == "PCM_16"
        self._converter = Converter(sample_rate, rate, channels, channels)
        self._part = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            self._file = soundfile.SoundFile(
                str(self._part),
                "w",
                rate,
                channels,
                encoding,
                format=container,
                **_mp3_options(self.path, container, bitrate_kbps),
            )
        except (OSError, ValueError, soundfile.LibsndfileError) as error:
            self._part.unlink(missing_ok=True)
            raise AudioError(
                f"cannot write {path} ({channels} channels, {rate} Hz): {reason_of(error)}"
            ) from error

    def __enter__(self) -> AudioWriter:
        return self

    def write(self, audio: Audio | Tensor) -> None:
        """Append a block `[channels, time]` at the writer's rate.

        Raises: AudioError if its rate or channels are others, or a sample is not finite.
        """
        samples = audio.samples if isinstance(audio, Audio) else audio
        rate = audio.sample_rate if isinstance(audio, Audio) else self.sample_rate
        if samples.dim() != 2 or (samples.shape[0], rate) != (self.channels, self.sample_rate):
            raise AudioError(
                f"{self.path} takes {self.channels} channels at {self.sample_rate} Hz, got a block "
                f"of shape {list(samples.shape)} at {rate} Hz"
            )
        block = to_numpy(samples)
        check_finite(block, f"the sound for {self.path}", self._written)
        self._written += block.shape[1]
        for start in range(0, block.shape[1], BLOCK_FRAMES):
            self._append(self._converter.push(block[:, start : start + BLOCK_FRAMES]))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            # After a failed write closing fails once more; the first error is the one to show.
            with contextlib.suppress(soundfile.LibsndfileError):
                self._file.close()
            self._part.unlink(missing_ok=True)

    def _finish(self) -> None:
        if not self._written:
            raise AudioError(f"nothing was written to {self.path}: the sound is empty")
        self._append(self._converter.flush())
        try:
            self._file.close()
            os.replace(self._part, self.path)
        except (OSError, soundfile.LibsndfileError) as error:
            raise AudioError(f"cannot write {self.path}: {reason_of(error)}") from error

    def _append(self, block: Samples) -> None:
        data: npt.NDArray[Any] = np.ascontiguousarray(block.T)
        if not self._float:
            data = data.clip(-PEAK, PEAK)
        if self._integers:
            # Our own rounding, so that 16-bit files are read and written without a change:
            # libsndfile divides by 32768 but multiplies by 32767.
            data = np.round(data * 32768).astype(np.int16)
        try:
            self._file.write(data)
        except (OSError, soundfile.LibsndfileError) as error:
            raise AudioError(f"cannot write {self.path}: {reason_of(error)}") from error


def _mp3_options(path: Path, container: str, bitrate_kbps: int | None) -> dict[str, Any]:
    """libsndfile takes the bitrate as a number from 0 for the highest to 1 for the lowest."""
    if bitrate_kbps is None:
        return {}
    low, high = MP3_KBPS
    if container != "MP3" or not low <= bitrate_kbps <= high:
        raise AudioError(
            f"cannot write {path} at {bitrate_kbps} kb/s: only .mp3 takes a rate, {low} to {high}"
        )
    level = min((high - bitrate_kbps) / (high - low), 0.999)  # libsndfile refuses 1 itself
    return {"bitrate_mode": "CONSTANT", "compression_level": level}


def _encoding_of(path: Path, float_samples: bool) -> tuple[str, str]:
    try:
        container, encoding = ENCODINGS[path.suffix.lower()]
    except KeyError:
        raise AudioError(
            f"cannot write {path}: the name must end in one of {', '.join(ENCODINGS)}"
        ) from None
    if float_samples and container != "WAV":
        raise AudioError(f"cannot write {path} with float samples: only .wav can hold them")
    return container, "FLOAT" if float_samples else encoding
