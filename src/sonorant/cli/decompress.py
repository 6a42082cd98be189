"""`sonorant decompress in.snr|in.ecdc [out.wav]`: turn a small file back into sound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sonorant.cli.conversion import (
    Stopwatch,
    check_ending,
    check_target,
    force_option,
    kbps_text,
    progress_bar,
    size,
)
from sonorant.errors import SonorantError

if TYPE_CHECKING:
    from sonorant.codec.diffusion_files import DiffusionDecoder


@click.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="[SOUND]", required=False, type=click.Path(path_type=Path))
@click.option("--model", help="Known name, folder or file; by default the one that IN names.")
@click.option(
    "--diffusion",
    metavar="MODEL",
    help="Known name or folder of a diffusion model that makes the sound in place of the codec: "
    "more natural at low bandwidths, and much slower.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    help="Of the noise that diffusion starts from; 0 by default.",
)
@click.option(
    "--calls",
    type=click.IntRange(1),
    help="How often diffusion runs each network, 20 by default; fewer are faster and worse.",
)
@force_option
def decompress(
    source: Path,
    target: Path | None,
    model: str | None,
    diffusion: str | None,
    seed: int | None,
    calls: int | None,
    force: bool,
) -> None:
    """Turn IN back into SOUND (.wav, .flac, .mp3, .ogg or .opus), by default a .wav beside it.

    IN is a .snr file, of which rate, length and channels are those of the original, or an .ecdc
    file of the EnCodec package, of which they are the codec's.
    """
    target = target or source.with_suffix(".wav")
    check_target(source, target, force)
    from sonorant.audio.writing import ENCODINGS
    from sonorant.codec.files import (
        decompress_file,
        load_codec,
        load_entropy_model,
        open_compressed,
    )

    check_ending(target, ENCODINGS)
    reader = open_compressed(source)
    seconds = reader.duration_seconds
    codec = entropy = None
    if model is not None:
        codec = load_codec(model)
        entropy = load_entropy_model(codec, model) if reader.coded else None
    decoder = _diffusion_decoder(diffusion, seed, calls)
    watch = Stopwatch()
    with progress_bar("decompressing") as progress:
        decompress_file(source, target, codec, progress, entropy, decoder)
    click.echo(
        f"{source} ({size(source)}, {kbps_text(source, seconds)}) -> "
        f"{target} ({size(target)}, {seconds:.1f} s); {watch.speed(seconds)}"
    )


def _diffusion_decoder(
    name_or_path: str | None, seed: int | None, calls: int | None
) -> DiffusionDecoder | None:
    """What makes the sound in place of the codec; None for the codec itself.

    Raises: SonorantError for options of diffusion without a diffusion model.
    """
    if name_or_path is None:
        if seed is not None or calls is not None:
            raise SonorantError("--seed and --calls are for diffusion; name a model: --diffusion")
        return None
    from sonorant.codec.diffusion_files import DiffusionDecoder
    from sonorant.codec.multiband_diffusion import MultiBandDiffusion

    return DiffusionDecoder(MultiBandDiffusion.from_pretrained(name_or_path), seed or 0, calls)
