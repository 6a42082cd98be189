"""`sonorant decompress in.snr [out.wav]`: turn a small file back into sound."""

from __future__ import annotations

from pathlib import Path

import click

from sonorant.cli.conversion import (
    Stopwatch,
    check_target,
    force_option,
    kbps_text,
    progress_bar,
    size,
)


@click.command()
@click.argument("source", metavar="IN.SNR", type=click.Path(path_type=Path))
@click.argument("target", metavar="[SOUND]", required=False, type=click.Path(path_type=Path))
@click.option("--model", help="Known name, folder or file; by default the one that IN.SNR names.")
@force_option
def decompress(source: Path, target: Path | None, model: str | None, force: bool) -> None:
    """Turn IN.SNR back into SOUND (.wav, .flac, .mp3, .ogg or .opus), by default a .wav beside it.

    Its rate, length and channels are those of the original.
    """
    target = target or source.with_suffix(".wav")
    check_target(source, target, force)
    from sonorant.codec.container import ContainerReader
    from sonorant.codec.files import decompress_file, load_codec

    seconds = ContainerReader(source).duration_seconds
    codec = None if model is None else load_codec(model)
    watch = Stopwatch()
    with progress_bar("decompressing") as progress:
        decompress_file(source, target, codec, progress)
    click.echo(
        f"{source} ({size(source)}, {kbps_text(source, seconds)}) -> "
        f"{target} ({size(target)}, {seconds:.1f} s); {watch.speed(seconds)}"
    )
