"""From corpora and folders to one prepared corpus: converted audio and its manifest.

Every file is decoded, mixed down to mono, resampled and stored as 16-bit FLAC of one rate, so that
training can seek to any segment at once. What cannot be used is skipped, counted and reported.
Running it again converts only what is missing.
"""

from __future__ import annotations

import collections
import math
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import soundfile  # type: ignore[import-untyped]
import soxr  # type: ignore[import-untyped]

from sonorant.data.corpora import Selection
from sonorant.data.manifest import DOMAINS, SPLITS, Domain, Item, Split
from sonorant.errors import AudioError, ConfigError

Samples = npt.NDArray[np.float32]

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff"})
BLOCK_SECONDS = 10.0  # memory stays flat for files of any length
SILENT_PEAK = 10 ** (-60 / 20)  # a file that never rises above -60 dB full scale holds nothing


class Folder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A folder of one's own audio as a training source. Fields as in `Selection`.

    group: what is kept together in one split: each `file`, each subfolder (`folder`), or `all`.
    """

    path: str
    domain: Domain
    licence: str
    source: str = ""
    attribution: str = ""
    group: Literal["file", "folder", "all"] = "file"
    test: frozenset[str] | None = None
    valid: frozenset[str] | None = None

    def selection(self) -> Selection:
        """The rule by which the folder's files are used."""
        group = {"file": "", "folder": r"^(?P<group>.+)/", "all": r"^(?P<group>)"}[self.group]
        return Selection(
            domain=self.domain,
            licence=self.licence,
            attribution=self.attribution,
            files=group,
            kind="sound" if self.domain == "sound" and self.group == "folder" else "",
            test=self.test,
            valid=self.valid,
            default_group="all" if self.group == "all" else "",
        )


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A file that may enter the corpus: where it is, and its item as far as it is known."""

    path: Path
    source: str
    original: str
    group: str
    split: Split
    selection: Selection


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a prepared file looks like, and which files are not worth it.

    sample_rate: of the prepared files, Hz. minimum_rate: files recorded below it are skipped, so
    that band-limited audio does not pass as full-band.
    """

    sample_rate: int = 24_000
    minimum_rate: int = 22_050
    minimum_seconds: float = 0.5


class Report(msgspec.Struct, kw_only=True):
    """What came of a preparation: items, and how many files were skipped for which reason."""

    items: list[Item]
    skipped: dict[str, int]

    def summary(self) -> str:
        """Minutes and files of each domain and split, then what was skipped."""
        lines = [f"{'':8}" + "".join(f"{split:>18}" for split in SPLITS)]
        for domain in DOMAINS:
            cells = []
            for split in SPLITS:
                chosen = [i for i in self.items if i.domain == domain and i.split == split]
                minutes = sum(item.duration_seconds for item in chosen) / 60
                cells.append(f"{minutes:8.1f} min {len(chosen):5}")
            lines.append(f"{domain:8}" + "".join(cells))
        lines += [f"skipped: {count} {why}" for why, count in sorted(self.skipped.items())]
        return "\n".join(lines)


def collect(root: Path, source: str, selections: Iterable[Selection]) -> list[Candidate]:
    """The audio files below `root` that a selection takes; the first one that does decides.

    Raises: AudioError if there is none.
    """
    selections = tuple(selections)
    candidates = []
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in AUDIO_SUFFIXES or not path.is_file():
            continue
        if path.is_symlink() and path.resolve().is_relative_to(root.resolve()):
            continue  # another name of a file that is found anyway
        original = path.relative_to(root).as_posix()
        for selection in selections:
            group = selection.group_of(original)
            if group is not None:
                candidates.append(
                    Candidate(
                        path=path,
                        source=source,
                        original=original,
                        group=f"{selection.kind or source}: {group}",
                        split=selection.split_of(group),
                        selection=selection,
                    )
                )
                break
    if not candidates:
        raise AudioError(f"no usable audio files in {root} ({source})")
    return candidates


def collect_folder(folder: Folder) -> list[Candidate]:
    """The audio files of a user's folder. Raises ConfigError if it does not exist."""
    root = Path(folder.path).expanduser()
    if not root.is_dir():
        raise ConfigError(f"the folder {folder.path} does not exist")
    return collect(root, folder.source or root.resolve().name, [folder.selection()])


