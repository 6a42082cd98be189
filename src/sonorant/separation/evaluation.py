"""Measuring separation on songs whose true sources are known: song by song, and in total.

Estimates come from a folder, from a model while it is measured, or from an oracle. Two families of
figures: BSSEval in frames of a second (museval, SiSEC 2018), of a song the median over the frames;
and the Music Demixing Challenge's one SDR of a song. Totals are the median over songs, as SiSEC
reports BSSEval, and the mean over songs, as the challenge reports its SDR, and the package demucs
also BSSEval.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from sonorant.audio import Audio, read
from sonorant.data.prepare import AUDIO_SUFFIXES
from sonorant.data.songs import Song, read_mixture, read_stem, song_of
from sonorant.errors import AudioError, ConfigError
from sonorant.hub.checkpoint import CONFIG_FILE
from sonorant.separation.bss_eval import BssEvalConfig, bss_eval
from sonorant.separation.metrics import fit_length, global_sdr, median_over_frames
from sonorant.separation.oracles import BASELINES
from sonorant.separation.repositories import load_separator
from sonorant.separation.separator import Separator
from sonorant.separation.stems import songs_in

BSS_METRICS = ("sdr", "isr", "sir", "sar")
GLOBAL = "global_sdr"
METRICS = (*BSS_METRICS, GLOBAL)
MIXTURE = "mixture"
VOCALS, ACCOMPANIMENT = "vocals", "accompaniment"

Estimate = Callable[[Song, Audio, dict[str, Audio]], dict[str, Audio]]
"""From a song, its mixture and its true sources to the estimates, by source."""


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to measure.

    bss: BSSEval too, which takes most of the time. window_seconds, hop_seconds: of its frames;
    framewise_filters: its version 3. accompaniment: also all but the vocals as one source; it and
    the vocals then have the BSSEval figures of these two alone, as in museval and SiSEC.
    """

    bss: bool = True
    window_seconds: float = 1.0
    hop_seconds: float = 1.0
    framewise_filters: bool = False
    accompaniment: bool = False


class SourceScores(msgspec.Struct, frozen=True):
    """One source of one song, in dB.

    medians: by metric of BSSEval, over the frames that have a figure; None if none has.
    frames: by metric, every frame; None where a source is silent, or the ratio is not finite.
    """

    global_sdr: float
    medians: dict[str, float | None] = {}
    frames: dict[str, list[float | None]] = {}

    def of(self, metric: str) -> float | None:
        return self.global_sdr if metric == GLOBAL else self.medians.get(metric)


class SongScores(msgspec.Struct, frozen=True):
    """One song. silent_frames: how many of `frames` are not scored, a source being silent there.

    padded_samples: how much longer the song is than its estimates at most; negative: shorter.
    converted: rate and channels of an estimate that were not the song's, or "".
    silent_sources: those that are silent throughout, whose SDR means nothing.
    """

    name: str
    seconds: float
    sources: dict[str, SourceScores]
    frames: int
    silent_frames: int
    padded_samples: int
    converted: str = ""
    silent_sources: tuple[str, ...] = ()


class Total(msgspec.Struct, frozen=True):
    """A metric over all songs that have it, in dB."""

    median: float
    mean: float
    songs: int


class Evaluation(msgspec.Struct, frozen=True):
    """A separator on songs. totals: by source (and "all", of the sources' totals), by metric."""

    name: str
    sources: tuple[str, ...]
    plan: Plan
    totals: dict[str, dict[str, Total]]
    songs: list[SongScores]


def find_references(folder: Path) -> list[Song]:
    """The songs to measure on: `SONG/SOURCE.wav` in a folder, or in its `test` if there is one.

    So of MUSDB18 and MUSDB18-HQ, and of the challenge's starter kit, the test songs are taken.
    Raises: ConfigError if there are none, AudioError for stems that do not fit together.
    """
    inside = folder / "test" if (folder / "test").is_dir() else folder
    songs = [song_of(name, "test", files, measure_level=False) for name, files in songs_in(inside)]
    if not songs:
        raise ConfigError(f"{inside} holds no songs: it needs a folder for each, with SOURCE.wav")
    return songs


def sources_of(songs: Sequence[Song]) -> tuple[str, ...]:
    """The sources that the songs share, in alphabetical order. Raises: ConfigError if there are
    none."""
    shared = set.intersection(*(_sources_in(song) for song in songs))
    if not shared:
        raise ConfigError("the songs have no source in common")
    return tuple(sorted(shared))


