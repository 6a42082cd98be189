"""From a sound file to files of its stems, block by block: memory does not grow with the sound.

The file is read twice: for its level, and in pieces as the network needs them. Stems are written
while the next segment is computed, first as they are (`unfinished`), then, once the highest sample
of each is known, in the form asked for. Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import torch
from torch import Tensor

from sonorant.audio import Audio, AudioInfo, blocks, info
from sonorant.errors import AudioError, ConfigError, SonorantError
from sonorant.separation.apply import separate_pieces, stem_names
from sonorant.separation.mixture import Level, take_channels
from sonorant.separation.separator import Separator
from sonorant.separation.settings import DEFAULTS, Progress, Settings
from sonorant.separation.stem_files import Encoding, Stem, write_stem
from sonorant.separation.unfinished import UnfinishedStems

PIECE_SECONDS = 4
"""Of sound that is read or written at once."""
OtherMethod = Literal["none", "add", "minus"]


@dataclass(frozen=True)
class Selection:
    """Which stems are written.

    stems: some of the model's; None for all. rest: with a single stem, also all the others in one:
    their sum ("add", named no_STEM), or what is left of the sound ("minus", named minus_STEM).
    Raises: ConfigError for a rest without a single stem.
    """

    stems: tuple[str, ...] | None = None
    rest: OtherMethod = "none"

    def __post_init__(self) -> None:
        if self.rest != "none" and (self.stems is None or len(self.stems) != 1):
            raise ConfigError("only with a single stem can all the others be made one")

    def names(self, model: Separator) -> list[str]:
        """Names of what is written. Raises: ConfigError for a stem that the model has not."""
        names = stem_names(model, self.stems)
        prefixes = {"none": [], "add": ["no_"], "minus": ["minus_"]}
        return names + [prefix + names[0] for prefix in prefixes[self.rest]]

    def needed(self, model: Separator) -> list[str]:
        """The model's stems that these are made of, those that are written first."""
        names = stem_names(model, self.stems)
        if self.rest != "add":
            return names
        return names + [name for name in model.sources if name not in names]

    def chosen(self, stems: Tensor, mix: Tensor) -> Tensor:
        """What is written, of `needed` stems `[stems, channels, time]` and the sound itself."""
        if self.rest == "add":
            return torch.stack([stems[0], stems[1:].sum(dim=0)])
        if self.rest == "minus":
            return torch.stack([stems[0], mix - stems[0]])
        return stems


ALL_STEMS = Selection()


