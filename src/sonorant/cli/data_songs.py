"""`sonorant data curate|automix`: which songs in stems separators learn from, and new mixes of
them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from sonorant.data.songs import Song
    from sonorant.errors import SonorantError
    from sonorant.separation.separator import Separator

songs_argument = click.argument("songs", type=click.Path(exists=True, path_type=Path))
licence_option = click.option("--licence", default="", help="Of the songs of a folder.")


@click.command()
@songs_argument
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Manifest to write.")
@click.option("--model", "name", required=True, help="Separator, by name or path.")
@click.option("--repo", type=click.Path(path_type=Path), help="Folder of models.")
@click.option("--device", default="cpu", show_default=True, help="Such as cuda.")
@licence_option
def curate(songs: Path, out: Path, name: str, repo: Path | None, device: str, licence: str) -> None:
    """Keep those of SONGS whose stems hold their source, and nothing else, as a separator hears it.

    SONGS is a manifest, or a folder as `data songs` takes it; only its training songs are judged.
    Beside OUT.jsonl, OUT.measured.jsonl says of each how active its stems are, and what is heard in
    them; the same command goes on with it when it was stopped. Songs that cannot be read are named,
    and left out.
    """
    from tqdm import tqdm

    from sonorant.data.folder_lock import only_run_in
    from sonorant.data.journal import Journal
    from sonorant.data.songs import write_songs
    from sonorant.errors import ConfigError
    from sonorant.separation.catalogue import list_songs
    from sonorant.separation.curation import Measured, summary
    from sonorant.separation.curation import curate as measure_all

    if out.is_dir() or out.resolve() == songs.resolve():
        raise ConfigError(f"--out is a manifest to write, and neither a folder nor SONGS: {out}")
    model = _model(name, repo, device)
    listed, others = _by_use(list_songs(songs, _tell, licence), songs)
    with only_run_in(out.with_name(f".{out.stem}.unfinished")):
        journal = Journal(out.with_name(f"{out.stem}.measured.jsonl"), Measured)
        progress = tqdm(listed, desc="listening", unit="song", disable=None)
        found = list(measure_all(progress, model, journal, _tell))
        if not found:
            raise ConfigError(f"none of the {len(listed)} songs could be measured")
        measured = [each for _, each in found]
        journal.keep(measured)
    kept = [song for song, each in found if each.kept]
    click.echo(summary(measured))
    if not kept:
        raise ConfigError(f"no song passes; {journal.path} says why")
    write_songs(out, kept + others)
    click.echo(f"wrote {out} and {journal.path}")


@click.command()
@songs_argument
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option(
    "--passes",
    type=click.IntRange(1),
    default=6,
    show_default=True,
    help="Mixes that begin with each song.",
)
@click.option("--seed", default=0, show_default=True, help="Another seed gives other mixes.")
@licence_option
def automix(songs: Path, out: Path, passes: int, seed: int, licence: str) -> None:
    """Mix the training songs of SONGS anew, from stems that go together in tempo and key.

    SONGS is a manifest, or a folder as `data songs` takes it. OUT/train gets a folder of stems for
    each mix; OUT/songs.jsonl lists them, and the songs of SONGS that validate and test. Songs that
    cannot be used are named, and left out. Needs librosa and PyAV. When it was stopped, the same
    command goes on.
    """
    from tqdm import tqdm

    from sonorant.data.folder_lock import only_run_in
    from sonorant.data.journal import Journal
    from sonorant.errors import ConfigError
    from sonorant.separation.automix import (
        UNFINISHED,
        analyse_all,
        check_packages,
        finish,
        mix_all,
        plan,
    )
    from sonorant.separation.catalogue import list_songs
    from sonorant.separation.rhythm_and_key import Features

    check_packages()
    if songs.resolve() == out.resolve():
        raise ConfigError(f"--out needs a folder of its own: {out} holds SONGS")
    listed, others = _by_use(list_songs(songs, _tell, licence), songs)
    files = (Path(file).resolve() for song in [*listed, *others] for file in song.files.values())
    if any(file.is_relative_to(out.resolve()) for file in files):
        raise ConfigError(f"--out needs a folder of its own: {out} holds stems of SONGS")
    with only_run_in(out / UNFINISHED):
        journal = Journal(out / "features.jsonl", Features)
        progress = tqdm(listed, desc="analysing", unit="song", disable=None)
        known = list(analyse_all(progress, journal, _tell))
        mixes = list(plan(known, passes, seed, _tell))
        if not mixes:
            raise ConfigError(f"none of the {len(listed)} songs go together")
        clashing = {mix.name for mix in mixes} & {song.name for song in others}
        if clashing:
            raise ConfigError(f"{min(clashing)} is a song, and would be a mix too; rename the song")
        written = mix_all(mixes, [each.song for each in known], out)
        progress = tqdm(written, total=len(mixes), desc="mixing", unit="song", disable=None)
        click.echo(f"wrote {finish(out, [*progress, *others])}: {len(mixes)} mixes")


def _by_use(listed: list[Song], path: Path) -> tuple[list[Song], list[Song]]:
    """Songs to train on, and the others. Raises: ConfigError if there are none to train on."""
    from sonorant.errors import ConfigError

    training = [song for song in listed if song.split == "train"]
    if not training:
        raise ConfigError(f"{path} has no songs to train on")
    return training, [song for song in listed if song.split != "train"]


def _model(name: str, repo: Path | None, device: str) -> Separator:
    from sonorant.errors import SonorantError
    from sonorant.separation.repositories import load_separator

    model = load_separator(name, repo)
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise SonorantError(f"cannot use the device {device!r}: {reason}") from error


def _tell(reason: SonorantError) -> None:
    click.echo(f"left out: {' '.join(str(reason).split())}", err=True)
