"""Where published separators are: bags, folders of packages, hub repositories, and their names.

A bag is a YAML file that names packages by their signatures, with which their files' names begin.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import msgspec
import yaml
from torch import Tensor

from sonorant.errors import CheckpointError, ConfigError
from sonorant.hub.fetch import fetch_files, fetch_repository, sha256_of
from sonorant.hub.table import ModelEntry, RemoteFile, known
from sonorant.hub.tensors import read_metadata
from sonorant.model import Model, load
from sonorant.separation.bag import BagConfig, MemberConfig
from sonorant.separation.packages import (
    SUFFIXES,
    VERSION_2,
    Loaded,
    NoPackageError,
    read_package,
    read_version_2,
)
from sonorant.separation.separator import Separator

HUB_PREFIX = "hf://"
HUB_OWNER = "adefossez"


class BagFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of a bag's YAML file. segment: seconds that the sound is to be cut into."""

    models: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...] | None = None
    segment: float | None = None

    def __post_init__(self) -> None:
        for signature in self.models:
            if not re.fullmatch(r"[\w+][\w.+-]*", signature):
                raise ValueError(f"{signature!r:.80} is no signature of a model")
        if self.segment is not None and not 0 < self.segment < math.inf:
            raise ValueError(f"a segment of {self.segment} seconds cannot be")


_ALL_BUT_BASS = (1.0, 0.0, 1.0, 1.0)
_MDX_WEIGHTS = ((1.0, 1.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), _ALL_BUT_BASS, _ALL_BUT_BASS)
_ONE_EACH = tuple(tuple(float(row == column) for column in range(4)) for row in range(4))
BAGS = {
    "htdemucs_ft": BagFile(("f7e0c4bc", "d12395a8", "92cfc3b6", "04573f0d"), _ONE_EACH),
    "hdemucs_mmi": BagFile(("75fc33f5",), segment=44),
    "mdx": BagFile(("0d19c1c6", "7ecf8ec1", "c511e2ab", "7d865c68"), _MDX_WEIGHTS, 44),
    "mdx_extra": BagFile(("e51eebcc", "a1d90b5c", "5d2d6c55", "cfa93e08"), segment=44),
    "mdx_q": BagFile(("6b9c2ca1", "b72baf4e", "42e558d4", "305bc58f"), _MDX_WEIGHTS, 44),
    "mdx_extra_q": BagFile(("83fc094f", "464b36d7", "14fc6a69", "7fd6ef75"), segment=44),
    "repro_mdx_a": BagFile(("9a6b4851", "1ef250f1", "fa0cb7f9", "902315c2"), segment=44),
    "repro_mdx_a_time_only": BagFile(("9a6b4851", "1ef250f1"), segment=44),
    "repro_mdx_a_hybrid_only": BagFile(("fa0cb7f9", "902315c2"), segment=44),
}
"""What the published bags of more than one network, or with a segment of their own, are."""


def load_known(files: list[Path], entry: ModelEntry) -> tuple[Any, dict[str, Tensor]]:
    """Translate a known model's packages. Raises: CheckpointError, FormatError."""
    if entry.name in VERSION_2:
        return read_version_2(files[0], VERSION_2[entry.name])
    if entry.name in BAGS:
        loaded = _joined([read_package(file) for file in files], BAGS[entry.name], entry.name)
    else:
        loaded = read_package(files[0])
    return _of_system(loaded, entry, files[0])


def load_hub(files: list[Path], entry: ModelEntry) -> tuple[Any, dict[str, Tensor]]:
    """Translate a known hub repository: a bag's YAML file and its packages."""
    bag = _read_bag_file(files[0])
    loaded = _joined([read_package(file) for file in files[1:]], bag, str(files[0]))
    return _of_system(loaded, entry, files[0])


def read_file(files: list[Path]) -> Loaded | None:
    """A package or a bag, whose packages lie beside it; None for a file that is neither."""
    path = files[0]
    if path.suffix.lower() in (".yaml", ".yml"):
        bag = _read_bag_file(path)
        members = [read_package(find_package(path.parent, name)) for name in bag.models]
        return _joined(members, bag, str(path))
    if path.suffix.lower() == ".safetensors" and "klass" not in read_metadata(path):
        return None
    try:
        return read_package(path)
    except NoPackageError:
        return None


def load_separator(name: str, repository: str | Path | None = None) -> Separator:
    """The separator of a name, as the demucs command knows them, or whatever `load` takes.

    repository: a folder that has the bag NAME.yaml, or the package of that signature. Without one,
    a name may also be the signature of a published package, or `hf://[owner/]name` on the hub.
    Raises: CheckpointError as `load`, and for what is no separator.
    """
    model = load(_path_in(Path(repository), name)) if repository else _load_named(name)
    if not isinstance(model, Separator):
        raise CheckpointError(f"{name} is a model of {model.system!r}, which is no separator")
    if model.name is None:
        model.name = Path(name).name.partition(".")[0]
    return model


def _load_named(name: str) -> Model:
    if name.startswith(HUB_PREFIX):
        return load(_from_hub(name.removeprefix(HUB_PREFIX)))
    if name not in known().models:
        for entry in known().models.values():
            for file in entry.files:
                if file.name.partition("-")[0] == name:
                    return load(fetch_files(_alone(entry, file))[0])
    return load(name)


