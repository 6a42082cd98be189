"""`sonorant separate song.mp3`: take music apart into its stems.

The options are those of the demucs command, which this one stands in for, and some more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sonorant.errors import SonorantError

if TYPE_CHECKING:
    from sonorant.separation.files import Selection
    from sonorant.separation.separator import Separator
    from sonorant.separation.settings import Settings
    from sonorant.separation.stem_files import Encoding

DEFAULT_MODEL = "htdemucs"
OF_STREAM = ("stream_format", "hop", "lookahead")
OF_FILES = (
    *("shifts", "overlap", "no_split", "batch_size", "seed", "out", "filename", "int24", "float32"),
    *("clip_mode", "flac", "mp3", "opus", "ogg", "jobs", "skip_existing"),
)
ENDINGS = ("flac", "mp3", "opus", "ogg")
"""Of stems that are not WAV, each an option."""
SOUND_SUFFIXES = {
    *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff", ".au", ".caf", ".w64"),
    *(".m4a", ".mp4", ".aac", ".webm"),  # with PyAV, and refused by name without
}
"""Of files that are taken from folders; a file that is named may have any."""


def options(command: Callable[..., None]) -> Callable[..., None]:
    """The command's options, in groups: model, way, stems, files, and the live stream."""
    of_model = [
        click.option("-n", "--name", default=DEFAULT_MODEL, show_default=True, help="Model."),
        click.option("-s", "--sig", help="A single model, by its signature."),
        click.option("--repo", type=click.Path(path_type=Path), help="Folder of models."),
        click.option("-d", "--device", help="Such as cpu or cuda; by default a GPU if there is."),
        click.option("--list-models", is_flag=True, help="Name the models and stop."),
        click.option(
            "-v", "--verbose", is_flag=True, hidden=True
        ),  # of demucs, where it does nothing
    ]
    of_way = [
        click.option("--shifts", default=0, show_default=True, help="Mean of so many starts."),
        click.option("--overlap", default=0.25, show_default=True, help="Of segments, in parts."),
        click.option("--no-split", is_flag=True, help="Do not cut the sound into segments."),
        click.option("--segment", type=float, metavar="SECONDS", help="Length of segments."),
        click.option("--batch-size", default=1, show_default=True, help="Segments at once."),
        click.option("--seed", default=0, show_default=True, help="Of the starts of shifts."),
    ]
    of_stems = [
        click.option("--two-stems", metavar="STEM", help="This stem, and the others in one."),
        click.option(
            "--other-method",
            type=click.Choice(["none", "add", "minus"]),
            default="add",
            show_default=True,
            help="The others: left out, summed, or what is left of the sound.",
        ),
    ]
    of_files = [
        click.option("-o", "--out", default="separated", type=click.Path(path_type=Path)),
        click.option("--filename", default="{track}/{stem}.{ext}", show_default=True),
        click.option("--int24", is_flag=True, help="24-bit samples."),
        click.option("--float32", is_flag=True, help="Float samples, in WAV."),
        click.option(
            "--clip-mode",
            type=click.Choice(["rescale", "clamp", "tanh", "none"]),
            default="rescale",
            show_default=True,
            help="What to do with stems that are too loud.",
        ),
        *(click.option(f"--{ending}", is_flag=True) for ending in ENDINGS),
        click.option("--mp3-bitrate", default=320, show_default=True, metavar="KB/S"),
        click.option("--mp3-preset", type=click.IntRange(2, 7), help="2 is best, 7 fastest."),
        click.option(
            "-j",
            "--jobs",
            type=click.IntRange(0),
            default=1,
            show_default=True,
            help="Stems encoded at once.",
        ),
        click.option("--skip-existing", is_flag=True, help="Leave sounds that have all stems."),
    ]
    of_stream = [
        click.option("--stream", is_flag=True, help="Live: raw samples in, raw stems out."),
        click.option("--stream-format", type=click.Choice(["f32le", "s16le"]), default="f32le"),
        click.option("--hop", default=1.0, show_default=True, metavar="SECONDS"),
        click.option("--lookahead", default=0.5, show_default=True, metavar="SECONDS"),
    ]
    for option in reversed([*of_model, *of_way, *of_stems, *of_files, *of_stream]):
        command = option(command)
    return command