def missing_sources(songs: Sequence[Song]) -> dict[str, list[str]]:
    """Sources that some songs have and are not measured, and the songs that lack them."""
    all_sources = set.union(*(_sources_in(song) for song in songs))
    return {
        source: [song.name for song in songs if source not in song.files]
        for source in sorted(all_sources - set(sources_of(songs)))
    }


def _sources_in(song: Song) -> set[str]:
    return set(song.files) - {MIXTURE, ACCOMPANIMENT}


def from_folder(folder: Path) -> Estimate:
    """Estimates that are files, `SONG/SOURCE.wav` (or .flac and so on), as `separate` writes them.

    Raises, when called: AudioError if one is missing or cannot be read.
    """

    def estimate(song: Song, mixture: Audio, references: dict[str, Audio]) -> dict[str, Audio]:
        return {source: read(_file_of(folder / song.name, source)) for source in references}

    return estimate


def _file_of(folder: Path, source: str) -> Path:
    for suffix in sorted(AUDIO_SUFFIXES):
        if (path := folder / f"{source}{suffix}").is_file():
            return path
    raise AudioError(f"there is no estimate {folder / source}.wav (or .flac and the like)")


def from_model(model: Separator, **settings: Any) -> Estimate:
    """What the model separates, while it is measured. settings: as `Separator.separate` takes.

    Raises, when called: ConfigError if the model lacks a source.
    """

    def estimate(song: Song, mixture: Audio, references: dict[str, Audio]) -> dict[str, Audio]:
        return model.separate(mixture, stems=list(references), **settings)

    return estimate


def from_baseline(name: str) -> Estimate:
    """An oracle, or the mixture itself: of `BASELINES`. Raises: ConfigError for another name."""
    if name not in BASELINES:
        raise ConfigError(f"no baseline {name!r}; there are {', '.join(BASELINES)}")

    def estimate(song: Song, mixture: Audio, references: dict[str, Audio]) -> dict[str, Audio]:
        # Of all that the song is made of, not only of what is measured.
        others = [source for source in _sources_in(song) if source not in references]
        unmeasured = [torch.from_numpy(read_stem(song, source)) for source in others]
        true = torch.stack([audio.samples for audio in references.values()] + unmeasured)
        made = BASELINES[name](mixture.samples, true)[: len(references)]
        return {
            source: Audio(samples, song.sample_rate)
            for source, samples in zip(references, made, strict=True)
        }

    return estimate


def estimates_of(what: str, repo: Path | None = None, **settings: Any) -> Estimate:
    """From a baseline's name, a folder with a folder of estimates for each song, or a model.

    repo: a folder of packages in which a model is looked for. settings: how a model is applied.
    Raises: CheckpointError if there is no such model; ConfigError for settings it cannot have, or
    any where there is no model.
    """
    if is_model(what):
        return from_model(load_separator(what, repo), **settings)
    if settings or repo is not None:
        given = ", ".join([*settings, *(["repo"] if repo is not None else [])])
        raise ConfigError(f"{what} is no model, and has no use for {given}")
    return from_baseline(what) if what in BASELINES else from_folder(Path(what))


def is_model(what: str) -> bool:
    """Whether it is neither a baseline nor a folder of estimates."""
    folder = Path(what)
    is_folder = folder.is_dir() and not (folder / CONFIG_FILE).is_file()
    return what not in BASELINES and not is_folder


