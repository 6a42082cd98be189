"""AdaBatch: what it averages, around other optimisers, and with bad input.

Recorded runs are a parity case.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sonorant.errors import ConfigError
from sonorant.optim.adabatch import AdaBatch, AdaBatchWrapper
from sonorant.optim.adam import Adagrad
from sonorant.optim.sample_sums import SumBuffers, coordinate_gain, samples_of


def entries(coordinates: list[int], values: list[float], size: int = 4) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor([coordinates]), torch.tensor(values), (size,))


def parameter(size: int = 4) -> nn.Parameter:
    return nn.Parameter(torch.zeros(size))


def test_coordinates_are_averaged_over_the_samples_that_touch_them() -> None:
    weight = parameter()
    optimiser = AdaBatch([weight], lr=1.0)
    for _ in range(2):  # nothing of the first step is left in the second
        weight.grad = entries([3, 1, 3, 3], [1.0, 5.0, 2.0, 3.0])
        optimiser.step()
    assert weight.tolist() == [0.0, -10.0, 0.0, -4.0]


@pytest.mark.parametrize("size", [10, 10_000])  # few and many coordinates for each entry
def test_sums_name_each_coordinate_once(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    coordinates = torch.randint(size, (40,), generator=generator) % 7 + size - 7
    values = torch.randn(40, generator=generator, dtype=torch.float64)
    gradient = torch.sparse_coo_tensor(coordinates[None], values, (size,))
    sums = SumBuffers(torch.zeros(size, dtype=torch.float64), 1).collect(samples_of(gradient))
    order = sums.coordinates.argsort()
    assert torch.equal(sums.coordinates[order], coordinates.unique())
    assert torch.equal(sums.counts[order].long(), coordinates.bincount(minlength=size)[-7:])
    torch.testing.assert_close(sums.totals[order], gradient.to_dense()[-7:])


def test_an_embedding_counts_how_often_each_row_is_looked_up() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    before = table.weight.detach().clone()
    optimiser = AdaBatch(table.parameters(), lr=0.5)
    table(torch.tensor([1, 1, 1, 4])).sum().backward()  # gradient 1 in each look-up
    optimiser.step()
    moved = torch.tensor([0.0, -0.5, 0.0, 0.0, -0.5])[:, None].expand(5, 2)
    torch.testing.assert_close(table.weight.detach() - before, moved)


def test_dense_gradients_are_averaged_over_all_samples() -> None:
    bias = nn.Parameter(torch.tensor(0.0))
    optimiser = AdaBatch([bias], lr=1.0)
    bias.grad = torch.tensor(6.0)
    with pytest.raises(ConfigError, match="samples="):
        optimiser.step()
    optimiser.step(samples=3)
    assert bias.item() == -2.0


def test_a_gradient_sparse_in_both_dimensions() -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    optimiser = AdaBatchWrapper(torch.optim.SGD([weight], lr=1.0))
    where = torch.tensor([[1, 1, 0], [2, 2, 0]])
    weight.grad = torch.sparse_coo_tensor(where, torch.tensor([2.0, 4.0, 1.0]), (2, 3))
    optimiser.step()
    assert weight.tolist() == [[-1.0, 0.0, 0.0], [0.0, 0.0, -3.0]]


WRAPPED: list[Callable[[nn.Parameter], Optimizer]] = [
    lambda weight: torch.optim.SGD([weight], lr=0.1),
    lambda weight: torch.optim.SparseAdam([weight], lr=0.1),
    lambda weight: Adagrad([weight], lr=0.1),
]


@pytest.mark.parametrize("make", WRAPPED)
def test_the_wrapper_gives_any_optimiser_the_means(make: Callable[..., Optimizer]) -> None:
    ours, theirs = parameter(), parameter()
    wrapped, plain = AdaBatchWrapper(make(ours)), make(theirs)
    for step in range(3):
        ours.grad = entries([0, 2, 2, step], [1.0, 2.0, 6.0, 4.0])
        sums = SumBuffers(ours, 1).collect(samples_of(ours.grad))
        theirs.grad = torch.sparse_coo_tensor(sums.coordinates[None], sums.means, (4,)).coalesce()
        wrapped.step()
        plain.step()
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, torch.zeros(4))


def test_the_wrapper_is_saved_and_scheduled_as_what_it_wraps() -> None:
    weight = parameter()
    wrapper = AdaBatchWrapper(Adagrad([weight], lr=1.0))
    schedule = torch.optim.lr_scheduler.StepLR(wrapper, 1, gamma=0.5)
    weight.grad = entries([0], [1.0])
    wrapper.step()
    schedule.step()
    assert wrapper.param_groups[0]["lr"] == 0.5
    other = AdaBatchWrapper(Adagrad([weight], lr=1.0))
    other.load_state_dict(copy.deepcopy(wrapper.state_dict()))
    assert other.param_groups[0]["lr"] == 0.5
    assert other.optimizer.state[weight]["square_sum"].tolist() == [1.0, 0.0, 0.0, 0.0]
    wrapper.zero_grad()
    assert weight.grad is None


def test_the_expected_step_is_the_gradient_times_the_gain() -> None:
    chance, batch, runs = 0.2, 3, 40_000
    generator = torch.Generator().manual_seed(0)
    touched = (torch.rand(runs, batch, generator=generator) < chance).double()
    values = torch.randn(runs, batch, generator=generator) + 1
    counts = touched.sum(1)
    steps = (touched * values).sum(1) / counts.clamp(min=1)
    gain = coordinate_gain(torch.tensor([chance], dtype=torch.float64), batch).item()
    assert steps.mean().item() == pytest.approx(gain * chance, rel=0.03)  # gradient: chance * 1
    with pytest.raises(ConfigError, match="chance"):
        coordinate_gain(torch.tensor([0.0]), 2)


def test_one_sample_is_plain_gradient_descent() -> None:
    ours, theirs = parameter(), parameter()
    for weight, optimiser in (
        (ours, AdaBatch([ours], 0.3)),
        (theirs, torch.optim.SGD([theirs], 0.3)),
    ):
        weight.grad = entries([0, 3], [1.5, -2.0])
        optimiser.step()
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    first, second = parameter(), parameter()
    optimiser = AdaBatch([first, second], 1.0)
    first.grad, second.grad = entries([0], [1.0]), entries([1, 2], [1.0, bad])
    with pytest.raises(ConfigError, match=r"parameter 1 .*not finite"):
        optimiser.step()
    assert not first.any()
    first.grad = second.grad = entries([0], [1.0])  # the sums of the failed step are gone
    optimiser.step()
    assert first.tolist() == second.tolist() == [-1.0, 0.0, 0.0, 0.0]


def test_refuses_bad_input() -> None:
    weight = parameter()
    weight.grad = entries([0, 0, 1], [1.0, 2.0, 3.0]).coalesce()
    with pytest.raises(ConfigError, match="coalesced"):
        AdaBatch([weight]).step()
    with pytest.raises(ConfigError, match="no parameters"):
        AdaBatch([])
    with pytest.raises(ConfigError, match="no parameters"):
        AdaBatch([{"params": []}])
    with pytest.raises(ConfigError, match="learning rate"):
        AdaBatch([weight], lr=float("nan"))
    with pytest.raises(ConfigError, match="contiguous"):
        AdaBatch([nn.Parameter(torch.zeros(3, 2).T)])
    for dtype in (torch.int64, torch.complex64):
        with pytest.raises(ConfigError, match="float32 or float64"):
            AdaBatch([nn.Parameter(torch.zeros(2, dtype=dtype), requires_grad=False)])
