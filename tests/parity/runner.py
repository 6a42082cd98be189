"""Compare our modules with recorded runs of the published packages.

A case is a folder with `config.json`, `io.safetensors` (inputs, outputs and intermediates of the
published package), usually `weights.safetensors`, and a `README.md` that states the tolerance. A
case of bare numbers may have them all in `cases.json` instead; each is recorded under its path,
such as `bounds.0.theorem1`. An adapter computes every recorded tensor with our code. It is chosen
by the longest stem that the folder's name begins with; everything else is read from the case.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.parity import adapters

Adapter = Callable[["Case"], dict[str, Tensor]]
KEY_LISTS = "keys"
"""Name of the folders beside the cases that hold lists of published keys, and no run."""
_NUMBER = r"([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?)"
_ZERO_SHARE = 1e-3  # of a relative tolerance, as the absolute one: what rounding leaves of a zero


class UnknownCaseError(Exception):
    """No adapter serves this folder."""


@dataclass
class Case:
    """One folder of recorded tensors."""

    folder: Path
    config: dict[str, Any]
    weights: dict[str, Tensor]
    io: dict[str, Tensor]
    readme: str
    inputs: set[str] = field(default_factory=set)
    clauses: dict[str, str] = field(default_factory=dict)
    """Where the README states several tolerances, words of the one for a recorded tensor."""

    @classmethod
    def read(cls, folder: Path) -> Case:
        weights = folder / "weights.safetensors"
        readme = folder / "README.md"
        numbers = folder / "cases.json"
        if numbers.exists():
            config = json.loads(numbers.read_text())
            io = dict(_numbers_in(config, ""))
        else:
            config = json.loads((folder / "config.json").read_text())
            io = load_file(folder / "io.safetensors")
        return cls(
            folder=folder,
            config=config,
            weights=load_file(weights) if weights.exists() else {},
            io=io,
            readme=readme.read_text() if readme.exists() else "",
        )

    def input(self, name: str) -> Tensor:
        """A recorded tensor that the adapter feeds to our code, and so is not compared."""
        self.inputs.add(name)
        return self.io[name]

    def recorded(self, name: str) -> bool:
        return name in self.io

    def names(self, pattern: str) -> Iterator[re.Match[str]]:
        """Matches of a regular expression over the recorded names, in order."""
        for name in sorted(self.io):
            if match := re.fullmatch(pattern, name):
                yield match

    @property
    def tolerance(self) -> tuple[float, float]:
        """(relative, absolute) as the README states them: `rtol X`, `atol Y`, `relative X`, `X
        dB`, which is absolute, or one number for both."""
        return _tolerance_in(self.readme[self.readme.lower().rfind("tolerance") :])

    def tolerance_of(self, name: str) -> tuple[float, float]:
        """That of one tensor: from the clause that `clauses` names, else the first stated.

        `X x max|reference| per tensor (Y for ...)` is absolute, of the largest recorded number: X,
        or Y for tensors with a clause.
        """
        clause = self.clauses.get(name)
        if of_peak := re.search(_NUMBER + r" x max\|reference\|", self.readme):
            wider = re.search(r"\(" + _NUMBER + " for ", self.readme[of_peak.end() :])
            share = wider[1] if clause and wider else of_peak[1]
            recorded = self.io[name]
            return 0.0, float(share) * float(recorded.abs().max()) if recorded.numel() else 0.0
        stated = self.readme[self.readme.lower().rfind("tolerance") :]
        for part in stated.split(";") if clause else ():
            if clause in part:
                return _tolerance_in(part)
        return self.tolerance


def _tolerance_in(text: str) -> tuple[float, float]:
    if decibels := re.search(_NUMBER + " dB", text):
        return 0.0, float(decibels.group(1))
    relative = re.search("rtol " + _NUMBER, text)
    absolute = re.search("atol " + _NUMBER, text)
    if relative or absolute:
        return (
            float(relative.group(1)) if relative else 0.0,
            float(absolute.group(1)) if absolute else 1e-7,
        )
    if alone := re.search("[Tt]olerance:? relative " + _NUMBER, text):
        return float(alone.group(1)), float(alone.group(1)) * _ZERO_SHARE
    bare = re.search(r"[Tt]olerance.*?([0-9](?:\.[0-9]+)?e-[0-9]+)", text, re.DOTALL)
    both = float(bare.group(1)) if bare else 1e-5
    return both, both


def _numbers_in(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """Every number, and every list of numbers as one tensor, under its path."""
    is_list = isinstance(value, list) and value and all(map(_is_number, value))
    if _is_number(value) or is_list:
        values = value if isinstance(value, list) else [value]
        whole = all(isinstance(number, int) for number in values)
        yield path, torch.tensor(value, dtype=torch.int64 if whole else torch.float64)
    elif isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from _numbers_in(item, f"{path}.{name}" if path else str(name))
    else:
        raise UnknownCaseError(f"{path} is {value!r}, and only numbers can be compared")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


@dataclass(frozen=True)
class Comparison:
    """The largest error of one recorded tensor, and whether it is within the case's tolerance."""

    name: str
    error: float
    passed: bool
    remark: str = ""


def find_adapter(name: str) -> Adapter:
    """The adapter with the longest stem that `name` begins with."""
    table: dict[str, Adapter] = {}
    for module in pkgutil.iter_modules(adapters.__path__):
        table.update(importlib.import_module(f"{adapters.__name__}.{module.name}").ADAPTERS)
    stems = [stem for stem in table if name.startswith(stem)]
    if not stems:
        raise UnknownCaseError(f"no adapter serves a case named {name!r}")
    return table[max(stems, key=len)]


def compare(name: str, ours: Tensor, theirs: Tensor, tolerance: tuple[float, float]) -> Comparison:
    if ours.shape != theirs.shape:
        return Comparison(name, float("inf"), False, f"{list(ours.shape)} != {list(theirs.shape)}")
    if not theirs.is_floating_point() and not theirs.is_complex():
        different = int((ours.to(theirs.dtype) != theirs).sum())
        return Comparison(name, float(different), different == 0, "exact")
    relative, absolute = tolerance
    wide = torch.complex128 if theirs.is_complex() else torch.float64
    ours, theirs = ours.detach().to(wide), theirs.to(wide)
    close = torch.isclose(ours, theirs, rtol=relative, atol=absolute, equal_nan=True)
    both_nan = ours.isnan() & theirs.isnan()
    difference = (ours - theirs).abs().masked_fill(both_nan, 0)
    return Comparison(name, float(difference.max()) if ours.numel() else 0.0, bool(close.all()))


def run_case(folder: Path) -> list[Comparison]:
    """Compare every recorded tensor of one case that is not an input.

    Raises: UnknownCaseError when no adapter serves the folder.
    """
    adapter = find_adapter(folder.name)
    case = Case.read(folder)
    computed = adapter(case)
    results = []
    for name in sorted(case.io.keys() - case.inputs):
        if name in computed:
            results.append(compare(name, computed[name], case.io[name], case.tolerance_of(name)))
        else:
            results.append(Comparison(name, float("inf"), False, "not compared"))
    return results
