"""`sonorant quantize MODEL -o small.safetensors|FOLDER`: fewer bits per weight."""

from __future__ import annotations

from pathlib import Path

import click

from sonorant.cli.conversion import bytes_text, force_option
from sonorant.errors import ConfigError, SonorantError

DEFAULT_BITS = 8


@click.command()
@click.argument("model")
@click.option(
    "-o",
    "--out",
    "target",
    required=True,
    metavar="FILE|FOLDER",
    type=click.Path(path_type=Path),
    help="One .safetensors file, or a folder with config.json and model.safetensors.",
)
@click.option(
    "--bits", type=int, help=f"Of every weight, 2 to 15; {DEFAULT_BITS} without --size-mb."
)
@click.option("--size-mb", type=float, help="Of the weights' file, in 10^6 bytes, in place of it.")
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Tensors to leave as they are, such as 'decoder.*'. May be given again.",
)
@force_option
def quantize(
    model: str,
    target: Path,
    bits: int | None,
    size_mb: float | None,
    exclude: tuple[str, ...],
    force: bool,
) -> None:
    """Store MODEL, a known name, a folder or a file, with few bits per weight.

    What comes out loads like any other model. It is another model than MODEL: a sound that was
    compressed with the one is decompressed with the same one.
    """
    if bits is not None and size_mb is not None:
        raise ConfigError("give --bits or --size-mb, not both")
    if target.exists() and not force:
        raise SonorantError(f"{target} exists; choose another name, or replace it with --force")
    from sonorant.model import load
    from sonorant.quantization.levels import check_bits
    from sonorant.quantization.post_training import quantize as store
    from sonorant.quantization.quantizer import Choice

    if size_mb is None:
        bits = DEFAULT_BITS if bits is None else bits
        check_bits(bits)
    loaded = load(model)
    done = store(loaded, target, bits=bits, size_mb=size_mb, choice=Choice(exclude=exclude))
    widths = sorted(set(done.bits.values()))
    told = f"{widths[0]}" if len(widths) == 1 else f"{widths[0]} to {widths[-1]}"
    full = 4 * done.values
    click.echo(
        f"{model} -> {target} ({bytes_text(done.bytes)}, {told} bits in {len(done.bits)} tensors): "
        f"{full / done.bytes:.1f} times smaller than in fp32"
    )