def prepare(
    candidates: list[Candidate], out: Path, limits: Limits, workers: int = 1
) -> Iterator[Item | str]:
    """Convert each candidate into `out`/audio; yields its item, or the reason it was skipped."""
    if workers <= 1:
        yield from (prepare_one(candidate, out, limits) for candidate in candidates)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        count = len(candidates)
        yield from pool.map(prepare_one, candidates, [out] * count, [limits] * count, chunksize=1)


def report_of(results: Iterable[Item | str]) -> Report:
    """Gather what `prepare` yields."""
    items: list[Item] = []
    skipped: collections.Counter[str] = collections.Counter()
    for result in results:
        if isinstance(result, str):
            skipped[result] += 1
        else:
            items.append(result)
    return Report(items=items, skipped=dict(skipped))


def prepare_one(candidate: Candidate, out: Path, limits: Limits) -> Item | str:
    """Convert one file unless it has been; its item, or the reason why it cannot be used.

    Raises: AudioError if the converted file cannot be written.
    """
    target = out / "audio" / candidate.source / (candidate.original + ".flac")
    if not (target.exists() and soundfile.info(str(target)).samplerate == limits.sample_rate):
        reason = _convert(candidate.path, target, limits)
        if reason:
            return reason
    info = soundfile.info(str(target))
    return Item(
        path=str(target.absolute()),
        duration_seconds=info.frames / info.samplerate,
        sample_rate=info.samplerate,
        channels=info.channels,
        domain=candidate.selection.domain,
        split=candidate.split,
        source=candidate.source,
        licence=candidate.selection.licence,
        group=candidate.group,
        attribution=candidate.selection.attribution,
        original=candidate.original,
    )


def _convert(path: Path, target: Path, limits: Limits) -> str:
    """Write `path` as mono FLAC at the wanted rate, block by block; or the reason why not."""
    unfinished = target.with_name(target.name + ".part")
    try:
        with soundfile.SoundFile(str(path)) as source:
            if source.samplerate < limits.minimum_rate:
                return f"recorded below {limits.minimum_rate} Hz"
            if source.frames < limits.minimum_seconds * source.samplerate:
                return f"shorter than {limits.minimum_seconds} s"
            peak = _write_flac(_resampled_blocks(source, limits), unfinished, limits.sample_rate)
    except (soundfile.LibsndfileError, OSError):
        unfinished.unlink(missing_ok=True)
        return "unreadable"
    if not SILENT_PEAK <= peak < math.inf:
        unfinished.unlink()
        return "silent" if peak < SILENT_PEAK else "not finite"
    unfinished.replace(target)
    return ""


def _resampled_blocks(source: soundfile.SoundFile, limits: Limits) -> Iterator[Samples]:
    """The mean of the channels at the wanted rate."""
    resampler = soxr.ResampleStream(
        source.samplerate, limits.sample_rate, 1, dtype="float32", quality="HQ"
    )
    block_frames = int(BLOCK_SECONDS * source.samplerate)
    last = False
    while not last:
        block = source.read(block_frames, dtype="float32", always_2d=True)
        last = len(block) < block_frames
        yield resampler.resample_chunk(block.mean(axis=1), last=last)


def _write_flac(blocks: Iterable[Samples], path: Path, sample_rate: int) -> float:
    """Write blocks of samples as 16-bit mono FLAC; their peak, infinite if a sample is not finite.

    Raises: AudioError if the file cannot be written (the disk is full).
    """
    peak, written = 0.0, 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sink = soundfile.SoundFile(str(path), "w", sample_rate, 1, "PCM_16", format="FLAC")
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"cannot write {path}: {error}") from error
    with sink:
        for block in blocks:
            peak = max(peak, float(np.nan_to_num(np.abs(block), nan=np.inf).max(initial=0.0)))
            if math.isinf(peak):
                break
            try:
                sink.write(np.clip(block, -1.0, 1.0))
            except (soundfile.LibsndfileError, AssertionError) as error:  # a short write asserts
                raise AudioError(f"cannot write {path}: {error or 'is the disk full?'}") from error
            written += len(block)
    if math.isfinite(peak) and soundfile.info(str(path)).frames != written:
        raise AudioError(f"cannot write all of {path}: is the disk full?")
    return peak
