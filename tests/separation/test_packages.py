"""Reading and writing what other packages wrote of separators."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from sonorant.errors import CheckpointError
from sonorant.hub.table import known, resolve
from sonorant.model import SkipInitialization, load
from sonorant.quantization.published import PICKLE, read_published
from sonorant.separation.bag import Bag, bag_of
from sonorant.separation.checkpoints import DEMUCS_V3, TRANSLATIONS, our_tensors, translation_of
from sonorant.separation.demucs import DemucsV1, DemucsV1Config, DemucsV2, DemucsV2Config
from sonorant.separation.demucs_v3 import DemucsV3, DemucsV3Config
from sonorant.separation.export import export_official
from sonorant.separation.packages import CLASSES, read_package
from sonorant.separation.repositories import BAGS, load_separator
from sonorant.separation.separator import Separator

FIXTURES = Path(__file__).parent.parent / "fixtures" / "separation"
PACKAGES = FIXTURES / "packages"
SMALL = DemucsV3Config(channels=4, depth=2, sample_rate=8000, segment_seconds=39 / 160)


LEGACY = SimpleNamespace(
    __name__="pickle",
    Pickler=PICKLE.Pickler,
    dump=lambda value, file, protocol: PICKLE.Pickler(file, protocol).dump(value),
)
"""What the file format of before torch 1.6 asks of a pickle module."""


def small(seed: int = 0) -> DemucsV3:
    torch.manual_seed(seed)
    return DemucsV3(SMALL).eval()


def package(path: Path, **changed: Any) -> Path:
    """A package of `small`, with something else in it."""
    content = {
        "klass": CLASSES["demucs.demucs.Demucs"],
        "args": (),
        "kwargs": DEMUCS_V3.arguments(SMALL),
        "state": small().state_dict(),
        "training_args": {},
    } | changed
    torch.save(content, path, pickle_module=PICKLE)
    return path


def test_a_package_is_loaded_by_its_path() -> None:
    model = load(next(PACKAGES.glob("aaaa0001-*.th")))
    assert isinstance(model, Separator)
    assert model.system == "hdemucs"
    expected = load_file(PACKAGES / "plain.state.safetensors")
    assert all(torch.equal(tensor, expected[k]) for k, tensor in model.state_dict().items())


def test_a_bag_is_loaded_from_its_folder_by_name() -> None:
    bag = load_separator("tiny_bag", PACKAGES)
    assert isinstance(bag, Bag)
    assert bag.name == "tiny_bag"
    assert bag.config.weights == ((1, 1, 0, 0), (0, 1, 1, 1))
    assert bag.segment_samples == int(0.9 * bag.sample_rate)
    alone = load_separator("aaaa0002", PACKAGES)
    drums, vocals = (bag.separate(sound(), stems=[stem])[stem] for stem in ("drums", "vocals"))
    expected = alone.separate(sound(), segment_seconds=0.9)
    torch.testing.assert_close(vocals.samples, expected["vocals"].samples)
    assert not torch.allclose(drums.samples, expected["drums"].samples)


def sound() -> Any:
    from sonorant.audio import Audio

    return Audio(0.1 * torch.randn(2, 9000, generator=torch.Generator().manual_seed(0)), 8000)


def test_a_bag_is_saved_and_loaded_as_one_model(tmp_path: Path) -> None:
    bag = bag_of([small(0), small(1)], ((1.0, 0.5, 0.0, 1.0), (0.0, 0.5, 1.0, 1.0)))
    bag.save_pretrained(tmp_path / "bag")
    again = load(tmp_path / "bag")
    assert isinstance(again, Bag)
    mix = torch.randn(1, 2, 2000)
    torch.testing.assert_close(again(mix), bag(mix))


def test_arguments_survive_the_way_to_a_config_and_back() -> None:
    for folder in sorted(FIXTURES.iterdir()):
        described = (
            json.loads((folder / "config.json").read_text())
            if folder.is_dir() and (folder / "config.json").exists()
            else {}
        )
        if not {"klass", "kwargs"} <= described.keys() or "." not in described["klass"]:
            continue
        kwargs = dict(described["kwargs"])
        if isinstance(kwargs.get("segment"), dict):
            segment = kwargs["segment"]
            kwargs["segment"] = Fraction(segment["numerator"], segment["denominator"])
        translation = translation_of(described["klass"], kwargs, folder.name)
        config = translation.config([], kwargs, folder.name)
        arguments = translation.arguments(config)
        assert translation.config([], arguments, "again") == config
        lost = {name for name in kwargs if name not in arguments} - translation.fixed.keys()
        assert not lost
        for name, value in arguments.items():
            if name in kwargs and kwargs[name] is not None:
                assert value == kwargs[name], name


def test_unknown_arguments_are_left_out_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="flavour='mint' is unknown"):
        config = DEMUCS_V3.config([], {"channels": 8, "flavour": "mint"}, "here")
    assert config.channels == 8


def test_arguments_may_be_given_by_their_order() -> None:
    translation = translation_of("demucs.demucs.Demucs", {}, "here")
    config = translation.config([["a", "b"], 1, 12], {}, "here")
    assert (config.sources, config.audio_channels, config.channels) == (("a", "b"), 1, 12)


def test_more_arguments_without_names_than_are_known_are_refused() -> None:
    with pytest.raises(CheckpointError, match="gives 4 arguments without"):
        DEMUCS_V3.config([4, 2, 64, 2], {}, "here")


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(CheckpointError, match="here: Expected `int`"):
        DEMUCS_V3.config([], {"channels": "many"}, "here")


@pytest.mark.parametrize("compressed", [False, True])
def test_version_1_is_a_tuple_and_may_be_compressed(tmp_path: Path, compressed: bool) -> None:
    model = DemucsV1(DemucsV1Config(channels=4, depth=2))
    content = (
        CLASSES["demucs.model.Demucs"],
        (4,),
        {"channels": 4, "depth": 2},
        model.state_dict(),
    )
    path = tmp_path / "light.th"
    torch.save(content, path, pickle_module=LEGACY, _use_new_zipfile_serialization=False)
    if compressed:
        packed = gzip.compress(path.read_bytes())
        path = tmp_path / "light.th.gz"
        path.write_bytes(packed)
    again = load(path)
    assert isinstance(again, DemucsV1)
    assert again.sources == ("drums", "bass", "other", "vocals")
    mix = torch.randn(1, 2, again.valid_length(500))
    torch.testing.assert_close(again(mix), model(mix))


def test_version_2_is_known_by_its_name_and_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = DemucsV2(DemucsV2Config(channels=4))
    path = tmp_path / "demucs_unittest-09ebc15f.th"
    torch.save(model.state_dict(), path)
    with pytest.raises(CheckpointError, match=r"the digest [0-9a-f]{8}, not 09ebc15f: fetch it"):
        load(path)
    entry = known().models["demucs_unittest"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    files = (msgspec.structs.replace(entry.files[0], sha256=digest),)
    published = msgspec.structs.replace(entry, files=files)
    with monkeypatch.context() as patch:
        patch.setitem(known().models, "demucs_unittest", published)
        again = load(path)
    assert isinstance(again, DemucsV2)
    assert again.name == "demucs_unittest"
    assert torch.equal(again.state_dict()["encoder.0.0.weight"], model.encoder[0][0].weight)
    other = path.rename(tmp_path / "mine.th")
    assert isinstance(load(other, like="demucs_unittest"), DemucsV2)
    with pytest.raises(CheckpointError, match="does not say which model"):
        load(other)


def test_weights_of_version_2_fit_into_version_3() -> None:
    kwargs = json.loads((FIXTURES / "demucs-v3-as-v2" / "config.json").read_text())["kwargs"]
    config = DEMUCS_V3.config([], kwargs, "here")
    names = DemucsV3(config).state_dict()
    old = {name.replace(".3.", ".2."): tensor for name, tensor in names.items()}
    assert old.keys() != names.keys()
    assert our_tensors(DEMUCS_V3, config, old).keys() == names.keys()
    assert our_tensors(DEMUCS_V3, config, names).keys() == names.keys()


def test_quantised_hub_packages_are_read_by_their_structure(tmp_path: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}

    def node(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            name = f"tensor_{len(tensors)}"
            tensors[name] = value.contiguous().clone()
            return {"_tensor": name}
        if isinstance(value, dict):
            return {"_dict": [[key, node(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            kind = "_list" if isinstance(value, list) else "_tuple"
            return {kind: [node(item) for item in value]}
        if isinstance(value, type):
            return {"_class": f"{value.__module__}.{value.__qualname__}"}
        return value

    described = json.loads((FIXTURES / "packages-v2" / "config.json").read_text())
    kwargs = described["kwargs"]
    structure = node(read_published(FIXTURES / "packages-v2" / "tiny_diffq.th"))
    said = {
        "klass": "demucs.model.Demucs",
        "args": "[]",
        "kwargs": json.dumps(kwargs),
        "structure": json.dumps(structure),
    }
    save_file(tensors, tmp_path / "0123abcd.safetensors", metadata=said)
    _, _, found = read_package(tmp_path / "0123abcd.safetensors")
    expected = load_file(FIXTURES / "packages-v2" / "diffq.state.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


class Attack:
    def __reduce__(self) -> Any:
        return eval, ("1 / 0",)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"training_args": Attack()}, "asks to run"),
        ({"klass": CLASSES["demucs.hdemucs.HDemucs"], "kwargs": {"depth": "deep"}}, "Expected"),
        ({"klass": 3}, "names no class"),
        ({"state": {"encoder": 3}}, "does not hold tensors"),
        ({"state": {}}, "does not hold the tensors"),
        ({"kwargs": {"segment": Fraction(1, 10**20)}}, "not a readable|fraction"),
        ({"args": 5}, "makes none"),
        ({"kwargs": {"segment": "long"}}, "makes none"),
        ({"kwargs": {"samplerate": "x"}}, "Expected|makes none"),
        ({"kwargs": {"dconv_mode": "x"}}, "makes none"),
        ({"state": {1: torch.zeros(1)}}, "does not hold tensors by name"),
        ({"state": {"a": torch.zeros(1, device="meta")}}, "does not hold tensors by name"),
    ],
)
def test_packages_of_another_kind_are_refused(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(package(tmp_path / "abcd0123.th", **changed))


@pytest.mark.parametrize(
    "said",
    [
        {"args": "3", "kwargs": "{}"},
        {"args": "null", "kwargs": "{}"},
        {"args": "[]", "kwargs": "[]"},
        {"args": "[]", "kwargs": "[" * 10**5},
        {"args": "[]", "kwargs": '{"segment": {"_type": "fraction", "numerator": 1}}'},
        {
            "args": "[]",
            "kwargs": '{"segment": {"_type": "fraction", "numerator": 1, "denominator": 0}}',
        },
    ],
)
def test_hub_packages_of_another_kind_are_refused(tmp_path: Path, said: dict[str, str]) -> None:
    path = tmp_path / "abcd.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"klass": "demucs.demucs.Demucs", **said})
    with pytest.raises(CheckpointError):
        load(path)


def test_a_hub_package_may_lie_beside_any_config(tmp_path: Path) -> None:
    hub = next(PACKAGES.glob("aaaa0003*.safetensors"))
    shutil.copy(hub, tmp_path / "abcd.safetensors")
    (tmp_path / "config.json").write_text('{"of": "something else"}')
    assert load(tmp_path / "abcd.safetensors").system == load(hub).system


def test_packages_of_an_unknown_class_are_refused(tmp_path: Path) -> None:
    said = {"klass": "demucs.later.Demucs5", "args": "[]", "kwargs": "{}"}
    save_file({"a": torch.zeros(1)}, tmp_path / "abcd.safetensors", metadata=said)
    with pytest.raises(CheckpointError, match=r"demucs\.later\.Demucs5, which is not known"):
        load(tmp_path / "abcd.safetensors")


def test_truncated_packages_are_refused(tmp_path: Path) -> None:
    path = package(tmp_path / "abcd.th")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="damaged"):
        load(path)
    (tmp_path / "abcd.th.gz").write_bytes(gzip.compress(b"0" * 10**6))
    with pytest.raises(CheckpointError, match="grows without end"):
        load(tmp_path / "abcd.th.gz")


def test_digests_in_names_are_checked(tmp_path: Path) -> None:
    path = package(tmp_path / "abcd.th")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    shutil.copy(path, tmp_path / f"good-{digest[:8]}.th")
    shutil.copy(path, tmp_path / "bad-00000000.th")
    assert load_separator("good", tmp_path).name == "good"
    with pytest.raises(CheckpointError, match="not the one in its name"):
        load_separator("bad", tmp_path)


@pytest.mark.parametrize("name", ["my-model", "v1.2", "a+b-c.d"])
def test_signatures_may_have_dashes_and_dots(tmp_path: Path, name: str) -> None:
    path = package(tmp_path / "made.th")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.rename(tmp_path / f"{name}-{digest[:8]}.th")
    shutil.copy(tmp_path / f"{name}-{digest[:8]}.th", tmp_path / "other.th")
    assert isinstance(load_separator(name, tmp_path), DemucsV3)
    (tmp_path / "bag.yaml").write_text(f"models: ['{name}', other]")
    assert isinstance(load_separator("bag", tmp_path), Bag)
    with pytest.raises(CheckpointError, match="no package of the signature"):
        load_separator(name[:2], tmp_path)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("weights: [[1, 1, 1]]\nsegment: 0", "cannot be"),
        ("segment: .inf", "cannot be"),
        ("weights: [[.nan, 1, 1, 1]]", "finite"),
        ("weights: [[1, 1, 1, -1]]", "not negative"),
        ("weights: [[.inf, 1, 1, 1]]", "finite"),
    ],
)
def test_bags_of_one_model_are_checked_like_others(tmp_path: Path, rest: str, message: str) -> None:
    package(tmp_path / "abcd.th")
    (tmp_path / "bag.yaml").write_text(f"models: [abcd]\n{rest}")
    with pytest.raises(CheckpointError, match=message):
        load_separator("bag", tmp_path)


def test_what_a_folder_does_not_have_is_said(tmp_path: Path) -> None:
    package(tmp_path / "abcd.th")
    with pytest.raises(
        CheckpointError, match=r"no package of the signature 'x' \(it has abcd.th\)"
    ):
        load_separator("x", tmp_path)
    shutil.copy(tmp_path / "abcd.th", tmp_path / "abcd-1.th")
    with pytest.raises(CheckpointError, match="2 packages of the signature 'abcd'"):
        load_separator("abcd", tmp_path)
    with pytest.raises(CheckpointError, match="not a folder"):
        load_separator("abcd", tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text",
    ["- a", "models: [../../etc/passwd]", "models: [abcd]\nflavour: mint", "models: {", "[["],
)
def test_bags_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    package(tmp_path / "abcd.th")
    (tmp_path / "bag.yaml").write_text(text)
    with pytest.raises(CheckpointError, match="does not describe a bag"):
        load_separator("bag", tmp_path)


def test_published_names_lead_to_their_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SONORANT_OFFLINE", "1")
    monkeypatch.setenv("SONORANT_CACHE", "/nonexistent")
    for name in ("htdemucs", "htdemucs_ft", "mdx_q", "demucs", "tasnet_extra", "f7e0c4bc"):
        with pytest.raises(CheckpointError, match="environment says offline"):
            load_separator(name)


def test_known_bags_have_their_files_in_order() -> None:
    for name, bag in BAGS.items():
        files = known().model(name).files
        assert tuple(file.name.partition("-")[0] for file in files) == bag.models
        assert {len(row) for row in bag.weights or ()} <= {4}


def test_models_are_exported_and_read_again(tmp_path: Path) -> None:
    models = [small(0), small(1)]
    bag = bag_of(models, ((1.0, 0.5, 0.0, 1.0), (0.0, 0.5, 1.0, 1.0)))
    bag.name = "owner/mine"
    export_official(bag, tmp_path / "repo")
    again = load_separator("mine", tmp_path / "repo")
    assert again.config == bag.config
    mix = torch.randn(1, 2, 2000)
    assert torch.equal(again(mix), bag(mix))


KEY_FILES = sorted(path for path in (FIXTURES / "keys").glob("*-*.json"))
SOURCES = ("drums", "bass", "other", "vocals")
DEEP = {"sources": SOURCES, "dconv_init": 1e-3}
"""Arguments that the published networks were made with, where they are not the defaults."""
WHOLE_SIZE: dict[str, tuple[str, dict[str, Any]]] = {
    "v1-demucs": ("demucs.model.Demucs", {"sources": 4, "channels": 100}),
    "v1-light": ("demucs.model.Demucs", {"sources": 4, "channels": 64}),
    "v2-demucs": ("demucs.model.Demucs", {"sources": SOURCES}),
    "v2-demucs48_hq": ("demucs.model.Demucs", {"sources": SOURCES, "channels": 48}),
    "v2-demucs_unittest": ("demucs.model.Demucs", {"sources": SOURCES, "channels": 4}),
    "v2-tasnet": ("demucs.tasnet.ConvTasNet", {"sources": SOURCES, "X": 10}),
}


def described(name: str) -> tuple[str, dict[str, Any]]:
    """Published class and arguments of a list of keys."""
    if name in WHOLE_SIZE:
        return WHOLE_SIZE[name]
    if name.startswith("htdemucs"):
        six = name.startswith("htdemucs_6s")
        arguments: dict[str, Any] = {
            "sources": (*SOURCES, "guitar", "piano") if six else SOURCES,
            "dconv_mode": 3,
            "bottom_channels": 0 if six else 512,
            "segment": Fraction(39, 5),
        }
        return "demucs.htdemucs.HTDemucs", arguments
    if name in ("mdx-0d19c1c6", "mdx-7ecf8ec1"):
        return "demucs.demucs.Demucs", {**DEEP, "rewrite": False}
    if name in ("repro_mdx_a-9a6b4851", "repro_mdx_a-1ef250f1"):
        return "demucs.demucs.Demucs", DEEP
    special = {
        "mdx-c511e2ab": {"cac": False, "hybrid_old": True, "norm_starts": 999},
        "mdx-7d865c68": {"norm_starts": 999, "multi_freqs": [0.1, 0.3], "multi_freqs_depth": 2},
        "mdx_extra-a1d90b5c": {"cac": False, "hybrid_old": True},
        "mdx_extra-5d2d6c55": {"cac": False},
    }
    return "demucs.hdemucs.HDemucs", {**DEEP, **special.get(name, {})}


@pytest.mark.parametrize("path", KEY_FILES, ids=lambda path: path.stem)
def test_official_tensors_and_ours_are_the_same_in_order(path: Path) -> None:
    published, arguments = described(path.stem)
    translation = translation_of(published, arguments, path.stem)
    config = translation.config([], arguments, path.stem)
    with torch.device("meta"), SkipInitialization():
        model = resolve(known().system(translation.system).class_)(config)
    ours = [(name, list(tensor.shape)) for name, tensor in model.state_dict().items()]
    listed = json.loads(path.read_text())
    tensors = {name: torch.empty(shape[:-1], device="meta") for name, shape in listed.items()}
    theirs = our_tensors(translation, config, tensors)
    assert ours == [(name, list(tensor.shape)) for name, tensor in theirs.items()]


def test_every_published_class_has_a_translation_and_a_system() -> None:
    assert {translation.system for translation in TRANSLATIONS} == {
        "demucs_v1",
        "demucs_v2",
        "demucs_v3",
        "hdemucs",
        "htdemucs",
        "conv_tasnet",
    }


def test_nothing_of_the_published_package_is_needed() -> None:
    code = f"import sonorant, sys; sonorant.load({str(next(PACKAGES.glob('aaaa0002-*.th')))!r})"
    code += "; assert not {'demucs', 'diffq', 'julius'} & {n.split('.')[0] for n in sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pickles_hold_the_published_names(tmp_path: Path) -> None:
    path = package(tmp_path / "abcd.th")
    with pytest.raises((ModuleNotFoundError, AttributeError, pickle.UnpicklingError)):
        torch.load(path, weights_only=False)
    assert b"demucs.demucs" in path.read_bytes()
