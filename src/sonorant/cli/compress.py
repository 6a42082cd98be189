"""`sonorant compress in.wav [out.snr]`: turn a sound into a small file."""

from __future__ import annotations

from pathlib import Path

import click

from sonorant.cli.conversion import (
    DEFAULT_MODEL,
    Stopwatch,
    check_target,
    force_option,
    kbps_text,
    progress_bar,
    size,
)


@click.command()
@click.argument("source", metavar="SOUND", type=click.Path(path_type=Path))
@click.argument("target", metavar="[OUT.SNR]", required=False, type=click.Path(path_type=Path))
@click.option("--bandwidth", default=6.0, show_default=True, metavar="KB/S", help="Of the tokens.")
@click.option(
    "--model", default=DEFAULT_MODEL, show_default=True, help="Known name, folder or file."
)
@click.option("--mix-down", is_flag=True, help="Make more than two channels one, by their mean.")
@force_option
def compress(
    source: Path, target: Path | None, bandwidth: float, model: str, mix_down: bool, force: bool
) -> None:
    """Turn SOUND (WAV, FLAC, MP3, Ogg) into a small file, by default beside it with the ending
    .snr."""
    target = target or source.with_suffix(".snr")
    check_target(source, target, force)
    from sonorant.audio import info
    from sonorant.codec.files import compress_file, load_codec

    seconds = info(source).duration_seconds
    codec = load_codec(model)
    watch = Stopwatch()
    with progress_bar("compressing") as progress:
        compress_file(source, target, codec, bandwidth, progress, mix_down)
    ratio = source.stat().st_size / target.stat().st_size
    click.echo(
        f"{source} ({size(source)}, {kbps_text(source, seconds)}) -> {target} ({size(target)}, "
        f"{kbps_text(target, seconds)}): {ratio:.1f} times smaller; {watch.speed(seconds)}"
    )
