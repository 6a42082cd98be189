"""Each study, small: its recursions are the library's, and its report has what was found."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sonorant.errors import ConfigError
from sonorant.optim.adam import Adam
from sonorant.studies.adabatch import split_half, study_adabatch
from sonorant.studies.adam import study_adam
from sonorant.studies.lms import study_lms
from sonorant.studies.report import write_report
from sonorant.studies.sparse_rows import SHAPES, Shape, make_rows
from sonorant.studies.sparse_training import METHODS, Plan, objective, train_alone
from sonorant.studies.toy import CHANCES, EPS, Settings, full_gradient, run


def written(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_toy_problems_recursion_is_that_of_adam(momentum: float) -> None:
    steps, seed = 300, 5
    settings = Settings(np.array([0.1]), np.array([momentum]), np.array([0.99]))
    outcome = run(settings, np.zeros((1, 2, 6)), steps, seed)
    x = nn.Parameter(torch.zeros(2, 6, dtype=torch.float64))
    optimiser = Adam([x], 0.1, (momentum, 0.99), EPS)
    rare = torch.from_numpy(np.random.default_rng(seed).random((steps, 2, 6)) < CHANCES)
    for drawn in rare:
        low, high = (x.detach() - 1).clamp(-1, 1), (x.detach() + 1).clamp(-1, 1)
        x.grad = torch.where(drawn, high / torch.from_numpy(CHANCES).sqrt(), low)
        optimiser.step()
    assert outcome.iterates[0] == pytest.approx(x.detach().numpy(), rel=1e-9)
    assert 0 < outcome.gradient_squares.min() < 6


def test_the_full_gradient_is_the_mean_of_the_noisy_ones() -> None:
    x = np.array([0.3, -2.0, 0.5, 0.9, 1.0, -0.4])
    common, rare = np.clip(x - 1, -1, 1), np.clip(x + 1, -1, 1) / np.sqrt(CHANCES)
    assert full_gradient(x) == pytest.approx((1 - CHANCES) * common + CHANCES * rare)


def test_the_adam_study_writes_slopes_and_picture(tmp_path: Path) -> None:
    counted: list[int] = []
    write_report(tmp_path / "out", study_adam(200, 2, progress=counted.append))
    assert sum(counted) == 600
    found = written(tmp_path / "out")
    assert [sweep["name"] for sweep in found["sweeps"]] == [  # type: ignore[attr-defined]
        "alpha",
        "1 - beta1",
        "1 - beta2",
    ]
    assert (tmp_path / "out" / "slopes.png").read_bytes().startswith(b"\x89PNG")
    assert "slope of the bound" in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(ConfigError, match="steps"):
        study_adam(1)


@pytest.mark.slow
def test_alpha_has_the_published_slope() -> None:
    slopes = {
        sweep.name: sweep.slope for sweep in study_adam(steps=1_000_000, seeds=1).results["sweeps"]
    }
    assert 0.7 < slopes["alpha"] < 1.0
    assert 0.45 < slopes["1 - beta2"] < 0.75
    assert abs(slopes["1 - beta1"]) < 0.3


def test_the_lms_study_measures_what_is_exact(tmp_path: Path) -> None:
    report = study_lms(chains=300, steps=300)
    for result in report.results["samplings"]:
        assert result.worst < 4.5, result.name  # standard errors, of 25 measurements
    largest = {result.name: result.largest_step for result in report.results["samplings"]}
    assert max(largest, key=largest.__getitem__) == "norm"
    variance = {r.name: r.limits.variance_times_n for r in report.results["samplings"]}
    assert variance["variance"] < variance["norm"]
    stability = report.results["stability"]
    assert stability[0.95][-1] < stability[0.95][0]
    assert stability[1.05][-1] > stability[1.05][100]
    write_report(tmp_path, report)
    assert {"curves.png", "samplings.png"} <= {path.name for path in tmp_path.iterdir()}
    assert len(written(tmp_path)["samplings"][0]["bias"]) == 300  # type: ignore[index]
    with pytest.raises(ConfigError, match="chains"):
        study_lms(chains=1)


ROWS = make_rows(Shape(1200, 200, 8))


def best_losses(shape: Shape, method: str, sizes: tuple[int, ...]) -> list[float]:
    """After one pass with batches of these sizes, at the best of the steps 2, 4, 8 and 16."""
    train, test = split_half(make_rows(shape))
    return [
        min(
            objective(test, train_alone(train, Plan(method, size, lr)))
            for lr in (2.0, 4.0, 8.0, 16.0)
        )
        for size in sizes
    ]


def test_adabatch_gains_from_large_batches_where_plain_ones_lose() -> None:
    shape = Shape(4000, 500, 10)
    adabatch = best_losses(shape, "adabatch", (8, 32, 128))
    plain = best_losses(shape, "minibatch", (8, 32, 128))
    assert adabatch == sorted(adabatch, reverse=True)
    assert plain == sorted(plain)
    assert adabatch[-1] < plain[-1] - 0.05


@pytest.mark.slow
def test_adabatch_gains_up_to_batches_of_512() -> None:
    """At 10,000 rows to train on, single samples included."""
    adabatch = best_losses(SHAPES["small"], "adabatch", (1, 8, 64, 512))
    plain = best_losses(SHAPES["small"], "minibatch", (8, 64, 512))
    assert adabatch == sorted(adabatch, reverse=True)
    assert [adabatch[0], *plain] == sorted([adabatch[0], *plain])  # of one sample both are the same


def test_shared_memory_with_one_worker_is_adabatch() -> None:
    plans = [Plan(method, 32, 2.0) for method in ("adabatch", "adabatch-shared")]
    one, other = (train_alone(ROWS, plan) for plan in plans)
    torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_the_adabatch_study_runs_every_method_with_workers(tmp_path: Path) -> None:
    train, test = split_half(ROWS)
    report = study_adabatch(train, test, batch_sizes=(1, 30), workers=(1, 2), passes=1)
    found = report.results["workers"]
    assert [(r.plan.method, r.plan.workers) for r in found] == [
        (method, count) for method in METHODS for count in (1, 2)
    ]
    assert all(0 < r.passes[-1].objective < math.log(2) for r in found)
    by_workers = {
        r.plan.workers: r.passes[-1].objective for r in found if r.plan.method == "adabatch"
    }
    assert by_workers[2] == pytest.approx(by_workers[1], rel=0.05)
    write_report(tmp_path, report)
    assert {"batch-sizes.png", "workers.png"} <= {path.name for path in tmp_path.iterdir()}


def test_the_adabatch_study_refuses_bad_input() -> None:
    train, test = split_half(ROWS)
    with pytest.raises(ConfigError, match="1 or more"):
        study_adabatch(train, test, batch_sizes=(0,))
    with pytest.raises(ConfigError, match="width"):
        study_adabatch(train, make_rows(Shape(20, 30, 4)))