def separate_file(
    source: str | Path,
    targets: Callable[[str], Path],
    model: Separator,
    *,
    settings: Settings = DEFAULTS,
    selection: Selection = ALL_STEMS,
    encoding: Encoding | None = None,
    jobs: int = 1,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Write the stems of a sound file; returns their files.

    targets: the file for a stem's name; folders are made. encoding: 16-bit WAV if None. jobs: stems
    that are encoded at once; 0 as 1. progress: called with the seconds separated and those in all.
    When the work was cut short, the same call goes on with it; until then, its hidden folder beside
    the first target stays, and no target is there.
    Raises: AudioError if the sound cannot be used or a stem cannot be written; ConfigError for what
    the model cannot do, or targets that do not fit; DependencyError for an MP3 preset without PyAV.
    """
    names, encoding = selection.names(model), encoding or Encoding()
    paths = {name: Path(targets(name)) for name in names}
    if jobs < 0:
        raise ConfigError(f"jobs must be 0 or more, got {jobs}")
    _check_targets(source, list(paths.values()), encoding)
    found = info(source)
    _check(found, model, encoding)
    first = paths[names[0]]
    told = hashlib.sha256(f"{first.name}/{Path(source).name}".encode()).hexdigest()[:12]
    work = first.parent / f".{first.stem[:40]}.{told}.unfinished"  # file names have 255 bytes
    unfinished = UnfinishedStems(work, names, model.audio_channels)
    with unfinished, _telling_what_is_left(source, unfinished):
        key = _key(Path(source), model, settings, names)
        if not unfinished.find(key):
            # Reads it all: what is wrong with the sound is found before a folder is made.
            level = Level.of_pieces(_pieces(source, model))
            unfinished.start(key, level)
        for path in paths.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        report = None if progress is None else _reporter(progress, found, model.sample_rate)
        _separate(source, unfinished, model, settings, selection, report)
        _encode(unfinished, paths, model, encoding, jobs)
        unfinished.remove()
    return paths


def _check_targets(source: str | Path, paths: Sequence[Path], encoding: Encoding) -> None:
    """Raises: ConfigError for files that stems cannot all be written to."""
    whole = {path.resolve() for path in paths}
    if len(whole) < len(paths) or Path(source).resolve() in whole:
        raise ConfigError(
            f"every stem needs a file of its own, other than {source}; got "
            f"{', '.join(str(path) for path in paths)}"
        )
    for path in paths:
        if path.suffix.lower() != f".{encoding.ending}":
            raise ConfigError(f"stems as {encoding.ending} need files of that ending, not {path}")


def _check(found: AudioInfo, model: Separator, encoding: Encoding) -> None:
    """Raises: AudioError now for what would only be found in the middle, or at the end."""
    frames = int(found.duration_seconds * model.sample_rate)
    encoding.check(Stem(model.sample_rate, model.audio_channels, frames, peak=1.0))
    take_channels(Audio(torch.zeros(found.channels, 1), found.sample_rate), model.audio_channels)


@contextmanager
def _telling_what_is_left(source: str | Path, unfinished: UnfinishedStems) -> Iterator[None]:
    """Raises: AudioError also for a disk's troubles; says where the work that is done lies."""
    try:
        yield
    except OSError as error:
        raise AudioError(
            f"cannot write the stems of {source}: {error}{_left(unfinished)}"
        ) from error
    except AudioError as error:
        raise AudioError(f"{error}{_left(unfinished)}") from error
    except (SonorantError, KeyboardInterrupt):
        _left(unfinished)
        raise


def _left(unfinished: UnfinishedStems) -> str:
    """What is said about the work that is done; without any, its folder goes."""
    if unfinished.note is None or not unfinished.note.frames:
        unfinished.remove()
        return ""
    return f"; what is done lies in {unfinished.folder}, and the same command goes on with it"


def _pieces(source: str | Path, model: Separator) -> Iterator[Tensor]:
    """The sound as the model takes it, but for its level."""
    rate = model.sample_rate
    for block in blocks(source, PIECE_SECONDS * rate, sample_rate=rate):
        yield take_channels(block, model.audio_channels).samples


def _separate(
    source: str | Path,
    unfinished: UnfinishedStems,
    model: Separator,
    settings: Settings,
    selection: Selection,
    report: Callable[[int], None] | None,
) -> None:
    """Bring the unfinished stems to the end of the sound; `report` hears how many samples are."""
    note = unfinished.note
    assert note is not None
    level = note.level
    sound = _Behind(_pieces(source, model), note.frames, keep=selection.rest == "minus")
    scaled = (level.normalize(piece)[None] for piece in sound)
    needed = selection.needed(model)
    pending: Future[None] | None = None
    done = note.frames
    with ThreadPoolExecutor(1) as writer:
        for separated in separate_pieces(model, scaled, settings, needed, first=done):
            samples = separated.shape[-1]
            stems = selection.chosen(level.restore(separated[0]), sound.take(samples))
            if pending is not None:
                pending.result()
            pending = writer.submit(unfinished.append, stems)
            done += samples
            if report is not None:
                report(done)
        if pending is not None:
            pending.result()


def _reporter(progress: Progress, found: AudioInfo, rate: int) -> Callable[[int], None]:
    """Tells a user's function the seconds that so many of the model's samples are."""
    total = found.duration_seconds
    return lambda samples: progress(min(samples / rate, total), total)


class _Behind:
    """Pieces of a sound on their way to the network, kept until its stems come.

    first: samples that no stems will come of. keep: False to keep nothing.
    """

    def __init__(self, pieces: Iterator[Tensor], first: int, keep: bool) -> None:
        self._pieces, self._skipped, self._keep = pieces, first, keep
        self._kept = torch.zeros(0)

    def __iter__(self) -> Iterator[Tensor]:
        for piece in self._pieces:
            if self._keep:
                wanted = piece[:, min(self._skipped, piece.shape[1]) :]
                self._skipped -= piece.shape[1] - wanted.shape[1]
                self._kept = torch.cat([self._kept, wanted], dim=1) if len(self._kept) else wanted
            yield piece

    def take(self, samples: int) -> Tensor:
        """The next samples `[channels, time]`; nothing if none are kept."""
        taken, self._kept = self._kept[..., :samples], self._kept[..., samples:]
        return taken


def _encode(
    unfinished: UnfinishedStems,
    paths: dict[str, Path],
    model: Separator,
    encoding: Encoding,
    jobs: int,
) -> None:
    note = unfinished.note
    assert note is not None
    rate, channels = model.sample_rate, model.audio_channels
    stop = threading.Event()
    # Beside the raw stems, so that nothing is left of a file when the program is killed.
    written = [
        unfinished.folder / f"{index}{path.suffix}" for index, path in enumerate(paths.values())
    ]
    with ThreadPoolExecutor(max(1, jobs)) as encoders:
        writing = [
            encoders.submit(
                write_stem,
                path,
                _until(stop, unfinished.read(index, PIECE_SECONDS * rate)),
                Stem(rate, channels, note.frames, peak),
                encoding,
            )
            for index, (path, peak) in enumerate(zip(written, note.peaks, strict=True))
        ]
        try:
            for future in writing:
                future.result()
        except BaseException:
            stop.set()
            encoders.shutdown(cancel_futures=True)
            raise
    for path, target in zip(written, paths.values(), strict=True):
        shutil.move(path, target)  # a renaming, but for targets on another disk


def _until(stop: threading.Event, pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """The pieces, until somebody wants them to end."""
    for piece in pieces:
        if stop.is_set():
            raise CancelledError
        yield piece


def _key(source: Path, model: Separator, settings: Settings, names: list[str]) -> str:
    """Tells what the stems are made of: the sound's file, the model, and how it is applied."""
    file = source.stat()
    config = msgspec.json.encode(model.config).decode()
    facts = (str(source.resolve()), file.st_size, file.st_mtime_ns, settings, names)
    return f"{facts} {model.system} {config} {model.checksum()}"
