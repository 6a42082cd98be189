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


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A known model: what it is and where its files are (see the head of `models.toml`)."""

    system: str
    title: str
    licence: str
    name: str = ""
    package: str | None = None
    repository: str | None = None
    files: tuple[RemoteFile, ...] = ()
    translator: str | None = None

    def __post_init__(self) -> None:
        if sum(map(bool, (self.package, self.repository, self.files))) != 1:
            raise ConfigError(
                f"the model {self.title!r} needs one of package, repository and files"
            )

    @property
    def package_folder(self) -> Path | None:
        """Where a model that ships with this package lies."""
        return Path(str(resources.files(PACKAGE))) / self.package if self.package else None


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything `models.toml` says, models under their names."""

    systems: dict[str, SystemEntry]
    models: dict[str, ModelEntry]

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
    return Table(table.systems, models)


@functools.cache
def known() -> Table:
    """The table that ships with this package."""
    return parse_table((resources.files(PACKAGE) / "hub" / "models.toml").read_text("utf-8"))


def resolve(address: str) -> Any:
    """The object at "module:name"."""
    module, _, name = address.partition(":")
    return getattr(importlib.import_module(module), name)
