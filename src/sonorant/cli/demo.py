"""`sonorant demo`: real clips through the shipped models, figures, and a page to listen to."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from sonorant.cli.conversion import DEFAULT_MODEL

REPORT = "report.html"
DEFAULT_SEPARATOR = "sonorant/htdemucs-small"


@click.command()
@click.option(
    "--out",
    default="demo-report",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write; files of an earlier demo are replaced.",
)
@click.option(
    "--model", default=DEFAULT_MODEL, show_default=True, help="Known name, folder or file."
)
@click.option(
    "--separator", default=DEFAULT_SEPARATOR, show_default=True, help="Likewise, for the song."
)
def demo(out: Path, model: str, separator: str) -> None:
    """Compress sample clips of speech, music and sound at every bandwidth, take a song apart, print
    the figures, and write a report with pictures and players."""
    from tqdm import tqdm

    from sonorant.codec.demo import run_trials
    from sonorant.codec.files import load_codec
    from sonorant.codec.report import trials_table, write_report
    from sonorant.reports import require_plots
    from sonorant.sample_clips import shipped_clips
    from sonorant.separation.demo import check_separator, separate_clips, stems_section, stems_table
    from sonorant.separation.repositories import load_separator

    require_plots()
    codec, clips, network = load_codec(model), shipped_clips(), load_separator(separator)
    check_separator(network)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name:
        folder = Path(name)
        total = len(clips) * len(codec.config.target_bandwidths_kbps)
        trials = list(
            tqdm(run_trials(clips, codec, folder), "compressing", total, unit="file", disable=None)
        )
        click.echo(trials_table(trials))
        stems = separate_clips(network, folder)
        click.echo(f"\n{stems_table(stems)}")
        write_report(folder / REPORT, codec, trials, [stems_section(network, stems)])
        out.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.replace(out / path.name)
    click.echo(f"\nOpen {out / REPORT} in a browser to see and hear it.")