def evaluate_separation(
    name: str,
    songs: Sequence[Song],
    estimate: Estimate,
    plan: Plan | None = None,
    progress: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Measure estimates of all songs. `progress` is called after each of them.

    Estimates are converted to a song's rate and channels, and cut or padded with zeros to its
    length.
    Raises: ConfigError and AudioError for songs or estimates that cannot be used.
    """
    plan = plan or Plan()
    sources = sources_of(songs)
    if plan.accompaniment and VOCALS not in sources:
        raise ConfigError(f"accompaniment needs {VOCALS} among the sources: {', '.join(sources)}")
    results = []
    for song in songs:
        mixture = Audio(torch.from_numpy(read_mixture(song)), song.sample_rate)
        references = {
            source: Audio(torch.from_numpy(read_stem(song, source)), song.sample_rate)
            for source in sources
        }
        results.append(score_song(song, references, estimate(song, mixture, references), plan))
        progress()
    return Evaluation(name, sources, plan, totals_of(results), results)


def score_song(
    song: Song, references: dict[str, Audio], estimates: dict[str, Audio], plan: Plan
) -> SongScores:
    """The figures of one song. Raises: AudioError for an estimate that is empty or not finite."""
    true = torch.stack([audio.samples for audio in references.values()])
    channels, samples = true.shape[1:]
    guesses = [
        estimates[source].check().to(song.sample_rate, channels).samples for source in references
    ]
    guess = torch.stack([fit_length(each, samples) for each in guesses])
    whole = dict(zip(references, global_sdr(true, guess).tolist(), strict=True))
    frames = _frames(list(references), true, guess, song, plan)
    scored = next(iter(frames.values())).get("sdr", torch.zeros(0))
    if plan.accompaniment:
        vocals = list(references).index(VOCALS)
        true, guess = (_against_accompaniment(each, vocals) for each in (true, guess))
        whole[ACCOMPANIMENT] = global_sdr(true[1], guess[1]).item()
        frames |= _frames([VOCALS, ACCOMPANIMENT], true, guess, song, plan)
    return SongScores(
        name=song.name,
        seconds=song.duration_seconds,
        sources={
            source: SourceScores(
                value,
                {metric: _median(v) for metric, v in frames[source].items()},
                {metric: [_finite(x) for x in v] for metric, v in frames[source].items()},
            )
            for source, value in whole.items()
        },
        frames=len(scored),
        silent_frames=int(scored.isnan().sum()),
        padded_samples=max((samples - each.shape[-1] for each in guesses), key=abs),
        converted=_converted([estimates[source] for source in references], song, channels),
        silent_sources=tuple(
            source for source, audio in references.items() if not audio.samples.any()
        ),
    )


def _converted(estimates: Sequence[Audio], song: Song, channels: int) -> str:
    """Rate and channels of the last estimate that has not the song's; "" if there is none."""
    found = ""
    for each in estimates:
        if (each.sample_rate, each.channels) != (song.sample_rate, channels):
            found = f"{each.sample_rate} Hz, {each.channels} channel(s)"
    return found


def _against_accompaniment(signals: Tensor, vocals: int) -> Tensor:
    """Vocals, and the sum of all others: `[2, channels, time]`."""
    return torch.stack([signals[vocals], signals.sum(dim=0) - signals[vocals]])


def _frames(
    sources: Sequence[str], true: Tensor, guess: Tensor, song: Song, plan: Plan
) -> dict[str, dict[str, Tensor]]:
    """BSSEval's ratios by source and metric; no metrics if it is not in the plan."""
    if not plan.bss:
        return {source: {} for source in sources}
    config = BssEvalConfig(
        window_samples=int(plan.window_seconds * song.sample_rate),
        hop_samples=int(plan.hop_seconds * song.sample_rate),
        framewise_filters=plan.framewise_filters,
    )
    scores = bss_eval(true, guess, config)
    return {
        source: {metric: getattr(scores, metric)[index] for metric in BSS_METRICS}
        for index, source in enumerate(sources)
    }


def _median(frames: Tensor) -> float | None:
    """Of the frames with a figure. Infinite ones have none, as in museval's files."""
    return _finite(median_over_frames(frames.where(frames.isfinite(), torch.nan)))


def _finite(value: Tensor) -> float | None:
    return value.item() if value.isfinite() else None


def totals_of(songs: Sequence[SongScores]) -> dict[str, dict[str, Total]]:
    """Every metric of every source over the songs that have it; "all": means over the sources.

    The accompaniment does not count as a source.
    """
    names = {source: None for song in songs for source in song.sources}
    totals = {source: dict(_totals(song.sources[source] for song in songs)) for source in names}
    sources = [source for source in names if source != ACCOMPANIMENT]
    everywhere = [metric for metric in METRICS if all(metric in totals[s] for s in sources)]
    totals["all"] = {
        metric: Total(
            median=statistics.fmean(totals[source][metric].median for source in sources),
            mean=statistics.fmean(totals[source][metric].mean for source in sources),
            songs=min(totals[source][metric].songs for source in sources),
        )
        for metric in everywhere
    }
    return totals


def _totals(scores: Iterable[SourceScores]) -> Iterator[tuple[str, Total]]:
    listed = list(scores)
    for metric in METRICS:
        found = [score.of(metric) for score in listed]
        values = [value for value in found if value is not None and math.isfinite(value)]
        if values:
            yield metric, Total(statistics.median(values), statistics.fmean(values), len(values))