def _alone(entry: ModelEntry, file: RemoteFile) -> ModelEntry:
    return msgspec.structs.replace(entry, files=(file,))


def _from_hub(name: str) -> Path:
    """The bag's YAML file of a hub repository, once all packages are beside it."""
    owner, _, bag = name.rpartition("/")
    repository = f"{owner or HUB_OWNER}/{_hub_name(bag)}"
    path = fetch_repository(repository, [f"{bag}.yaml"])[0]
    fetch_repository(repository, [f"{each}.safetensors" for each in _read_bag_file(path).models])
    return path


def _hub_name(bag: str) -> str:
    """How the author calls a bag's repository."""
    if bag.startswith("htdemucs"):
        return bag.replace("htdemucs", "HTDemucs").replace("_", "-")
    return f"Demucs-{bag}"


def _path_in(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise CheckpointError(f"the repository {folder} is not a folder")
    if (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    return find_package(folder, name)


def find_package(folder: Path, signature: str) -> Path:
    """The package in a folder whose name is the signature, with or without a digest behind it.

    Raises: CheckpointError if there is none, or more than one, or the digest is another.
    """
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.name.lower().endswith(SUFFIXES) and signature_of(path) == signature
    ]
    if len(found) != 1:
        count = "no package" if not found else f"{len(found)} packages"
        there = ", ".join(path.name for path in found) or f"it has {_content(folder)}"
        raise CheckpointError(f"{folder} has {count} of the signature {signature!r} ({there})")
    _check_digest(found[0])
    return found[0]


def names_in(folder: Path) -> list[str]:
    """What `load_separator` finds in a folder, bags first.

    Raises: CheckpointError if it is no folder.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder} to list models of")
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    bags = [path.stem for path in paths if path.suffix == ".yaml"]
    return bags + [signature_of(path) for path in paths if _looks_like_package(path)]


def _looks_like_package(path: Path) -> bool:
    if path.suffix.lower() != ".safetensors":
        return path.name.lower().endswith(SUFFIXES)
    try:
        return "klass" in read_metadata(path)
    except CheckpointError:
        return False


def signature_of(package: Path) -> str:
    """The name of a package's file, without its ending and the digest of its content."""
    return _signed(package)[0]


def _signed(package: Path) -> tuple[str, str | None]:
    """A package's signature, and the digest that its name ends in."""
    stem = re.sub(r"(?i)\.(th|th\.gz|safetensors)$", "", package.name)
    signed = re.fullmatch(r"(.+)-([0-9a-f]{1,64})", stem)
    return (signed[1], signed[2]) if signed else (stem, None)


def _content(folder: Path) -> str:
    endings = (*SUFFIXES, ".yaml")
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(endings))
    return ", ".join(names) or "none at all"


def _check_digest(path: Path) -> None:
    stated = _signed(path)[1]
    if stated is None:
        return
    digest = sha256_of(path)
    if not digest.startswith(stated):
        raise CheckpointError(
            f"{path} has the digest {digest[:8]}, not the one in its name; fetch it again"
        )


def _read_bag_file(path: Path) -> BagFile:
    try:
        text = path.read_text("utf-8")
        content = yaml.safe_load(text)
        if isinstance(content, dict) and "models" in content:
            # As text: signatures such as 14567210 must not become numbers.
            content["models"] = yaml.load(text, yaml.BaseLoader)["models"]
        return msgspec.convert(content, BagFile)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, msgspec.ValidationError) as error:
        raise CheckpointError(f"{path} does not describe a bag of models: {error}") from error


def _of_system(loaded: Loaded, entry: ModelEntry, path: Path) -> tuple[Any, dict[str, Tensor]]:
    system, config, tensors = loaded
    if system != entry.system:
        raise CheckpointError(f"{path} is a model of {system!r}, and {entry.name} is none")
    return config, tensors


def _joined(members: list[Loaded], bag: BagFile, source: str) -> Loaded:
    """One model of a bag's members; of a single one, itself."""
    if len(members) != len(bag.models):
        raise CheckpointError(
            f"{source} is a bag of {len(bag.models)} models, got {len(members)} of them"
        )
    members = [_with_segment(member, bag.segment) for member in members]
    described = tuple(
        MemberConfig(system, msgspec.to_builtins(config)) for system, config, _ in members
    )
    equal = tuple((1.0,) * len(config.sources) for _, config, _ in members)
    try:
        config = BagConfig(members=described, weights=bag.weights or equal)
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error
    if len(members) == 1:
        return members[0]
    tensors = {
        f"members.{index}.{name}": tensor
        for index, (_, _, own) in enumerate(members)
        for name, tensor in own.items()
    }
    return "separation_bag", config, tensors


def _with_segment(member: Loaded, seconds: float | None) -> Loaded:
    """A member with the bag's segment, which for HTDemucs can only be shorter than its own."""
    system, config, tensors = member
    if seconds is None or not hasattr(config, "segment_seconds"):
        return member
    if system == "htdemucs" and seconds > config.segment_seconds:
        return member
    return system, msgspec.structs.replace(config, segment_seconds=seconds), tensors