@click.command()
@click.argument("sounds", nargs=-1, type=click.Path(path_type=Path))
@options
def separate(sounds: tuple[Path, ...], **given: Any) -> None:
    """Take SOUNDS, files or folders of them, apart into stems.

    They are written to OUT/MODEL/FILENAME, where {track}, {trackext}, {stem} and {ext} stand for
    what they say, and {folder} for where in a folder of SOUNDS a file was.

    With --stream, raw samples come from the standard input and go to the standard output, all stems
    next to each other in every frame.
    """
    if given["list_models"]:
        _list_models(given["repo"])
        return
    if not given["stream"] and not sounds:
        raise click.UsageError("name a sound file or a folder, or use --stream")
    if given["stream"] and sounds:
        raise click.UsageError("--stream takes its sound from the standard input, not from files")
    _check_given(given)
    encoding, settings = _encoding(given), _settings(given)
    folders = dict(_sound_files(sounds, given["out"]))
    files = list(folders)
    model = _model(given)
    selection = _selection(given, model)
    if given["stream"]:
        from sonorant.cli.separate_stream import separate_stream

        separate_stream(
            model,
            selection,
            given["stream_format"],
            given["hop"],
            given["lookahead"],
            given["segment"],
        )
        return
    folder = given["out"] / Path(str(model.name)).name
    layout = _Layout(folder, given["filename"], encoding.ending, folders)
    layout.check(files, selection.names(model))
    run = _Run(layout, model, settings, selection, encoding, given["jobs"], given["skip_existing"])
    run.separate_all(files)


def _list_models(repository: Path | None) -> None:
    from sonorant.hub.table import known
    from sonorant.separation.repositories import names_in

    if repository is not None:
        for name in names_in(repository):
            click.echo(name)
        return
    for name, entry in known().models.items():
        if ".separation." in known().system(entry.system).class_:
            click.echo(f"{name}: {entry.title}")


def _check_given(given: dict[str, Any]) -> None:
    """Raises: click.UsageError for options that exclude each other, or do nothing without one."""
    context = click.get_current_context()

    def is_given(name: str) -> bool:
        return context.get_parameter_source(name) is not ParameterSource.DEFAULT

    if given["sig"] is not None and is_given("name"):
        raise click.UsageError("--sig and --name exclude each other")
    for name in OF_STREAM:
        if is_given(name) and not given["stream"]:
            raise click.UsageError(f"--{name.replace('_', '-')} is of --stream")
    for name in OF_FILES:
        if is_given(name) and given["stream"]:
            raise click.UsageError(f"--{name.replace('_', '-')} is of files, not of --stream")
    for name in ("mp3_bitrate", "mp3_preset"):
        if is_given(name) and not given["mp3"]:
            raise click.UsageError(f"--{name.replace('_', '-')} is of --mp3")


def _encoding(given: dict[str, Any]) -> Encoding:
    from sonorant.separation.stem_files import Encoding

    if given["int24"] and given["float32"]:
        raise click.UsageError("--int24 and --float32 exclude each other")
    endings = [ending for ending in ENDINGS if given[ending]]
    if len(endings) > 1:
        raise click.UsageError(f"--{endings[0]} and --{endings[1]} exclude each other")
    return Encoding(
        ending=endings[0] if endings else "wav",
        samples="int24" if given["int24"] else "float32" if given["float32"] else "int16",
        clip=given["clip_mode"],
        mp3_kbps=given["mp3_bitrate"],
        mp3_preset=given["mp3_preset"],
    )


def _settings(given: dict[str, Any]) -> Settings:
    from sonorant.separation.settings import Settings

    if given["no_split"] and given["segment"] is not None:
        raise click.UsageError("--no-split and --segment exclude each other")
    return Settings(
        shifts=given["shifts"],
        overlap=given["overlap"],
        split=not given["no_split"],
        segment_seconds=given["segment"],
        batch_size=given["batch_size"],
        seed=given["seed"],
    )


def _selection(given: dict[str, Any], model: Separator) -> Selection:
    from sonorant.separation.files import Selection

    stem = given["two_stems"]
    if stem is None:
        return Selection()
    selection = Selection((stem,), given["other_method"])
    selection.names(model)
    return selection


