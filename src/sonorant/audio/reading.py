"""Reading sound files through libsndfile, and finding everything that can be wrong with them.

Files that it does not know, such as .m4a, go through PyAV (`streams.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile  # type: ignore[import-untyped]
import torch

from sonorant.audio import mpeg
from sonorant.audio.sound import BLOCK_FRAMES, Audio, Converter, Samples, check_finite, check_rate
from sonorant.audio.streams import SUFFIXES, StreamReader
from sonorant.errors import AudioError

GUESS_MARGIN = 4 * 1152  # samples by which libsndfile may guess the length of an MP3 too short
UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's "not in the header"
# Sizes that programs write into a WAV header when they cannot seek back: sox, arecord, ffmpeg.
UNKNOWN_BYTES = {0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF}


@dataclass(frozen=True)
class AudioInfo:
    """What a sound file holds. `frames` counts samples per channel; `format` and `encoding` are
    called as in libsndfile, or in FFmpeg for what that reads."""

    frames: int
    sample_rate: int
    channels: int
    format: str
    encoding: str

    @property
    def duration_seconds(self) -> float:
        return self.frames / self.sample_rate


def info(path: str | Path) -> AudioInfo:
    """Length, rate, channels and format of a sound file.

    Reads the whole file only if its header does not say how long it is.
    Raises: AudioError if it is missing, damaged, cut short or no sound file.
    """
    with _opened(path) as reader:
        frames = reader.frames
        if frames is None:
            frames = sum(block.shape[1] for block in reader.pieces())
        return AudioInfo(
            frames, reader.sample_rate, reader.channels, reader.format, reader.encoding
        )


def read(path: str | Path, tolerant: bool = False) -> Audio:
    """The whole of a sound file. For hours of sound use `blocks`.

    tolerant: take what can be read of a damaged file, and 0 for samples that are not numbers.
    Raises: AudioError if the file is missing, empty, damaged, cut short or no sound file, or holds
    NaN or infinite samples.
    """
    with _opened(path, tolerant) as reader:
        samples = np.concatenate(list(reader.pieces()), axis=1)
        return Audio(torch.from_numpy(samples), reader.sample_rate)


def blocks(
    path: str | Path,
    frames: int,
    overlap: int = 0,
    sample_rate: int | None = None,
    channels: int | None = None,
    tolerant: bool = False,
) -> Iterator[Audio]:
    """A sound file in blocks of `frames` samples per channel; the last one may be shorter.

    Each block repeats the last `overlap` samples of the one before. sample_rate, channels: convert
    as `Audio.to` does; the blocks then hold exactly the samples of `read(path).to(...)`, and
    `frames` counts samples at the new rate. Memory does not grow with the file.
    Raises: as `read`, possibly after some blocks.
    """
    if not 0 <= overlap < frames:
        raise AudioError(f"blocks of {frames} samples cannot overlap by {overlap}")
    with _opened(path, tolerant) as reader:
        old_rate, old_channels = reader.sample_rate, reader.channels
        rate, count = sample_rate or old_rate, channels or old_channels
        converter = Converter(old_rate, rate, old_channels, count)
        waiting: list[Samples] = []
        held = repeated = 0  # samples in `waiting`, and those of them that were in the last block
        for piece in converter.stream(reader.pieces()):
            waiting.append(piece)
            held += piece.shape[1]
            if held < frames:
                continue
            joined = np.concatenate(waiting, axis=1)
            while joined.shape[1] >= frames:
                yield Audio(torch.from_numpy(joined[:, :frames].copy()), rate)
                joined, repeated = joined[:, frames - overlap :], overlap
            waiting, held = [joined], joined.shape[1]
        if held > repeated:
            yield Audio(torch.from_numpy(np.concatenate(waiting, axis=1)), rate)


def _opened(path: str | Path, tolerant: bool = False) -> Reader | StreamReader:
    """A file by what libsndfile makes of it, or PyAV, if its name ends as such files' do."""
    try:
        return Reader(path, tolerant)
    except AudioError as error:
        unknown = isinstance(error.__cause__, soundfile.LibsndfileError)
        if not unknown or Path(path).suffix.lower() not in SUFFIXES:
            raise
    return StreamReader(path, tolerant)


