"""`sonorant demo`: real clips through the shipped codec, figures, and a page to listen to."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from sonorant.cli.conversion import DEFAULT_MODEL

REPORT = "report.html"


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
def demo(out: Path, model: str) -> None:
    """Compress sample clips of speech, music and sound at every bandwidth, print the figures, and
    write a report with pictures and players."""
    from tqdm import tqdm

    from sonorant.codec.demo import run_trials, shipped_clips
    from sonorant.codec.files import load_codec
    from sonorant.codec.report import trials_table, write_report
    from sonorant.reports import require_plots

    require_plots()
    codec, clips = load_codec(model), shipped_clips()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name:
        folder = Path(name)
        total = len(clips) * len(codec.config.target_bandwidths_kbps)
        trials = list(
            tqdm(run_trials(clips, codec, folder), "compressing", total, unit="file", disable=None)
        )
        click.echo(trials_table(trials))
        write_report(folder / REPORT, codec, trials)
        out.mkdir(exist_ok=True)
        for path in folder.iterdir():
            path.replace(out / path.name)
    click.echo(f"\nOpen {out / REPORT} in a browser to see and hear it.")
