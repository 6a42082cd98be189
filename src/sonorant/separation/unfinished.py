"""Stems that are being made, on the disk: what is there when the work stops is not lost.

A hidden folder holds a file of float32 samples for each stem and a note, `progress.json`, of how
many of them are final; in the end also the stems as they will be, until all are there. A later run
with the same sound, model and settings goes on from there. While a run works on the folder it is
locked, so that a second one cannot spoil it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
import torch
from torch import Tensor

from sonorant.audio.sound import Samples
from sonorant.data.folder_lock import FolderLock
from sonorant.errors import AudioError
from sonorant.separation.mixture import Level
from sonorant.separation.stem_files import as_array

NOTE = "progress.json"


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far the stems have come.

    key: tells the sound, the model and the settings. mean, std: the sound's level. frames: samples
    per channel that are final. peaks: the highest absolute sample of each stem among them.
    """

    key: str
    mean: float
    std: float
    frames: int
    peaks: tuple[float, ...]

    @property
    def level(self) -> Level:
        return Level(self.mean, self.std)


class UnfinishedStems:
    """The folder of one sound's stems. Use it in a `with` statement; what was appended stays.

    Raises: OSError if the folder cannot be written; AudioError while another run works on it.
    """

    def __init__(self, folder: Path, stems: Sequence[str], channels: int) -> None:
        self.folder, self._channels = folder, channels
        self._paths = [folder / f"{number}.f32" for number in range(len(stems))]
        self._files: list[IO[bytes]] = []
        self._lock = FolderLock(folder)
        self.note: Note | None = None

    def __enter__(self) -> UnfinishedStems:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._lock.release()

    def _close(self) -> None:
        for file in self._files:
            file.close()
        self._files = []

    def find(self, key: str) -> bool:
        """Whether there are stems to go on with; `note` then says how far they are."""
        self.note = None
        if self.folder.is_dir():
            self._claim()
        try:
            note = msgspec.json.decode((self.folder / NOTE).read_bytes(), type=Note)
        except (OSError, msgspec.MsgspecError):
            return False
        needed = note.frames * self._frame_bytes
        whole = all(path.is_file() and path.stat().st_size >= needed for path in self._paths)
        if note.key != key or not whole:
            return False
        self.note = note
        return True

    def start(self, key: str, level: Level) -> None:
        """Begin anew; what was there is gone."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._claim()
        self._clear()
        self._save(Note(key, level.mean, level.std, 0, (0.0,) * len(self._paths)))

    def append(self, stems: Tensor) -> None:
        """Write final samples `[stems, channels, time]`."""
        note = self._noted()
        if not self._files:
            self._files = [self._opened(path, note.frames) for path in self._paths]
        for file, stem in zip(self._files, stems, strict=True):
            file.write(as_array(stem.T, "<f4").tobytes())
            file.flush()
        peaks = zip(note.peaks, stems.abs().amax(dim=(1, 2)).tolist(), strict=True)
        frames = note.frames + stems.shape[-1]
        self._save(Note(note.key, note.mean, note.std, frames, tuple(max(pair) for pair in peaks)))

    def read(self, stem: int, frames: int) -> Iterator[Tensor]:
        """A stem from its start, in pieces `[channels, time]` of up to so many samples."""
        with self._paths[stem].open("rb") as file:
            while block := file.read(frames * self._frame_bytes):
                samples: Samples = np.frombuffer(block, "<f4").reshape(-1, self._channels)
                yield torch.from_numpy(samples.T.copy())

    def remove(self) -> None:
        """The stems are written elsewhere. Another run's folder stays."""
        self._close()
        if self._lock.held:
            self._clear()
            self._lock.dissolve()

    def _clear(self) -> None:
        """Remove all but the lock, which keeps others away meanwhile."""
        for path in self.folder.glob("*"):
            if path != self._lock.path:
                path.unlink(missing_ok=True)

    def _claim(self) -> None:
        if not self._lock.claim():
            raise AudioError(
                f"another run is making the same stems in {self.folder}; wait until it has ended, "
                "or write to another folder"
            )

    def _noted(self) -> Note:
        assert self.note is not None
        return self.note

    def _opened(self, path: Path, frames: int) -> IO[bytes]:
        """A stem's file, without what came after the last note."""
        path.touch()
        file = path.open("r+b")
        file.truncate(frames * self._frame_bytes)
        file.seek(0, os.SEEK_END)
        return file

    def _save(self, note: Note) -> None:
        part = self.folder / f"{NOTE}.part"
        part.write_bytes(msgspec.json.encode(note))
        os.replace(part, self.folder / NOTE)
        self.note = note

    @property
    def _frame_bytes(self) -> int:
        return 4 * self._channels
