"""Logistic regression on sparse rows: gradients sample by sample, passes, and several workers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer

from sonorant.optim.adabatch import AdaBatch
from sonorant.optim.adabatch_parallel import ProcessExchange
from sonorant.optim.adabatch_shared import SharedAdaBatch, SharedSums
from sonorant.studies.sparse_rows import SparseRows


def summed_gradient(rows: SparseRows, weight: Tensor) -> Tensor:
    """Of the sum of log(1 + exp(-margin)): sparse [dimension], an entry for each of the rows'."""
    slopes = -rows.labels * torch.sigmoid(-rows.margins(weight))
    entries = slopes.index_select(0, rows.row_numbers) * rows.values
    return torch.sparse_coo_tensor(
        rows.columns[None], entries, weight.shape, check_invariants=False
    )


def objective(rows: SparseRows, weight: Tensor) -> float:
    """Mean logistic loss; log 2 = 0.6931 at weight 0."""
    with torch.no_grad():
        return float(functional.softplus(-rows.margins(weight)).mean())


@dataclass(frozen=True)
class Method:
    """A way to train.

    title: for the report. make: the optimiser, of a worker's weight, what all share, and step.
    average: divide gradients by the batch size, as AdaBatch does not.
    together: workers share every batch; otherwise each has batches of its own.
    single: batches are of one sample, whatever is asked for.
    """

    title: str
    make: Callable[[nn.Parameter, SharedSums | None, float], Optimizer]
    average: bool = False
    together: bool = False
    single: bool = False


def _over_processes(weight: nn.Parameter, shared: SharedSums | None, lr: float) -> Optimizer:
    """Every worker has weights of its own, which stay equal."""
    return AdaBatch([weight], lr, ProcessExchange() if dist.is_initialized() else None)


def _in_shared_memory(weight: nn.Parameter, shared: SharedSums | None, lr: float) -> Optimizer:
    return SharedAdaBatch(shared or SharedSums([weight], 1), lr)


def _plain(weight: nn.Parameter, shared: SharedSums | None, lr: float) -> Optimizer:
    """Descent on the shared weights; with several workers without locks, as Hogwild! is."""
    return SGD([weight], lr)


METHODS = {
    "adabatch": Method("AdaBatch, processes", _over_processes, together=True),
    "adabatch-shared": Method("AdaBatch, shared memory", _in_shared_memory, together=True),
    "minibatch": Method("plain batches", _plain, average=True),
    "hogwild": Method("Hogwild, one sample", _plain, single=True),
}


@dataclass(frozen=True)
class Plan:
    """One run. method: of `METHODS`. workers: processes, of one thread each."""

    method: str
    batch_size: int
    lr: float
    passes: int = 1
    workers: int = 1
    seed: int = 0


@dataclass(frozen=True)
class PassResult:
    """After a pass: its wall time, and the objective on rows that are not trained on."""

    seconds: float
    objective: float


def run_pass(rows: SparseRows, weight: nn.Parameter, optimiser: Optimizer, plan: Plan) -> None:
    """All rows once, in their order."""
    method = METHODS[plan.method]
    size = 1 if method.single else plan.batch_size
    if method.together:
        size = max(1, size // plan.workers)
    values = weight.detach()
    for first in range(0, len(rows), size):
        last = min(first + size, len(rows))
        gradient = summed_gradient(rows.slice(first, last), values)
        weight.grad = gradient / (last - first) if method.average else gradient
        optimiser.step()


def train_alone(train: SparseRows, plan: Plan) -> Tensor:
    """The weight [dimension] after a run in this process."""
    weight = nn.Parameter(torch.zeros(train.dimension))
    optimiser = METHODS[plan.method].make(weight, None, plan.lr)
    generator = torch.Generator().manual_seed(plan.seed)
    for _ in range(plan.passes):
        order = torch.randperm(len(train), generator=generator)
        run_pass(train.take(order), weight, optimiser, plan)
    return weight.detach()


def train_with_workers(train: SparseRows, test: SparseRows, plan: Plan) -> list[PassResult]:
    """The result of each pass, by `plan.workers` new processes; shuffling is not timed."""
    weight = nn.Parameter(torch.zeros(train.dimension))
    shared = SharedSums([weight], plan.workers, timeout_seconds=600)
    found = torch.zeros(plan.passes, 2, dtype=torch.float64).share_memory_()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (plan, train, test, weight, shared, found, Path(folder) / "meeting")
        multiprocessing.spawn(_work, arguments, plan.workers)
    return [PassResult(*row) for row in found.tolist()]


def _work(
    rank: int,
    plan: Plan,
    train: SparseRows,
    test: SparseRows,
    weight: nn.Parameter,
    shared: SharedSums,
    found: Tensor,
    meeting: Path,
) -> None:
    torch.set_num_threads(1)
    if plan.method == "adabatch":
        weight = nn.Parameter(weight.detach().clone())
        if plan.workers > 1:
            dist.init_process_group(
                "gloo", init_method=f"file://{meeting}", rank=rank, world_size=plan.workers
            )
    optimiser = METHODS[plan.method].make(weight, shared, plan.lr)
    generator = torch.Generator().manual_seed(plan.seed)
    for index in range(plan.passes):
        rows = train.take(_share(len(train), rank, plan, generator))
        shared.wait()
        began = time.perf_counter()
        run_pass(rows, weight, optimiser, plan)
        shared.wait()
        if rank == 0:
            seconds = time.perf_counter() - began
            found[index] = torch.tensor([seconds, objective(test, weight)], dtype=torch.float64)
        shared.wait()
    if dist.is_initialized():
        dist.destroy_process_group()


def _share(rows: int, rank: int, plan: Plan, generator: torch.Generator) -> Tensor:
    """This worker's rows of a shuffled pass, as many for each; what cannot be shared is left."""
    order = torch.randperm(rows, generator=generator)
    return order[: rows - rows % plan.workers][rank :: plan.workers]
