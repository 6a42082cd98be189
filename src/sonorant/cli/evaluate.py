"""`sonorant evaluate codec MODEL PATH...`: how good a model is, in figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sonorant.cli.evaluate_separation import leaderboard, separation, submission
from sonorant.cli.figures import check_targets, json_option, picture_option, print_figures
from sonorant.data.manifest import DOMAINS, SPLITS, Domain, Split
from sonorant.errors import ConfigError

if TYPE_CHECKING:
    from sonorant.codec.evaluation import Evaluation, Sound, Totals

SHOWN = 3
"""How many files a note names."""


@click.group()
def evaluate() -> None:
    """Measure how good a model is."""


for command in (separation, leaderboard, submission):
    evaluate.add_command(command)


@evaluate.command()
@click.argument("model")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--bandwidth",
    "bandwidths",
    multiple=True,
    type=float,
    metavar="KB/S",
    help="May be given more than once; by default all codebooks.",
)
@click.option("--metrics", metavar="NAME,NAME", help="Which to compute; by default all.")
@click.option("--domain", type=click.Choice(DOMAINS), help="What the files and folders hold.")
@click.option("--split", type=click.Choice(SPLITS), help="Only this part of a manifest.")
@json_option
@picture_option
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1))
def codec(
    model: str,
    paths: tuple[Path, ...],
    bandwidths: tuple[float, ...],
    metrics: str | None,
    domain: Domain | None,
    split: Split | None,
    json_path: Path | None,
    picture: Path | None,
    workers: int,
) -> None:
    """Measure the codec MODEL on sound files, folders of them, or manifests (.jsonl).

    Metrics: si_snr, mel, stft, visqol, and for speech (a manifest's, or with --domain speech) pesq
    and stoi. The rate and the use of the codebooks are always there. --json writes every figure of
    every file, --picture draws them.
    """
    from tqdm import tqdm

    from sonorant.codec.evaluation import Plan, evaluate_codec, find_sounds

    check_targets(json_path, picture)
    if picture is not None:
        from sonorant.reports import check_picture_path

        check_picture_path(picture)
    sounds = find_sounds(paths, split, domain)
    plan = Plan(model, bandwidths or (None,), _chosen_metrics(metrics, sounds))
    with tqdm(total=len(sounds), desc="evaluating", unit="file", disable=None) as bar:
        evaluation = evaluate_codec(sounds, plan, workers, bar.update)
    print_figures(evaluation, json_path, lambda: [table(evaluation), *notes(evaluation)])
    if picture is not None:
        from sonorant.codec.evaluation_picture import write_picture

        write_picture(evaluation, picture)


def _chosen_metrics(names: str | None, sounds: list[Sound]) -> tuple[str, ...]:
    """The metrics that are asked for, all for None.

    Raises: ConfigError for one of speech where no sound is known to be some.
    """
    from sonorant.codec.metrics import METRICS

    if names is None:
        return tuple(METRICS)
    chosen = tuple(filter(None, names.split(",")))
    if any(sound.domain == "speech" for sound in sounds):
        return chosen
    for name in chosen:
        if name in METRICS and METRICS[name].speech_only:
            raise ConfigError(f"{name} is for speech; say that this is some: --domain speech")
    return chosen


def table(evaluation: Evaluation) -> str:
    """The totals, a column for each bandwidth."""
    from sonorant.codec.metrics import METRICS

    totals = evaluation.totals
    names = [name for name in METRICS if any(name in total.metrics for total in totals)]
    rows = [
        ["files", *(str(total.files) for total in totals)],
        ["sound", *(f"{total.seconds:.1f} s" for total in totals)],
        ["codebooks", *(str(len(total.codebooks)) for total in totals)],
        ["rate", *(f"{total.kbps:.2f} kb/s" for total in totals)],
        ["entropy of tokens", *(f"{total.entropy_kbps:.2f} kb/s" for total in totals)],
        *([METRICS[name].title, *(_mean(total, name) for total in totals)] for name in names),
        ["perplexity", *(_perplexities(total) for total in totals)],
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def _mean(total: Totals, name: str) -> str:
    from sonorant.codec.metrics import METRICS

    if name not in total.metrics:
        return "none"
    found, unit = total.metrics[name], METRICS[name].unit
    fewer = f" (of {found.files})" if found.files < total.files else ""
    return f"{found.mean:.2f}{' ' * bool(unit)}{unit}{fewer}"


def _perplexities(total: Totals) -> str:
    values = [book.perplexity for book in total.codebooks]
    return f"{min(values):.0f} to {max(values):.0f}"


def notes(evaluation: Evaluation) -> list[str]:
    """What is missing, and why."""
    from sonorant.codec.metrics import METRICS

    found = []
    for path, reason in evaluation.failed.items():
        found.append(f"not used: {path}: {reason}")
    for name, metric in METRICS.items():
        missing = {
            file.path: file.not_computed[name]
            for file in evaluation.files
            if name in file.not_computed
        }
        if missing:
            found.append(f"{metric.title} is missing for {_listed(missing)}")
    return found


def _listed(missing: dict[str, str]) -> str:
    shown = [f"{path} ({reason})" for path, reason in list(missing.items())[:SHOWN]]
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    return "; ".join(shown) + more