def _model(given: dict[str, Any]) -> Separator:
    import torch

    from sonorant.separation.repositories import load_separator

    device = given["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    model = load_separator(given["sig"] or given["name"], given["repo"])
    try:
        model = model.to(device)
        torch.zeros(1, device=device).item()  # some devices hold no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise SonorantError(f"cannot use the device {device!r}: {reason}") from error
    click.echo(f"separating with {model.name} on {device}", err=True)
    return model


def _sound_files(sounds: tuple[Path, ...], out: Path) -> Iterator[tuple[Path, Path]]:
    """The files, and those in the folders that look like sound and are no stems of an earlier run;
    each with where in its folder it is."""
    made = out.resolve()
    for path in sounds:
        if not path.is_dir():
            yield path, Path()
            continue
        inside = [
            each
            for each in path.rglob("*")
            if each.suffix.lower() in SOUND_SUFFIXES
            and each.is_file()
            and not each.name.startswith(".")
            and made not in each.resolve().parents
        ]
        if not inside:
            raise SonorantError(f"there is no sound file in the folder {path}")
        for each in sorted(inside):
            yield each, each.parent.relative_to(path)


class _Layout:
    """Where stems go. folders: of each sound, where it was in the folder that was named."""

    def __init__(self, folder: Path, template: str, ending: str, folders: dict[Path, Path]) -> None:
        self._folder, self._template, self._ending = folder, template, ending
        self._folders = folders

    def target(self, source: Path, stem: str) -> Path:
        """Raises: SonorantError for a template that asks for something else."""
        words = {
            "track": source.stem,
            "trackext": source.suffix.lstrip("."),
            "stem": stem,
            "ext": self._ending,
            "folder": str(self._folders[source]),
        }
        try:
            return self._folder / self._template.format(**words)
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise SonorantError(
                f"--filename {self._template!r} can hold {{track}}, {{trackext}}, {{stem}}, "
                f"{{ext}} and {{folder}}, and nothing else in braces"
            ) from error

    def check(self, files: list[Path], stems: list[str]) -> None:
        """Raises: SonorantError if two stems would be one file, or one would replace a sound."""
        taken: dict[Path, Path] = {}
        sources = {source.resolve() for source in files}
        for source in files:
            for stem in stems:
                target = self.target(source, stem)
                if target.suffix.lower() != f".{self._ending}":
                    raise SonorantError(f"--filename must end in .{{ext}}, got {self._template!r}")
                if target in taken:
                    raise SonorantError(
                        f"{taken[target]} and {source} ({stem}) would both be written to {target}; "
                        "begin --filename with {folder}/, or separate them apart"
                    )
                if target.resolve() in sources:
                    raise SonorantError(f"{target} is one of the sounds, and would be replaced")
                taken[target] = source


@dataclass(frozen=True)
class _Run:
    """Everything but the sounds."""

    layout: _Layout
    model: Separator
    settings: Settings
    selection: Selection
    encoding: Encoding
    jobs: int
    skip_existing: bool

    def separate_all(self, files: list[Path]) -> None:
        """All files; one that cannot be separated does not keep the others from it."""
        failed = 0
        for source in files:
            try:
                self.separate(source)
            except KeyboardInterrupt:
                click.echo("what is done is kept; the same command goes on with it", err=True)
                raise
            except SonorantError as error:
                if len(files) == 1:
                    raise
                failed += 1
                click.echo(f"error: {' '.join(str(error).split())}", err=True)
        if failed:
            raise SonorantError(f"{failed} of {len(files)} sounds could not be separated")

    def separate(self, source: Path) -> None:
        from sonorant.audio import info
        from sonorant.cli.conversion import Stopwatch, progress_bar
        from sonorant.separation.files import separate_file

        names = self.selection.names(self.model)
        if self.skip_existing and all(self.layout.target(source, n).is_file() for n in names):
            click.echo(f"{source}: its stems are there, skipped")
            return
        watch = Stopwatch()
        with progress_bar(source.name) as progress:
            paths = separate_file(
                source,
                lambda stem: self.layout.target(source, stem),
                self.model,
                settings=self.settings,
                selection=self.selection,
                encoding=self.encoding,
                jobs=self.jobs,
                progress=progress,
            )
        made = ", ".join(str(path) for path in paths.values())
        seconds = info(paths[names[0]]).duration_seconds
        click.echo(f"{source} -> {made}; {watch.speed(seconds)}")
