"""Optimisers: a step of our Adam beside torch's, and passes of AdaBatch beside scikit-learn's SGD.

    python benchmarks/optimizers.py                     # 100 million parameters
    python benchmarks/optimizers.py --millions 10 --repeats 3

Both sides run in one process, in turn; the best of several repeats counts, and the ratio is the
figure. The passes need the peer beside: `pip install scikit-learn`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sonorant.optim.adabatch import AdaBatch
from sonorant.optim.adam import Adagrad, Adam
from sonorant.studies.adabatch import split_half
from sonorant.studies.sparse_rows import SHAPES, SparseRows, make_rows
from sonorant.studies.sparse_training import Plan, objective, run_pass

TENSOR = 4_000_000  # elements of a large layer
BATCH = 512


def best(jobs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Least wall and processor time of each job, in seconds; the jobs take turns."""
    found = {name: (float("inf"), float("inf")) for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            wall, processor = time.perf_counter(), time.process_time()
            job()
            took = time.perf_counter() - wall, time.process_time() - processor
            found[name] = min(found[name][0], took[0]), min(found[name][1], took[1])
    return found


def report(title: str, found: dict[str, tuple[float, float]], reference: str) -> None:
    print(title)
    for name, (wall, processor) in found.items():
        ratio = processor / found[reference][1]
        print(f"  {name:34s} {wall:8.3f} s wall, {processor:8.3f} s processor, ratio {ratio:.2f}")


def steps(millions: float, repeats: int) -> None:
    """All optimisers have the same parameters and gradients; only their states differ."""
    whole, rest = divmod(int(millions * 1e6), TENSOR)
    sizes = [TENSOR] * whole + [rest] * bool(rest)
    weights = [nn.Parameter(torch.randn(size)) for size in sizes]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    makers: dict[str, Callable[[], Optimizer]] = {
        "torch.optim.Adam": lambda: torch.optim.Adam(weights),
        "torch.optim.Adam(foreach=True)": lambda: torch.optim.Adam(weights, foreach=True),
        "torch.optim.Adam(fused=True)": lambda: torch.optim.Adam(weights, fused=True),
        "sonorant Adam": lambda: Adam(weights),
        "sonorant Adam, beta1 = 0": lambda: Adam(weights, betas=(0.0, 0.999)),
        "sonorant Adagrad": lambda: Adagrad(weights),
    }
    jobs = {}
    for name, make in makers.items():
        optimiser = make()
        optimiser.step()  # makes the state
        jobs[name] = optimiser.step
    title = f"one step, {millions:g} million parameters, {torch.get_num_threads()} threads"
    report(title, best(jobs, repeats), "torch.optim.Adam")


def passes(shape: str, repeats: int) -> None:
    """One pass over the training half, rows in order, without shuffling; loss on the other half."""
    train, test = split_half(make_rows(SHAPES[shape]))
    weights = {size: nn.Parameter(torch.zeros(train.dimension)) for size in (BATCH, 8 * BATCH)}

    def pass_over(size: int) -> None:
        with torch.no_grad():
            weights[size].zero_()
        weight = weights[size]
        run_pass(train, weight, AdaBatch([weight], 4.0), Plan("adabatch", size, 4.0))

    jobs: dict[str, Callable[[], Any]] = {
        f"sonorant AdaBatch, batch {size}": lambda size=size: pass_over(size) for size in weights
    }
    peer, losses = scikit_learn(train, test)
    jobs["scikit-learn SGDClassifier"] = peer
    torch.set_num_threads(1)
    found = best(jobs, repeats)
    report(f"one pass, {shape}: {len(train):,} rows", found, "scikit-learn SGDClassifier")
    for name, (wall, _) in found.items():
        print(f"  {name:34s} {1 / wall:8.1f} passes a second")
    for size, weight in weights.items():
        print(f"  test loss, AdaBatch, batch {size}: {objective(test, weight.detach()):.4f}")
    print(f"  test loss, scikit-learn: {losses():.4f}")


def scikit_learn(
    train: SparseRows, test: SparseRows
) -> tuple[Callable[[], Any], Callable[[], float]]:
    """A pass of its SGD at the same constant step, without penalty, and the loss after it."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import SGDClassifier

    shape = (len(train), train.dimension)
    parts = (train.values.numpy(), train.columns.numpy().astype("int32"), train.starts.numpy())
    matrix, labels = csr_matrix(parts, shape), train.labels.numpy()
    model = SGDClassifier(
        loss="log_loss",
        penalty=None,
        learning_rate="constant",
        eta0=4.0,
        fit_intercept=False,
        shuffle=False,
        max_iter=1,
        tol=None,
    )
    return (
        lambda: model.fit(matrix, labels),
        lambda: objective(test, torch.from_numpy(model.coef_[0]).float()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, default=100)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    steps(options.millions, options.repeats)
    passes(options.shape, options.repeats)


if __name__ == "__main__":
    main()