class _ForwardFile(soundfile.SoundFile):
    """A file that is only read forwards: libsndfile cannot seek in a FLAC of unknown length."""

    def seekable(self) -> bool:
        return False


class Reader:
    """An open sound file, and everything that can be wrong with it."""

    def __init__(self, path: str | Path, tolerant: bool = False) -> None:
        self.path, self.tolerant = Path(path), tolerant
        if not self.path.exists():
            raise AudioError(f"{path} does not exist")
        if not self.path.is_file():
            raise AudioError(f"{path} is not a file")
        if not self.path.stat().st_size:
            raise AudioError(f"{path} is empty")
        try:
            self.file = _ForwardFile(str(path))
        except (OSError, TypeError, soundfile.LibsndfileError) as error:
            raise AudioError(
                f"{path} is not a sound file (WAV, FLAC, MP3, Ogg Vorbis, Ogg Opus), or is damaged"
                f": {reason_of(error)}"
            ) from error
        self.sample_rate: int = self.file.samplerate
        self.channels: int = self.file.channels
        self.format: str = self.file.format
        self.encoding: str = self.file.subtype
        try:
            check_rate(self.sample_rate, str(path))
            self.frames = self._promised_frames()
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def pieces(self) -> Iterator[Samples]:
        """The sound from start to end, in pieces `[channels, time]`."""
        position = 0
        while True:
            try:
                block: Samples = self.file.read(BLOCK_FRAMES, "float32", always_2d=True).T
            except soundfile.LibsndfileError as error:
                where = f"near sample {position} of {self.frames or 'an unknown number'}"
                self._complain(f"is damaged or cut short {where}: {reason_of(error)}")
                break
            if self.tolerant:
                block = np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
            else:
                check_finite(block, str(self.path), position)
            position += block.shape[1]
            if block.shape[1]:
                yield np.ascontiguousarray(block)
            if block.shape[1] < BLOCK_FRAMES:
                break
        if self.frames is not None and position < self.frames:
            missing = self.frames - position
            self._complain(f"is cut short: {missing} of {self.frames} samples are missing")
        if not position:
            raise AudioError(f"{self.path} holds no sound")

    def _promised_frames(self) -> int | None:
        """Samples per channel that the header promises, None if it makes no (exact) promise."""
        file = self.file
        if file.format == "OGG" and not _ogg_is_complete(self.path):
            self._complain(
                f"is cut short: the end of its Ogg stream is missing; {file.frames} samples are "
                "there, an unknown number is not"
            )
        found = re.search(r"^data *: (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
        width = re.search(r"Block Align *: (\d+)", file.extra_info)
        if found and width:
            promised, present, width_bytes = (int(x) for x in (*found.groups(), width[1]))
            if promised > present and promised not in UNKNOWN_BYTES:
                total = promised // width_bytes
                missing = total - present // width_bytes
                self._complain(f"is cut short: {missing} of {total} samples are missing")
        if file.frames == UNKNOWN_FRAMES:
            return None
        if file.format == "MP3" and not mpeg.has_length(self.path):
            samples = mpeg.count_samples(self.path)
            if samples > file.frames + GUESS_MARGIN:
                self._complain(
                    f"does not say how long it is, and only {file.frames} of its {samples} samples "
                    "could be read; `ffmpeg -i OLD.mp3 -c copy NEW.mp3` adds the length"
                )
            return None
        return int(file.frames)

    def _complain(self, what: str) -> None:
        if not self.tolerant:
            raise AudioError(f"{self.path} {what}")


def reason_of(error: Exception) -> str:
    """What libsndfile or the system says, in one line."""
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return " ".join(str(text).split()) or "libsndfile does not say why"


def _ogg_is_complete(path: Path) -> bool:
    """Whether the last Ogg page is whole and marked as the end of its stream (RFC 3533)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2 * 65_307))  # a page has at most 65 307 bytes
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or len(page) < 27 + page[26]:
        return False
    body = sum(page[27 : 27 + page[26]])
    return bool(page[5] & 4) and len(page) >= 27 + page[26] + body
