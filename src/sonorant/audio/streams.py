"""Sound in files that libsndfile does not know, such as .m4a, .mp4 and .webm, through PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sonorant.audio.sound import BLOCK_FRAMES, Samples, check_finite, check_rate
from sonorant.errors import AudioError, DependencyError

SUFFIXES = (
    *(".m4a", ".mp4", ".m4b", ".m4v", ".mov", ".aac", ".webm", ".mka", ".mkv"),
    *(".wma", ".wmv", ".amr", ".ac3", ".3gp", ".ape", ".avi"),
)
"""What the names of files end in that are worth trying."""
MISSING_SECONDS = 0.5
"""By how much what is decoded may fall short of the length that a file states: containers round."""


def pyav(purpose: str) -> Any:
    """The package PyAV. Raises: DependencyError that names the purpose and the extra."""
    try:
        import av
    except ImportError as error:
        raise DependencyError(f"{purpose} needs PyAV: pip install 'sonorant[formats]'") from error
    return av


class StreamReader:
    """The first sound stream of an open file, and everything that can be wrong with it.

    Raises: AudioError if there is none; DependencyError without PyAV.
    """

    frames = None
    """Containers state lengths too roughly to be counted on."""

    def __init__(self, path: str | Path, tolerant: bool = False) -> None:
        self.path, self.tolerant = Path(path), tolerant
        self._av = av = pyav(f"reading {path}")
        try:
            self._container = av.open(str(path))
        except (OSError, av.FFmpegError) as error:
            raise AudioError(f"{path} is not a sound file, or is damaged: {error}") from error
        try:
            if not self._container.streams.audio:
                raise AudioError(f"{path} has no sound in it")
            self._stream: Any = self._container.streams.audio[0]
            self.sample_rate: int = self._stream.codec_context.sample_rate
            self.channels: int = self._stream.codec_context.channels
            self.format: str = self._container.format.name
            self.encoding: str = self._stream.codec_context.name
            check_rate(self.sample_rate, str(path))
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> StreamReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def pieces(self) -> Iterator[Samples]:
        """The sound from start to end, in pieces `[channels, time]`."""
        waiting: list[Samples] = []
        held = position = 0
        for block in self._blocks():
            if self.tolerant:
                block = np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
            else:
                check_finite(block, str(self.path), position)
            position += block.shape[1]
            waiting.append(block)
            held += block.shape[1]
            if held >= BLOCK_FRAMES:
                yield np.concatenate(waiting, axis=1)
                waiting, held = [], 0
        if held:
            yield np.concatenate(waiting, axis=1)
        if not position:
            raise AudioError(f"{self.path} holds no sound")
        self._check_length(position)

    def _blocks(self) -> Iterator[Samples]:
        """What the decoder gives, as floats."""
        convert = self._av.AudioResampler("fltp", self._stream.layout, self.sample_rate)
        try:
            for frame in self._container.decode(self._stream):
                for part in convert.resample(frame):
                    yield np.asarray(part.to_ndarray(), np.float32)
            for part in convert.resample(None):
                yield np.asarray(part.to_ndarray(), np.float32)
        except (OSError, self._av.FFmpegError) as error:
            self._complain(f"is damaged or cut short: {error}")

    def _check_length(self, decoded: int) -> None:
        stream, of_all = self._stream, self._container.duration
        if stream.duration is not None:
            stated = float(stream.duration * stream.time_base)
        elif of_all is not None and len(self._container.streams) == 1:
            stated = of_all / self._av.time_base
        else:
            return
        missing = stated - decoded / self.sample_rate
        if missing > MISSING_SECONDS:
            self._complain(f"is cut short: {missing:.1f} s of it are missing")

    def _complain(self, what: str) -> None:
        if not self.tolerant:
            raise AudioError(f"{self.path} {what}")
