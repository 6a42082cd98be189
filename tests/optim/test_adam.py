"""Adam and Adagrad of the proof: against torch, sparse, resumed, and with bad input.

Recorded runs are a parity case.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sonorant.errors import ConfigError
from sonorant.optim.adam import Adagrad, Adam, adam_step_size

Factory = Callable[[list[nn.Parameter]], Optimizer]
MAKERS: list[Factory] = [
    lambda parameters: Adam(parameters, 0.01),
    lambda parameters: Adam(parameters, 0.01, (0.0, 0.99)),
    lambda parameters: Adagrad(parameters, 0.1),
    lambda parameters: Adagrad(parameters, 0.1, momentum=0.9),
]


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (4,), ())]


def run(optimiser: Optimizer, weights: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimiser.step()


def test_original_corrections_follow_torch_where_eps_does_not_matter() -> None:
    ours, theirs = parameters(), parameters()
    run(Adam(ours, 0.01, eps=1e-30, correct_first=True), ours, range(20))
    run(torch.optim.Adam(theirs, 0.01, eps=1e-15), theirs, range(20))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_adagrad_follows_torch_where_eps_does_not_matter() -> None:
    ours, theirs = parameters(), parameters()
    run(Adagrad(ours, 0.1, eps=1e-30), ours, range(20))
    run(torch.optim.Adagrad(theirs, 0.1, eps=1e-15), theirs, range(20))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_step_size_keeps_its_digits_for_beta2_near_1() -> None:
    beta2 = 1 - 1e-12
    steps = 1000
    exact = sum(beta2**step for step in range(steps)) ** 0.5
    assert adam_step_size(steps, 1.0, (0.0, beta2)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("make", MAKERS)
def test_large_tensors_are_updated_as_small_ones_are(make: Factory) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = nn.Parameter(torch.randn(7, 10_001, generator=generator))  # more than a block, uneven
    rows = [nn.Parameter(row.clone()) for row in whole.detach()]
    with_whole, with_rows = make([whole]), make(rows)
    for _ in range(3):
        # of another layout in memory than the parameter, as some gradients are
        whole.grad = torch.randn(10_001, 7, generator=generator).T
        for row, gradient in zip(rows, whole.grad, strict=True):
            row.grad = gradient.clone()
        with_whole.step()
        with_rows.step()
    torch.testing.assert_close(whole, torch.stack(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", MAKERS)
def test_resumes_from_a_state_dict_bit_for_bit(make: Factory) -> None:
    whole = parameters()
    run(make(whole), whole, range(6))
    halves = parameters()
    first = make(halves)
    run(first, halves, range(3))
    second = make(halves)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(second, halves, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))


@pytest.mark.parametrize("make", [MAKERS[1], MAKERS[2]])
@pytest.mark.parametrize("shape", [(5,), (5, 2)])  # the second has rows as an embedding's gradient
def test_sparse_gradients_do_as_dense_ones(make: Factory, shape: tuple[int, ...]) -> None:
    dense, sparse = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    with_dense, with_sparse = make([dense]), make([sparse])
    for step in range(4):
        rows = torch.tensor([[step, 1, 1]])  # a row named twice counts as the sum
        values = torch.randn((3, *shape[1:]), generator=torch.Generator().manual_seed(step))
        sparse.grad = torch.sparse_coo_tensor(rows, values, shape)
        dense.grad = sparse.grad.to_dense()
        with_dense.step()
        with_sparse.step()
    torch.testing.assert_close(sparse, dense, rtol=1e-6, atol=1e-7)
    assert not torch.equal(sparse, torch.ones(shape))


def test_refuses_sparse_gradients_with_momentum() -> None:
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2).to_sparse()
    with pytest.raises(ConfigError, match="momentum"):
        Adagrad([weight], momentum=0.5).step()


def test_steps_are_counted_for_each_parameter() -> None:
    seldom, often = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimiser = Adam([seldom, often], 0.1, (0.0, 0.9))
    for step in range(3):
        often.grad = torch.ones(1)
        seldom.grad = torch.ones(1) if step == 2 else None
        optimiser.step()
    assert seldom.item() == pytest.approx(0.9)  # a first step, of length lr
    assert often.item() == pytest.approx(0.7)


def test_a_closure_is_evaluated_with_gradients() -> None:
    weight = nn.Parameter(torch.tensor([2.0]))
    optimiser = Adagrad([weight], 0.5)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        return loss

    assert optimiser.step(closure).item() == 4.0
    assert weight.item() == pytest.approx(1.5)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(make: Factory, bad: float) -> None:
    weights = parameters()
    before = [weight.detach().clone() for weight in weights]
    optimiser = make(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    weights[1].grad = torch.tensor([0.0, bad, 0.0, 0.0])
    with pytest.raises(ConfigError, match=r"parameter 1 .*not finite"):
        optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights, strict=True))
    assert not optimiser.state


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.float16, torch.bfloat16])
def test_refuses_other_kinds_of_parameters(make: Factory, dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match="float32 or float64"):
        make([nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)])


@pytest.mark.parametrize("make", MAKERS)
def test_refuses_empty_groups(make: Factory) -> None:
    with pytest.raises(ConfigError, match="no parameters"):
        make([])
    optimiser = make(parameters())
    with pytest.raises(ConfigError, match="no parameters"):
        optimiser.add_param_group({"params": []})
    assert len(optimiser.param_groups) == 1


@pytest.mark.parametrize(
    "betas", [(-0.1, 0.9), (0.9, 0.9), (0.95, 0.9), (0.9, 1.0), (0.9, 1.1), (0.9, float("nan"))]
)
def test_adam_refuses_betas_out_of_range(betas: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match="beta2"):
        Adam(parameters(), betas=betas)


def test_refuses_other_values_out_of_range() -> None:
    with pytest.raises(ConfigError, match="beta1"):
        Adagrad(parameters(), momentum=1.0)
    with pytest.raises(ConfigError, match="learning rate"):
        Adagrad(parameters(), lr=-1.0)
    with pytest.raises(ConfigError, match="eps"):
        Adam(parameters(), eps=0.0)
