"""`sonorant evaluate separation|leaderboard|submission`: how well songs are taken apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sonorant.cli.figures import check_targets, json_option, picture_option, print_figures

if TYPE_CHECKING:
    from sonorant.data.songs import Song
    from sonorant.separation.evaluation import Evaluation, Plan, Total
    from sonorant.separation.leaderboard import Row

MEDIANS = {"sdr": "SDR", "isr": "ISR", "sir": "SIR", "sar": "SAR"}
LOWER_BOUND, UPPER_BOUNDS = "mixture", ("ibm1", "irm1", "mwf")
SHOWN = 3
"""How many songs a note names."""

songs_argument = click.argument("songs", type=click.Path(path_type=Path, file_okay=False))
BASE_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--repo", type=click.Path(path_type=Path), help="Folder of .th packages."),
    click.option("--shifts", type=click.IntRange(0), help="Of a model; as `separate` has it."),
    click.option("--overlap", type=float, help="Likewise."),
    click.option("--segment", "segment_seconds", type=float, help="Likewise, in seconds."),
)


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """How a model is found and applied."""
    for option in reversed(BASE_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("what")
@songs_argument
@model_options
@click.option("--no-bss", is_flag=True, help="Only the SDR of whole songs, in a moment.")
@click.option("--window", default=1.0, show_default=True, type=float, help="Of frames, seconds.")
@click.option("--hop", type=float, help="Between frames; by default the window.")
@click.option("--v3", is_flag=True, help="BSSEval 3: filters for every frame. Slow.")
@click.option("--accompaniment", is_flag=True, help="All stems but the vocals, summed up, as well.")
@json_option
@picture_option
def separation(
    what: str,
    songs: Path,
    repo: Path | None,
    no_bss: bool,
    window: float,
    hop: float | None,
    v3: bool,
    accompaniment: bool,
    json_path: Path | None,
    picture: Path | None,
    **settings: Any,
) -> None:
    """Measure WHAT on SONGS, a folder of SONG/SOURCE.wav, or of MUSDB18 or MUSDB18-HQ.

    WHAT is a folder of estimates SONG/SOURCE.wav, a model (a name or a path), which then separates
    the mixtures, or a baseline: mixture, or an oracle, ibm1, ibm2, irm1, irm2 or mwf.

    The table has SDR, ISR, SIR and SAR of BSSEval 4 in dB: the median over songs of the median over
    frames; and the SDR of whole songs of the 2021 challenge, the mean over songs.
    """
    from sonorant.errors import ConfigError
    from sonorant.separation.evaluation import Plan

    hop = window if hop is None else hop
    if not (0 < window < math.inf and 0 < hop < math.inf):
        raise ConfigError("--window and --hop must be above 0 seconds, and finite")
    check_targets(json_path, picture)
    if picture is not None:
        from sonorant.reports import check_picture_path
        from sonorant.separation.evaluation_picture import write_picture

        check_picture_path(picture)
    plan = Plan(
        bss=not no_bss,
        window_seconds=window,
        hop_seconds=hop,
        framewise_filters=v3,
        accompaniment=accompaniment,
    )
    evaluation = _evaluate(what, what, _songs(songs), plan, repo, settings)
    print_figures(evaluation, json_path, lambda: [table(evaluation), *notes(evaluation)])
    if picture is not None:
        write_picture(evaluation, picture)


@click.command()
@songs_argument
@click.argument("entries", nargs=-1, required=True, metavar="[NAME=]WHAT...")
@click.option("--only-musdb", multiple=True, metavar="NAME", help="Keeps to board A's rules.")
@click.option("--no-baselines", is_flag=True, help="Leave out the mixture and the oracles.")
@model_options
@json_option
def leaderboard(
    songs: Path,
    entries: tuple[str, ...],
    only_musdb: tuple[str, ...],
    no_baselines: bool,
    repo: Path | None,
    json_path: Path | None,
    **settings: Any,
) -> None:
    """The tables of the Music Demixing Challenge 2021 on SONGS, for several ENTRIES.

    An entry is a model or a folder of estimates, as for `evaluate separation`. Board A is for those
    trained on the training songs of MUSDB18-HQ alone: published models are known, others say so
    with --only-musdb. Board B takes all. Ranked by the mean SDR of whole songs.
    """
    from sonorant.errors import ConfigError
    from sonorant.separation.evaluation import Plan, is_model
    from sonorant.separation.leaderboard import BOARDS, board, entry_of

    check_targets(json_path)
    listed = [entry_of(text, only_musdb) for text in entries]
    if missing := set(only_musdb) - {entry.name for entry in listed}:
        raise ConfigError(f"--only-musdb names no entry: {', '.join(sorted(missing))}")
    plan, found = Plan(bss=False), _songs(songs)
    scored = []
    for entry in listed:
        given = (repo, settings) if is_model(entry.what) else (None, {})
        scored.append((entry, _evaluate(entry.name, entry.what, found, plan, *given)))
    names = () if no_baselines else (LOWER_BOUND, *UPPER_BOUNDS)
    baselines = [_evaluate(name, name, found, plan, None, {}) for name in names]
    boards = {which: board(which, scored, baselines) for which in BOARDS}
    lines = [
        f"Board {which.upper()}: {rules}\n{board_table(boards[which])}\n"
        for which, rules in BOARDS.items()
    ]
    print_figures(boards, json_path, lambda: lines)


@click.command()
@click.argument("script", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--songs", type=click.Path(path_type=Path), help="Or its `test`; default data/test.")
@click.option("--results", type=click.Path(path_type=Path), help="Default data/results.")
@click.option("--only", multiple=True, metavar="SONG", help="May be given more than once.")
@click.option("--setup-seconds", type=click.IntRange(1), help="Time limit; default 900.")
@click.option("--song-seconds", type=click.IntRange(1), help="Of each song; default 240.")
@json_option
def submission(
    script: Path,
    songs: Path | None,
    results: Path | None,
    only: tuple[str, ...],
    setup_seconds: int | None,
    song_seconds: int | None,
    json_path: Path | None,
) -> None:
    """Run a submission to the Music Demixing Challenge 2021, as it is, and score what it writes.

    SCRIPT is the starter kit's predict.py. Options go before the kit's environment variables, such
    as TEST_DATASET_PATH, which count too.
    """
    from sonorant.separation.starter_kit import MusicDemixingPredictor, kit_environment, run_script

    check_targets(json_path)
    if songs is not None and (songs / "test").is_dir():
        songs = songs / "test"
    given = {
        "TEST_DATASET_PATH": songs,
        "RESULTS_DATASET_PATH": results,
        "PARTIAL_RUN_MUSIC_NAMES": ",".join(only) or None,
        "INFERENCE_SETUP_TIMEOUT_SECONDS": setup_seconds,
        "INFERENCE_PER_MUSIC_TIMEOUT_SECONDS": song_seconds,
    }
    environment = {name: str(value) for name, value in given.items() if value is not None}
    with kit_environment(environment):
        predictor = MusicDemixingPredictor()
        unscored = predictor.unscored()
    if unscored:
        told = _listed(dict.fromkeys(unscored, "no true stems"))
        click.echo(f"the stems are written, but not scored: {told}", err=True)
    run_script(script, environment)
    if unscored:
        return
    scores = predictor.scoring()
    print_figures(scores, json_path, lambda: [submission_table(scores)])


def _songs(folder: Path) -> list[Song]:
    from sonorant.separation.evaluation import find_references, missing_sources

    songs = find_references(folder)
    for source, lacking in missing_sources(songs).items():
        told = _listed(dict.fromkeys(lacking, "lacks it"))
        click.echo(f"not measured: {source}, for not all songs have it: {told}", err=True)
    return songs


def _evaluate(
    name: str,
    what: str,
    songs: Sequence[Song],
    plan: Plan,
    repo: Path | None,
    settings: dict[str, Any],
) -> Evaluation:
    """With a progress bar. settings: those of separating; None is the default."""
    from tqdm import tqdm

    from sonorant.separation.evaluation import estimates_of, evaluate_separation

    given = {key: value for key, value in settings.items() if value is not None}
    estimate = estimates_of(what, repo, **given)
    with tqdm(total=len(songs), desc=name, unit="song", disable=None) as bar:
        return evaluate_separation(name, songs, estimate, plan, bar.update)


def table(evaluation: Evaluation) -> str:
    """A row for each figure, a column for each source."""
    from sonorant.reports import text_table
    from sonorant.separation.evaluation import GLOBAL

    totals = evaluation.totals
    columns = [source for source in totals if source != "all"] + ["all"]
    rows = [["dB", *columns]]
    for metric, title in MEDIANS.items():
        if any(metric in totals[column] for column in columns):
            rows.append([title, *(_cell(totals[column].get(metric)) for column in columns)])
    rows.append(["SDR of songs", *(f"{totals[column][GLOBAL].mean:.2f}" for column in columns)])
    return text_table(rows)


def _cell(total: Total | None) -> str:
    return "none" if total is None else f"{total.median:.2f}"


def notes(evaluation: Evaluation) -> list[str]:
    """What is not as it should be."""
    silent = {
        song.name: f"{song.silent_frames} of {song.frames}"
        for song in evaluation.songs
        if song.silent_frames
    }
    other_length = {
        song.name: f"{song.padded_samples:+d}" for song in evaluation.songs if song.padded_samples
    }
    found = []
    if silent:
        found.append(f"frames not scored, as a source is silent in them: {_listed(silent)}")
    converted = {song.name: song.converted for song in evaluation.songs if song.converted}
    throughout = {
        song.name: ", ".join(song.silent_sources)
        for song in evaluation.songs
        if song.silent_sources
    }
    if throughout:
        found.append(
            "silent throughout, so that the SDR of the song means nothing: " + _listed(throughout)
        )
    if converted:
        found.append(f"estimates converted to the songs' rate and channels: {_listed(converted)}")
    if other_length:
        found.append(f"samples added (+) to or cut (-) from estimates: {_listed(other_length)}")
    return found


def _listed(told: dict[str, str]) -> str:
    shown = [f"{name} ({what})" for name, what in list(told.items())[:SHOWN]]
    more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return "; ".join(shown) + more


def board_table(rows: Sequence[Row]) -> str:
    """The challenge's table; a dash where a baseline has no rank."""
    from sonorant.reports import text_table

    if not rows:
        return "no entry keeps to these rules"
    columns = list(rows[0].scores)
    lines = [
        [row.name, "-" if row.rank is None else str(row.rank)]
        + [f"{row.scores[column]:.2f}" for column in columns]
        for row in rows
    ]
    return text_table([["", "rank", *columns], *lines])


def submission_table(scores: dict[str, dict[str, float]]) -> str:
    """Song by song, and the mean."""
    from sonorant.reports import text_table

    columns = list(next(iter(scores.values())))
    mean = {column: sum(of[column] for of in scores.values()) / len(scores) for column in columns}
    lines = [
        [name, *(f"{values[column]:.2f}" for column in columns)]
        for name, values in {**scores, "mean": mean}.items()
    ]
    return text_table([["dB", *columns], *lines])
