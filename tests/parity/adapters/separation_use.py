"""Applying separators, reading their packages, and writing stems.

References: demucs 4.1.0 and 2.0.3 (apply_model, packages, audio files).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from sonorant.audio import Audio
from sonorant.dsp.overlap_add import triangular_weights
from sonorant.hub.table import known, resolve
from sonorant.separation.apply import apply
from sonorant.separation.bag import bag_of
from sonorant.separation.checkpoints import DEMUCS_V2, translation_of
from sonorant.separation.mixture import Level, take_channels
from sonorant.separation.packages import read_package, read_version_2
from sonorant.separation.separator import Separator
from sonorant.separation.settings import Settings
from sonorant.separation.stem_files import (
    CLIPS,
    Encoding,
    Stem,
    whole_samples,
    write_stem,
)
from tests.parity.runner import Case

ENCODINGS = {"wav16": "int16", "wav24": "int24", "wavf32": "float32"}


def built(system: str, config: Any, tensors: dict[str, Tensor]) -> Separator:
    model: Separator = resolve(known().system(system).class_)(config)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model.eval()


def official(described: dict[str, Any], tensors: dict[str, Tensor]) -> Separator:
    """The model of a class and arguments as an official package has them."""
    kwargs = dict(described["kwargs"])
    segment = kwargs.get("segment")
    if isinstance(segment, dict):
        kwargs["segment"] = Fraction(segment["numerator"], segment["denominator"])
    translation = translation_of(described["klass"], kwargs, "the case")
    config = translation.config(described.get("args", []), kwargs, "the case")
    return built(translation.system, config, tensors)


def part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def models(case: Case) -> dict[str, Separator]:
    """The models that calls name: "a", "b", "bag ..."; "" where there is only one."""
    if "klass" in case.config:
        return {"": official(case.config, case.weights)}
    prefixes = sorted({name.partition(".")[0] for name in case.weights})
    described = [value for value in case.config.values() if isinstance(value, dict)]
    shared = next(value for value in described if "klass" in value)
    found = {each: official(shared, part(case.weights, f"{each}.")) for each in prefixes}
    weights = tuple(tuple(row) for row in case.config["bag_weights"])
    return {**found, "bag": bag_of(list(found.values()), weights)}


def settings_of(call: dict[str, Any]) -> Settings:
    return Settings(
        shifts=call["shifts"],
        overlap=call["overlap"],
        split=call["split"],
        segment_seconds=call["segment"],
        transition_power=call["transition_power"],
        seed=call.get("python_seed", 0),
    )


@torch.no_grad()
def applied(case: Case) -> dict[str, Tensor]:
    available = models(case)
    computed: dict[str, Tensor] = {}
    for match in case.names(r"in\..*"):
        case.input(match[0])
    for name, call in case.config["calls"].items():
        model = available[call.get("model", "").partition(" ")[0]]
        mix = case.input(call.get("input", "in.mix"))
        if "input" not in call:
            computed[name] = apply(model, mix, settings_of(call))
            continue
        level = Level.of(mix)
        stems = apply(model, level.normalize(mix)[None], settings_of(call))
        computed[name] = level.restore(stems[0])
    for match in case.names(r"out\.triangle_weight_(\d+)"):
        weights = triangular_weights(int(match[1]))
        computed[match[0]] = weights / weights.max()
    return computed


@torch.no_grad()
def applied_v2(case: Case) -> dict[str, Tensor]:
    config = DEMUCS_V2.config([], case.config["kwargs"], "the case")
    model = built("demucs_v2", config, case.weights)
    mix = case.input("in.mix")[None]
    for match in case.names(r"in\..*"):
        case.input(match[0])
    computed = {}
    for match in case.names(r"out\.(plain|split|shifts(\d+)_seed(\d+))"):
        shifts, seed = int(match[2] or 0), int(match[3] or 0)
        chosen = Settings(shifts=shifts, seed=seed, split=match[1] == "split")
        computed[match[0]] = apply(model, mix, chosen)[0]
    return computed


@torch.no_grad()
def packages(case: Case) -> dict[str, Tensor]:
    mix = case.input("in.mix")
    computed = {}
    for path in sorted(case.folder.iterdir()):
        if path.suffix == ".th":
            system, config, tensors = read_package(path)
            half = all(tensor.dtype == torch.float16 for tensor in tensors.values())
            kind = "plain" if half else "diffq"
            expected = load_file(case.folder / f"{kind}.state.safetensors")
            check_equal(tensors, expected)
            computed[f"out.{kind}"] = built(system, config, tensors)(mix)
        elif path.suffix == ".safetensors" and path.name.count(".") == 1 and path.stem != "io":
            computed["out.hf_safetensors"] = built(*read_package(path))(mix)
    return computed


@torch.no_grad()
def packages_v2(case: Case) -> dict[str, Tensor]:
    config = DEMUCS_V2.config([], case.config["kwargs"], "the case")
    computed = {}
    for path in sorted(case.folder.glob("*.th")):
        _, tensors = read_version_2(path, config)
        kind = path.stem.rpartition("_")[2]
        if (case.folder / f"{kind}.state.safetensors").exists():
            check_equal(tensors, load_file(case.folder / f"{kind}.state.safetensors"))
            computed[f"out.{kind}"] = built("demucs_v2", config, tensors)(case.input("in.mix"))
    return computed


def check_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """The weights themselves must be theirs, to the bit."""
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name].float(), tensor), name


def audio_output(case: Case) -> dict[str, Tensor]:
    wav = case.input("in.wav")
    peak = wav.abs().max()
    rate = case.config["samplerate"]
    computed = {f"out.{name}": clip(wav, peak) for name, clip in CLIPS.items() if name != "none"}
    computed["out.i16_pcm"] = whole_samples(wav, 16)
    for match in case.names(r"out\.channels_(\d+)"):
        computed[match[0]] = take_channels(Audio(wav, rate), int(match[1])).samples
    stem = Stem(rate, len(wav), wav.shape[1], float(peak))
    for match in case.names(r"out\.file_(\w+)"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "stem.wav"
            encoding = Encoding(samples=ENCODINGS[match[1]])  # type: ignore[arg-type]
            write_stem(path, [wav], stem, encoding)
            content = np.frombuffer(path.read_bytes(), np.uint8)
        computed[match[0]] = torch.from_numpy(content.copy())
    return {name: value for name, value in computed.items() if case.recorded(name)}


ADAPTERS: dict[str, Callable[[Case], dict[str, Tensor]]] = {
    "apply-model": applied,
    "apply-htdemucs": applied,
    "apply-v2": applied_v2,
    "audio-output": audio_output,
    "packages": packages,
    "packages-v2": packages_v2,
}
