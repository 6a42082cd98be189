"""The table of known systems and models, `models.toml`, read and checked."""

from __future__ import annotations

import difflib
import functools
import importlib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import msgspec

from sonorant.errors import CheckpointError, ConfigError

PACKAGE = "sonorant"


class SystemEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A system: the address of its class, and of the functions that write published layouts."""

    class_: str = msgspec.field(name="class")
    exports: dict[str, str] = {}


class RemoteFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file to download, and its sha256 or the first digits of it."""

    url: str
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8,64}$")]

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


class LayoutEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A published layout whose files say themselves what they hold, and who reads them.

    It is known by the `model_type` in a `config.json` beside the weights, as transformers writes
    them, by the name of its only file, or by what such names end in (`suffix`). The reader of the
    last kind returns None for a file that is something else.
    """

    model_type: str | None = None
    file: str | None = None
    suffix: str | None = None
    reader: str | None = None
    like: str | None = None

    def __post_init__(self) -> None:
        if sum(name is not None for name in (self.model_type, self.file, self.suffix)) != 1:
            raise ConfigError("a layout in models.toml needs one of model_type, file and suffix")
        if (self.reader is None) == (self.like is None):
            raise ConfigError("a layout in models.toml needs one of reader and like")


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A known model: what it is and where its files are (see the head of `models.toml`)."""

    system: str
    title: str
    licence: str
    name: str = ""
    package: str | None = None
    repository: str | None = None
    paths: tuple[str, ...] = ()
    files: tuple[RemoteFile, ...] = ()
    translator: str | None = None
    layout: str | None = None
    entropy: str | None = None

    def __post_init__(self) -> None:
        if sum(map(bool, (self.package, self.repository, self.files))) != 1:
            raise ConfigError(
                f"the model {self.title!r} needs one of package, repository and files"
            )
        if self.paths and not (self.repository and self.translator):
            raise ConfigError(
                f"the model {self.title!r} has paths, so it needs a repository and a translator"
            )
        if self.layout is not None and (self.translator is not None or not self.repository):
            raise ConfigError(
                f"the model {self.title!r} has a layout: it needs a repository, no translator"
            )

    @property
    def package_folder(self) -> Path | None:
        """Where a model that ships with this package lies."""
        return Path(str(resources.files(PACKAGE))) / self.package if self.package else None


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything `models.toml` says, models under their names."""

    systems: dict[str, SystemEntry]
    models: dict[str, ModelEntry]
    layouts: dict[str, LayoutEntry] = {}
    unpack: str | None = None

    def model(self, name: str) -> ModelEntry:
        """The entry of a known name. Raises: CheckpointError that lists similar names."""
        if name in self.models:
            return self.models[name]
        near = difflib.get_close_matches(name, self.models, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise CheckpointError(
            f"{name!r} is neither a known model nor a file or folder; {hint}"
            "`sonorant models list` names all that are known"
        )

    def system(self, name: str) -> SystemEntry:
        """The entry of a system. Raises: CheckpointError if this version has none of that name."""
        if name not in self.systems:
            raise CheckpointError(
                f"no system is named {name!r}; this version has {', '.join(sorted(self.systems))}"
            )
        return self.systems[name]


def parse_table(text: str) -> Table:
    """A table from TOML text. Raises: ConfigError naming the wrong field."""
    try:
        table = msgspec.toml.decode(text, type=Table)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"models.toml: {error}") from error
    models = {
        name: msgspec.structs.replace(entry, name=name) for name, entry in table.models.items()
    }
    for entry in models.values():
        table.system(entry.system)
        if entry.layout is not None and entry.layout not in table.layouts:
            raise ConfigError(f"models.toml: {entry.name} names no layout: {entry.layout!r}")
        if entry.entropy is not None and entry.entropy not in models:
            raise ConfigError(f"models.toml: {entry.name} names no model: {entry.entropy!r}")
    return Table(table.systems, models, table.layouts, table.unpack)


@functools.cache
def known() -> Table:
    """The table that ships with this package."""
    return parse_table((resources.files(PACKAGE) / "hub" / "models.toml").read_text("utf-8"))


def resolve(address: str) -> Any:
    """The object at "module:name"."""
    module, _, name = address.partition(":")
    return getattr(importlib.import_module(module), name)
