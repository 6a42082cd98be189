"""`sonorant compress in.wav [out.snr | out.ecdc]`: turn a sound into a small file."""

from __future__ import annotations

from pathlib import Path

import click

from sonorant.cli.conversion import (
    DEFAULT_MODEL,
    ECDC_MODEL,
    Stopwatch,
    check_ending,
    check_target,
    force_option,
    kbps_text,
    progress_bar,
    size,
)


@click.command()
@click.argument("source", metavar="SOUND", type=click.Path(path_type=Path))
@click.argument("target", metavar="[OUT]", required=False, type=click.Path(path_type=Path))
@click.option("--bandwidth", default=6.0, show_default=True, metavar="KB/S", help="Of the tokens.")
@click.option(
    "--model",
    help=f"Known name, folder or file; by default {DEFAULT_MODEL}, for .ecdc {ECDC_MODEL}.",
)
@click.option("--entropy", is_flag=True, help="Smaller still, and slower, by the entropy model.")
@click.option("--mix-down", is_flag=True, help="Make more than two channels one, by their mean.")
@force_option
def compress(
    source: Path,
    target: Path | None,
    bandwidth: float,
    model: str | None,
    entropy: bool,
    mix_down: bool,
    force: bool,
) -> None:
    """Turn SOUND (WAV, FLAC, MP3, Ogg) into a small file OUT, by default beside it with the ending
    .snr.

    With the ending .ecdc, OUT is a file that the `encodec` command of the EnCodec package reads.
    """
    target = target or source.with_suffix(".snr")
    check_target(source, target, force)
    from sonorant.audio import info
    from sonorant.codec.ecdc import SUFFIX
    from sonorant.codec.files import compress_file, load_codec, load_entropy_model

    check_ending(target, [".snr", SUFFIX])
    seconds = info(source).duration_seconds
    model = model or (ECDC_MODEL if target.suffix.lower() == SUFFIX else DEFAULT_MODEL)
    codec = load_codec(model)
    coding = load_entropy_model(codec, model) if entropy else None
    watch = Stopwatch()
    with progress_bar("compressing") as progress:
        compress_file(source, target, codec, bandwidth, progress, mix_down, coding)
    ratio = source.stat().st_size / target.stat().st_size
    click.echo(
        f"{source} ({size(source)}, {kbps_text(source, seconds)}) -> {target} ({size(target)}, "
        f"{kbps_text(target, seconds)}): {ratio:.1f} times smaller; {watch.speed(seconds)}"
    )
