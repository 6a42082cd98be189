"""A tiny task that uses everything the engine offers: two optimisers, dropout, draws, state."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from sonorant.training.task import Metrics, StepContext, Task


class Lines(Dataset[Tensor]):
    """Item i: points of the line y = 2x + 1 with noise, drawn from (seed, i)."""

    def __init__(self, seed: int, size: int = 1000) -> None:
        self.seed = seed
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index)
        x = torch.randn(4, generator=generator)
        return torch.stack([x, 2 * x + 1])


class ToySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    learning_rate: float = 1e-2
    hidden: int = 4
    dropout: float = 0.1
    stop_self_at_step: int | None = None
    diverge_at_step: int | None = None
    compare_processes: bool = False


class ToyTask(Task):
    Settings = ToySettings
    averaged_modules = ("model",)

    def __init__(self, settings: ToySettings) -> None:
        super().__init__(settings)
        self.model = nn.Sequential(
            nn.Linear(1, settings.hidden),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.hidden, 1),
        )
        self.rival = nn.Linear(1, 1)
        self.seen = 0
        self.stop_sent = False

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, "rival": self.rival}

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        rate = self.settings.learning_rate
        return {
            "model": torch.optim.Adam(self.model.parameters(), lr=rate),
            "rival": torch.optim.SGD(self.rival.parameters(), lr=rate, momentum=0.5),
        }

    def training_data(self, seed: int) -> Lines:
        return Lines(seed)

    def validation_data(self) -> Lines:
        return Lines(seed=999, size=6)

    def step(self, batch: Tensor, context: StepContext) -> Metrics:
        x, y = batch[:, 0, :, None], batch[:, 1, :, None]
        self.seen += len(batch)
        if torch.rand((), generator=context.generator) < 0.7:
            (self.rival(x) - y).square().mean().backward()
            context.apply("rival")
        loss = (self.model(x) - y).square().mean()
        if context.step == self.settings.diverge_at_step:
            loss = loss * float("nan")
        loss.backward()
        context.apply("model")
        if context.step == self.settings.stop_self_at_step and not self.stop_sent:
            self.stop_sent = True
            os.kill(os.getpid(), signal.SIGTERM)
        if self.settings.compare_processes:
            self.compare_processes()
        return {"loss": loss.detach(), "seen": float(self.seen)}

    def compare_processes(self) -> None:
        """Raise unless every process holds the same weights, bit for bit."""
        mine = nn.utils.parameters_to_vector([*self.model.parameters(), *self.rival.parameters()])
        all_of_them = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(all_of_them, mine.detach())
        if not all(torch.equal(mine, other) for other in all_of_them):
            raise AssertionError("processes hold different weights")

    def evaluate(self, batch: Tensor) -> Metrics:
        torch.rand(3)  # evaluation may draw; training must not notice
        error = self.model(batch[:, 0, :, None]) - batch[:, 1, :, None]
        return {"error": error.square().mean()}

    def extra_state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]

    def export(self, folder: Path) -> None:
        torch.save(self.model.state_dict(), folder / "model.pt")


def toy_recipe(training: dict[str, Any], settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """A recipe of the toy task as plain data."""
    return {
        "task": "tests.training.toy:ToyTask",
        "training": {
            "steps": 6,
            "batch_size": 2,
            "device": "cpu",
            "average_decay": 0.9,
            "evaluate_every": 2,
            "checkpoint_every": 3,
            **training,
        },
        "settings": settings or {},
    }
