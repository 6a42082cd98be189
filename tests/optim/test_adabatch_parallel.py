"""Workers that step together: the same numbers as one, and no waiting for one that stopped."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from sonorant.errors import ConfigError
from sonorant.optim.adabatch import AdaBatch
from sonorant.optim.adabatch_parallel import ProcessExchange
from sonorant.optim.adabatch_shared import SharedAdaBatch, SharedSums
from sonorant.optim.dadaptation import DAdaptAdam

WORKERS, STEPS, SIZE = 2, 4, 30


def gradients(step: int, rank: int | None = None) -> Tensor:
    """Of eight entries, or those of one worker: its share, of another length for each."""
    generator = torch.Generator().manual_seed(step)
    coordinates = torch.randint(6, (8,), generator=generator)
    values = torch.randn(8, generator=generator, dtype=torch.float64)
    share = {None: slice(8), 0: slice(3), 1: slice(3, 8)}[rank]
    return torch.sparse_coo_tensor(coordinates[share][None], values[share], (SIZE,))


def apart(step: int) -> list[Tensor]:
    """For each worker, with coordinates in common between steps but not within one, where an
    addition may be lost."""
    mine, theirs = gradients(step, 0), gradients(step, 1)
    moved = torch.sparse_coo_tensor(theirs._indices() + 6, theirs._values(), (SIZE,))
    return [mine, moved] if step % 2 else [moved, mine]


def run_adabatch(rank: int | None) -> dict[str, Tensor]:
    """A sparse and a dense parameter; in step 0 worker 0 has no sparse gradient."""
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    bias = nn.Parameter(torch.zeros((), dtype=torch.float64))
    exchange = None if rank is None else ProcessExchange()
    optimiser = AdaBatch([weight, bias], 0.5, exchange)
    for step in range(STEPS):
        weight.grad = gradients(step, rank)
        if step == 0:
            weight.grad = None if rank == 0 else gradients(step)
        share = 8 if rank is None else (3, 5)[rank]
        bias.grad = torch.tensor(float(share * step), dtype=torch.float64)
        optimiser.step(samples=share)
    return {"weight": weight.detach(), "bias": bias.detach()}


def run_dadapt(rank: int | None) -> dict[str, Tensor]:
    """Two parameters, of which each worker holds one."""
    weights = [nn.Parameter(torch.full((3,), float(i))) for i in range(WORKERS)]
    mine = weights if rank is None else [weights[rank]]
    optimiser = DAdaptAdam(mine, all_reduce=None if rank is None else dist.all_reduce)
    for _ in range(STEPS):
        for weight in mine:
            weight.grad = weight.detach() - 5
        optimiser.step()
    return {"distance": torch.tensor(optimiser.distance)}


def gloo_worker(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORKERS
    )
    found = run_adabatch(rank) | run_dadapt(rank)
    weight = nn.Parameter(torch.zeros(2))
    optimiser = AdaBatch([weight], exchange=ProcessExchange())
    weight.grad = torch.ones(2)
    try:
        optimiser.step(samples=3 if rank == 0 else None)  # worker 1 does not say how many
    except ConfigError as error:
        (folder / f"error{rank}").write_text(str(error))
    torch.save(found, folder / f"found{rank}")
    dist.barrier()  # gloo may abort a worker whose partner leaves first
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_over_gloo_step_as_one_process(tmp_path: Path) -> None:
    multiprocessing.spawn(gloo_worker, (tmp_path,), WORKERS)
    alone = run_adabatch(None) | run_dadapt(None)
    for rank in range(WORKERS):
        found = torch.load(tmp_path / f"found{rank}", weights_only=True)
        for name, tensor in alone.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=0)
    assert alone["weight"].any()
    assert "worker 1 stopped" in (tmp_path / "error0").read_text()
    assert "samples=" in (tmp_path / "error1").read_text()


def shared_worker(rank: int, weight: nn.Parameter, shared: SharedSums, folder: Path) -> None:
    optimiser = SharedAdaBatch(shared, 0.5)
    for step in range(STEPS):
        weight.grad = apart(step)[rank]
        optimiser.step()
    weight.grad = gradients(0, rank) * (float("nan") if rank == 1 else 1)
    try:
        optimiser.step()
    except ConfigError as error:
        (folder / f"error{rank}").write_text(str(error))


@pytest.mark.slow
def test_processes_in_shared_memory_step_as_one_process(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    shared = SharedSums([weight], WORKERS, timeout_seconds=600)
    multiprocessing.spawn(shared_worker, (weight, shared, tmp_path), WORKERS)
    alone = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimiser = AdaBatch([alone], 0.5)
    for step in range(STEPS):
        both = apart(step)
        indices, values = (
            torch.cat(parts, -1)
            for parts in ([g._indices() for g in both], [g._values() for g in both])
        )
        alone.grad = torch.sparse_coo_tensor(indices, values, (SIZE,))
        optimiser.step()
    torch.testing.assert_close(weight, alone, rtol=1e-12, atol=0)
    assert "another worker" in (tmp_path / "error0").read_text()
    assert "not finite" in (tmp_path / "error1").read_text()


def test_one_worker_needs_no_processes() -> None:
    weight = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimiser = SharedAdaBatch(SharedSums([weight], 1), 0.5)
    weight.grad = gradients(1)
    optimiser.step()
    alone = nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    alone.grad = gradients(1)
    AdaBatch([alone], 0.5).step()
    torch.testing.assert_close(weight, alone, rtol=1e-12, atol=0)


def test_refuses_bad_input() -> None:
    weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(ConfigError, match="init_process_group"):
        ProcessExchange()
    with pytest.raises(ConfigError, match="worker"):
        SharedSums([weight], 0)
    with pytest.raises(ConfigError, match="dimension"):
        SharedSums([nn.Parameter(torch.zeros(()))], 1)
    optimiser = SharedAdaBatch(SharedSums([weight], 1))
    weight.grad = torch.ones(2)
    with pytest.raises(ConfigError, match="sparse"):
        optimiser.step()
