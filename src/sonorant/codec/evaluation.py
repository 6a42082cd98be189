"""Measuring a codec on many files: every file at every bandwidth, and in total.

Each sound is converted to the codec's rate and channels, coded, decoded and compared with what went
in. A metric that cannot be computed for a file (too short, silent) says why in the file's result; a
file that cannot be read is listed with the reason. Totals are means over the files that have the
metric, rates are all bits by all seconds, and the use of codebooks is counted over all files.
"""

from __future__ import annotations

import math
import os
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from sonorant.audio import Audio, read
from sonorant.codec.codec import Codec
from sonorant.codec.encoded import Encoded
from sonorant.codec.files import load_codec
from sonorant.codec.metrics import METRICS, codeword_counts, use_of_counts
from sonorant.data.manifest import Domain, Split, read_manifest
from sonorant.data.prepare import AUDIO_SUFFIXES
from sonorant.errors import AudioError, ConfigError, SonorantError

Counts = npt.NDArray[np.int64]  # [codebooks, codebook size]

MANIFEST_SUFFIX = ".jsonl"
SCALE_BITS = 32  # a segment's volume, as containers hold it


class Sound(msgspec.Struct, frozen=True):
    """A file to evaluate on. domain: as a manifest says, or None where nothing says it."""

    path: str
    domain: Domain | None = None


class Plan(msgspec.Struct, frozen=True):
    """What to measure. bandwidths: in kb/s; None means all codebooks. metrics: of `METRICS`."""

    model: str
    bandwidths: tuple[float | None, ...] = (None,)
    metrics: tuple[str, ...] = tuple(METRICS)


class FileScores(msgspec.Struct, frozen=True):
    """One file at one bandwidth. kbps: of the tokens, and volumes where the codec sends them.

    scores: by metric; not_computed: why a metric is missing, by metric.
    """

    path: str
    domain: Domain | None
    bandwidth_kbps: float | None
    codebooks: int
    seconds: float
    kbps: float
    scores: dict[str, float]
    not_computed: dict[str, str]


class Mean(msgspec.Struct, frozen=True):
    """A metric's mean, and over how many files."""

    mean: float
    files: int


class CodebookScores(msgspec.Struct, frozen=True):
    """used: share of the codewords that occur; perplexity: how many are used in effect."""

    used: float
    entropy_bits: float
    perplexity: float


class Totals(msgspec.Struct, frozen=True):
    """All files at one bandwidth.

    entropy_kbps: what a code for each codebook's frequencies alone would take: how much of the rate
    the tokens use, before any context.
    """

    bandwidth_kbps: float | None
    files: int
    seconds: float
    kbps: float
    entropy_kbps: float
    metrics: dict[str, Mean]
    codebooks: list[CodebookScores]


class Evaluation(msgspec.Struct, frozen=True):
    """A codec on many files. failed: why a file could not be used at all, by path."""

    model: str
    sample_rate: int
    channels: int
    totals: list[Totals]
    files: list[FileScores]
    failed: dict[str, str]


def find_sounds(
    paths: Sequence[Path], split: Split | None = None, domain: Domain | None = None
) -> list[Sound]:
    """The sounds of files, folders (with all below them) and manifests, each once.

    split: of manifests, which must be there then. domain: of files and folders.
    Raises: AudioError for a missing path, ConfigError for a damaged manifest, a split without one,
    or if nothing is found.
    """
    found: dict[str, Sound] = {}
    if split is not None and not any(path.suffix == MANIFEST_SUFFIX for path in paths):
        raise ConfigError(f"the split {split!r} is of a manifest, and none is among the paths")
    for path in paths:
        for sound in _sounds_of(path, split, domain):
            found.setdefault(os.path.realpath(sound.path), sound)
    if not found:
        raise ConfigError(f"no sound files in {', '.join(map(str, paths))}")
    return list(found.values())


def _sounds_of(path: Path, split: Split | None, domain: Domain | None) -> Iterator[Sound]:
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file():
                yield Sound(str(file), domain)
    elif not path.exists():
        raise AudioError(f"there is no file or folder {path}")
    elif path.suffix == MANIFEST_SUFFIX:
        for item in read_manifest(path, split):
            yield Sound(item.path, item.domain)
    else:
        yield Sound(str(path), domain)


