"""What a training run writes down: `metrics.jsonl`, TensorBoard events, sounds, and a progress bar.

One JSON object per line: `{"step": 100, "kind": "train", "loss": 0.5, ...}`; the kinds are `train`
(means over the steps since the line before) and `valid`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from sonorant.audio import Audio, write
from sonorant.errors import SonorantError


class MeanMetrics:
    """Running means of named numbers, each over the steps that reported it.

    Tensors stay on their device until `take`, so that adding does not wait for a GPU.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}

    def add(self, metrics: Mapping[str, Tensor | float], weight: float = 1.0) -> None:
        for name, value in metrics.items():
            value = torch.as_tensor(value).detach().double() * weight
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0.0) + weight

    def take(self) -> dict[str, float]:
        """The means so far; starts over."""
        means = {name: total.item() / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class RunLog:
    """The log of one run, written by the main process.

    A run resumed at `first_step` drops what an earlier process wrote after that step.
    """

    def __init__(self, folder: Path, first_step: int, steps: int) -> None:
        self._path = folder / "metrics.jsonl"
        _drop_lines_after(self._path, first_step)
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)
        self._samples = folder / "samples"
        self._bar = tqdm(total=steps, initial=first_step, unit="step", disable=None)
        self._mark = (time.perf_counter(), first_step)

    def advance(self) -> None:
        self._bar.update()

    def train(self, step: int, metrics: dict[str, float]) -> None:
        """Log training means at `step`, with the speed since the last call.

        Raises: SonorantError if a figure is not finite: the run has diverged.
        """
        now = time.perf_counter()
        then, last_step = self._mark
        self._mark = (now, step)
        speed = (now - then) / (step - last_step)
        self._write(step, "train", {**metrics, "seconds_per_step": speed})
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise SonorantError(
                f"training diverged before step {step}: {', '.join(bad)} is not finite; lower the "
                "learning rate or clip gradients, and resume from the last checkpoint"
            )

    def valid(self, step: int, metrics: dict[str, float], sounds: Mapping[str, Audio]) -> None:
        """Log validation figures and sounds at `step`."""
        self._write(step, "valid", metrics)
        for name, audio in sounds.items():
            mono = audio.samples.mean(0, keepdim=True)
            self._writer.add_audio(name, mono, step, audio.sample_rate)
            path = self._samples / f"{step:08d}" / f"{name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, audio)
        self._mark = (time.perf_counter(), step)

    def say(self, text: str) -> None:
        """A line for people, above the bar."""
        tqdm.write(text)

    def close(self) -> None:
        self._bar.close()
        self._writer.close()

    def _write(self, step: int, kind: str, metrics: dict[str, float]) -> None:
        line = {"step": step, "kind": kind, **metrics}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in metrics.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if self._bar.disable or kind == "valid":
            self.say(f"{kind} {step}: {shown}")
        else:
            self._bar.set_postfix_str(shown[:80])


def _drop_lines_after(path: Path, step: int) -> None:
    """Keep the lines up to `step`; a last line cut short by a crash goes too."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    temporary = path.with_name(path.name + ".part")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)
