"""Size against quality: a shipped model trained on with few bits per weight, by every method.

    python benchmarks/quantized_training.py entropy datasets/open/manifest.jsonl
    python benchmarks/quantized_training.py codec datasets/open/manifest.jsonl --runs plain diffq:1
    python benchmarks/quantized_training.py separator datasets/stems/songs.jsonl --batch-size 2

Runs of equal length start from the model that ships with the package: without quantisation, and
with DiffQ (`diffq:PENALTY`), learned steps (`lsq:BITS`) and straight-through rounding
(`uniform:BITS`). What was trained without is also quantised afterwards. Of all, a Markdown table
says how large they are as stored and how good on held-out sound. The codec's encoder is designed,
not trained, so there only the decoder is quantised and counted. A run that is done is not repeated.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import safe_open

import sonorant
from sonorant.cli.train import SHORT_NAMES
from sonorant.quantization.post_training import quantize
from sonorant.quantization.quantizer import Choice
from sonorant.training.engine import train
from sonorant.training.recipe import Recipe, build_task, load_recipe

WEIGHTS = Path(sonorant.__file__).parent / "weights" / "codec-24khz-small"
RUNS = ["plain", "diffq:0.1", "diffq:1", "diffq:10", "lsq:4", "lsq:8", "uniform:4", "uniform:8"]
BITS_AFTERWARDS = (12, 10, 8, 6, 4)
BITS_RATE = 0.02  # of the bits' Adam: 20 times the paper's, for some hundred steps
EVALUATION_BATCHES = 4


@dataclass(frozen=True)
class Subject:
    """A model to make small.

    recipe: its own. changes: to the recipe, to go on from `start` for a short while.
    prefix: of the names of the tensors that are counted. choice: what is quantised.
    figures: of those that its task's `evaluate` gives. first_bits: from which DiffQ learns them.
    manifest: the recipe's field for the data.
    """

    recipe: str
    start: str
    changes: tuple[str, ...]
    figures: tuple[str, ...]
    prefix: str = ""
    choice: Choice = field(default_factory=Choice)
    first_bits: float = 8
    manifest: str = "settings.manifest"


SUBJECTS = {
    "entropy": Subject(
        recipe="recipes/entropy-24khz-small.yaml",
        start="settings.start",
        changes=(
            f"settings.start={WEIGHTS / 'entropy'}",
            "settings.learning_rate=1.0e-3",
            "settings.valid_items=32",
        ),
        figures=("coded_kbps_6", "saved_6"),
    ),
    "codec": Subject(
        recipe="recipes/codec-24khz-small.yaml",
        start="settings.start.model",
        changes=(
            "settings.start={model: sonorant/codec-24khz-small}",
            "settings.adversary.from_step=1000000000",
            "settings.valid_items=32",
        ),
        figures=("si_snr_6kbps", "mel_6kbps"),
        prefix="decoder.",
        choice=Choice(exclude=("encoder.*", "quantizer.*")),
        first_bits=12,  # its weights stand further apart than trained ones
    ),
    "separator": Subject(
        recipe="recipes/htdemucs-small.yaml",
        start="settings.network.model",
        changes=(
            "settings.network={model: sonorant/htdemucs-small}",
            "settings.optimizer={learning_rate: 1.0e-4}",
        ),
        figures=("plain/sdr", "sdr/drums", "sdr/bass", "sdr/other", "sdr/vocals"),
        manifest="settings.songs",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--runs", nargs="+", default=RUNS, metavar="METHOD[:NUMBER]")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/quantized"))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="recipe fields")
    options = parser.parse_args()
    torch.set_num_threads(1)
    subject = SUBJECTS[options.subject]
    print("| | bytes |", " | ".join(subject.figures), "|")
    print("|---|---:|", "---:|" * len(subject.figures))
    for run in options.runs:
        recipe = recipe_of(subject, run, options)
        folder = options.out / options.subject / run.replace(":", "-")
        if not (folder / "model").exists():
            train(recipe, folder, short_names=SHORT_NAMES)
        report(run, subject, recipe, folder / "model")
        for bits in BITS_AFTERWARDS if run == "plain" else ():
            target = folder.parent / f"afterwards-{bits}"
            quantize(sonorant.load(folder / "model"), target, bits=bits, choice=subject.choice)
            report(f"quantised afterwards, {bits} bits", subject, recipe, target)


def recipe_of(subject: Subject, run: str, options: argparse.Namespace) -> Recipe:
    """The subject's recipe for a short run with the method and number of `run`."""
    changes = [
        *subject.changes,
        f"{subject.manifest}={options.manifest}",
        f"training.steps={options.steps}",
        f"training.batch_size={options.batch_size}",
        f"training.warmup_steps={options.steps // 10}",
        f"training.decay_from_step={options.steps // 3}",
        "training.average_decay=0.98",
        "training.evaluate_every=0",
        f"training.checkpoint_every={options.steps}",
        *options.set,
    ]
    recipe = load_recipe(subject.recipe, changes)
    method, _, number = run.partition(":")
    if method == "plain":
        return recipe
    numbers: dict[str, Any] = {"method": method, "choice": msgspec.to_builtins(subject.choice)}
    if method == "diffq":
        bits = {"init_bits": subject.first_bits}
        numbers |= {"penalty": float(number), "learning_rate": BITS_RATE, "config": bits}
    else:
        numbers |= {"bits": int(number)}
    return msgspec.convert(msgspec.to_builtins(recipe) | {"quantization": numbers}, Recipe)


def report(name: str, subject: Subject, recipe: Recipe, model: Path) -> None:
    """Print a row for the model in a folder."""
    settings = msgspec.to_builtins(recipe.settings)
    *parents, last = subject.start.split(".")[1:]
    section = settings
    for parent in parents:
        section = section[parent]
    section[last] = str(model)
    task = build_task(msgspec.structs.replace(recipe, settings=settings), SHORT_NAMES)
    for module in task.modules().values():
        module.eval()
    figures = evaluated(task, recipe.training.batch_size)
    cells = " | ".join(f"{figures[each]:.4f}" for each in subject.figures)
    print(f"| {name} | {stored_bytes(model, subject.prefix):,} | {cells} |", flush=True)


@torch.no_grad()
def evaluated(task: Any, batch_size: int) -> dict[str, float]:
    """The means of the task's validation figures."""
    data = task.validation_data()
    batch_size = min(batch_size, len(data))
    count = min(EVALUATION_BATCHES, len(data) // batch_size)
    totals: dict[str, float] = {}
    for first in range(0, count * batch_size, batch_size):
        batch = torch.stack([data[index] for index in range(first, first + batch_size)])
        for key, value in task.evaluate(batch).items():
            totals[key] = totals.get(key, 0.0) + float(value) / count
    return totals


def stored_bytes(model: Path, prefix: str) -> int:
    """Of the tensors whose names begin with `prefix`, or of the whole file."""
    path = model / "model.safetensors"
    if not prefix:
        return path.stat().st_size
    with safe_open(path, "pt") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys() if name.startswith(prefix))  # noqa: SIM118


if __name__ == "__main__":
    main()