def evaluate_codec(
    sounds: Sequence[Sound],
    plan: Plan,
    workers: int = 1,
    progress: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Measure a codec on these sounds. `progress` is called after each of them.

    workers: processes, each with a copy of the model and one thread; 1 stays in this process.
    Raises: CheckpointError for a model that is no codec, ConfigError for an unknown bandwidth or
    metric, DependencyError if a metric's package is missing, AudioError if no file can be used.
    """
    bandwidths, metrics = dict.fromkeys(plan.bandwidths), dict.fromkeys(plan.metrics)
    plan = Plan(plan.model, tuple(bandwidths), tuple(metrics))  # each counts once
    codec = load_codec(plan.model)
    for bandwidth in plan.bandwidths:
        codec.codebooks_for(bandwidth)
    _check_metrics(plan, sounds)
    results: list[FileScores] = []
    counts: dict[float | None, Counts] = {}
    failed: dict[str, str] = {}
    for sound, outcome in zip(sounds, _outcomes(sounds, plan, codec, workers), strict=True):
        progress()
        if isinstance(outcome, str):
            failed[sound.path] = outcome
            continue
        for scores, used in outcome:
            results.append(scores)
            known = counts.get(scores.bandwidth_kbps)
            counts[scores.bandwidth_kbps] = used if known is None else known + used
    if not results:
        path, reason = next(iter(failed.items()))
        raise AudioError(f"none of {len(failed)} files can be used; {path}: {reason}")
    totals = [_total(bandwidth, results, counts[bandwidth], codec) for bandwidth in plan.bandwidths]
    return Evaluation(plan.model, codec.sample_rate, codec.channels, totals, results, failed)


def _check_metrics(plan: Plan, sounds: Sequence[Sound]) -> None:
    for name in plan.metrics:
        if name not in METRICS:
            raise ConfigError(f"no metric {name!r}; choose of {', '.join(METRICS)}")
        metric = METRICS[name]
        if not metric.speech_only or any(sound.domain == "speech" for sound in sounds):
            try:
                metric.require()
            except SonorantError as error:
                others = ",".join(other for other in plan.metrics if other != name)
                raise type(error)(f"{error}, or leave it out (--metrics {others})") from error


Outcome = list[tuple[FileScores, Counts]] | str
"""The scores at every bandwidth, or why there are none."""


def _outcomes(sounds: Sequence[Sound], plan: Plan, codec: Codec, workers: int) -> Iterator[Outcome]:
    if workers <= 1:
        for sound in sounds:
            yield _outcome(sound, plan, codec)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin_worker) as pool:
        jobs: list[Future[Outcome]] = [
            pool.submit(_outcome_in_worker, each, plan) for each in sounds
        ]
        try:
            for job in jobs:
                yield job.result()
        except BrokenProcessPool as error:
            raise SonorantError(
                "a worker process died, most likely out of memory; try fewer (--workers)"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _begin_worker() -> None:
    """One thread each, and interrupts are left to the parent."""
    os.environ["NUMBA_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _outcome_in_worker(sound: Sound, plan: Plan) -> Outcome:
    return _outcome(sound, plan, _workers_codec(plan.model))


@cache
def _workers_codec(model: str) -> Codec:
    """A worker process, which ends with the evaluation, loads the model once."""
    return load_codec(model)


def _outcome(sound: Sound, plan: Plan, codec: Codec) -> Outcome:
    """One file at every bandwidth of the plan, or why it cannot be used."""
    try:
        audio = codec.converted(read(sound.path))
        return [_measure(sound, audio, bandwidth, plan, codec) for bandwidth in plan.bandwidths]
    except AudioError as error:
        return str(error)


def _measure(
    sound: Sound, audio: Audio, bandwidth: float | None, plan: Plan, codec: Codec
) -> tuple[FileScores, Counts]:
    encoded = codec.encode(audio, bandwidth)
    decoded = codec.decode(encoded)
    scores, not_computed = {}, {}
    for name in plan.metrics:
        if METRICS[name].speech_only and sound.domain != "speech":
            continue
        try:
            value = METRICS[name].measure(audio, decoded)
        except AudioError as error:
            not_computed[name] = str(error)
            continue
        if math.isfinite(value):
            scores[name] = value
        else:
            not_computed[name] = "it is not a finite number"
    result = FileScores(
        path=sound.path,
        domain=sound.domain,
        bandwidth_kbps=bandwidth,
        codebooks=encoded.codebooks,
        seconds=audio.duration_seconds,
        kbps=_bits(encoded, codec) / audio.duration_seconds / 1000,
        scores=scores,
        not_computed=not_computed,
    )
    counts = codeword_counts(encoded.tokens, codec.config.quantizer.codebook_size)
    return result, counts.cpu().numpy()


def _bits(encoded: Encoded, codec: Codec) -> float:
    scales = 0 if encoded.scales is None else encoded.scales.numel()
    per_token = math.log2(codec.config.quantizer.codebook_size)
    return encoded.tokens.numel() * per_token + scales * SCALE_BITS


def _total(
    bandwidth: float | None, results: Sequence[FileScores], counts: Counts, codec: Codec
) -> Totals:
    files = [result for result in results if result.bandwidth_kbps == bandwidth]
    seconds = math.fsum(file.seconds for file in files)
    means = {}
    for name in METRICS:
        values = [file.scores[name] for file in files if name in file.scores]
        if values:
            means[name] = Mean(statistics.fmean(values), len(values))
    uses = use_of_counts(torch.from_numpy(counts))
    frames = int(counts[0].sum())
    return Totals(
        bandwidth_kbps=bandwidth,
        files=len(files),
        seconds=seconds,
        kbps=math.fsum(file.kbps * file.seconds for file in files) / seconds,
        entropy_kbps=frames * math.fsum(use.entropy_bits for use in uses) / seconds / 1000,
        metrics=means,
        codebooks=[CodebookScores(use.used, use.entropy_bits, use.perplexity) for use in uses],
    )
