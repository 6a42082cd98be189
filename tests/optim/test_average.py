"""Averaged weights: the unbiased form, buffers, swapping, continuation."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sonorant.errors import CheckpointError, ConfigError
from sonorant.optim.average import AverageBank, ExponentialMovingAverage


class Module(nn.Module):
    """A weight used under two names, and each kind of buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.tied = self.weight
        self.register_buffer("codebook", torch.zeros(2))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def fill(self, value: float) -> None:
        with torch.no_grad():
            for tensor in (self.weight, self.codebook, self.steps, self.scratch):
                tensor.fill_(value)


@given(values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8), decay=st.floats(0, 1))
def test_is_the_weighted_mean_of_the_updates(values: list[float], decay: float) -> None:
    module = Module()
    module.fill(100)  # the start must leave no trace
    average = ExponentialMovingAverage(module, decay)
    for value in values:
        module.fill(value)
        average.update()
    weights = [decay**age for age in range(len(values))][::-1]
    mean = sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)
    with average.applied():
        for tensor in (module.weight, module.codebook):
            torch.testing.assert_close(
                tensor.detach(), torch.full((2,), mean), atol=1e-4, rtol=1e-4
            )
        assert module.steps == int(values[-1])
        assert (module.scratch == values[-1]).all()


def test_own_weights_return_even_after_an_error() -> None:
    module = Module()
    average = ExponentialMovingAverage(module, 0.5)
    average.update()
    module.fill(3)
    weight = module.weight

    def fail_inside() -> None:
        with average.applied():
            assert (module.weight == 0).all()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert module.weight is weight
    for tensor in (module.weight, module.codebook):
        assert (tensor == 3).all()


def test_follows_a_module_that_learns() -> None:
    module = nn.Linear(3, 1)
    average = ExponentialMovingAverage(module, 0.9)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    x = torch.ones(1, 3)
    for _ in range(5):
        optimizer.zero_grad()
        module(x).square().mean().backward()
        optimizer.step()
        average.update()
    with average.applied():
        averaged = module(x).item()
    assert abs(averaged) > abs(module(x).item())  # it lags behind
    assert module.weight.requires_grad


def test_continues_exactly_from_its_state(tmp_path: Path) -> None:
    module, other = Module(), Module()
    whole, resumed = (ExponentialMovingAverage(m, 0.9) for m in (module, other))
    for value in (1.0, 2.0):
        module.fill(value)
        whole.update()
    torch.save(whole.state_dict(), tmp_path / "average.pt")
    resumed.load_state_dict(torch.load(tmp_path / "average.pt", weights_only=True))
    module.fill(5)
    other.fill(5)
    whole.update()
    resumed.update()
    with whole.applied(), resumed.applied():
        assert torch.equal(module.weight, other.weight)
        assert not torch.equal(module.weight, torch.full((2,), 5.0))


def test_the_saved_state_does_not_change_afterwards() -> None:
    module = Module()
    average = ExponentialMovingAverage(module, 0.9)
    state = average.state_dict()
    module.fill(1)
    average.update()
    assert (state["averages"]["weight"] == 0).all()


def test_averages_of_another_module_are_refused() -> None:
    average = ExponentialMovingAverage(Module(), 0.9)
    with pytest.raises(CheckpointError, match="another module"):
        average.load_state_dict(ExponentialMovingAverage(nn.Linear(2, 2), 0.9).state_dict())


def test_impossible_decay_is_refused() -> None:
    with pytest.raises(ConfigError, match="decay"):
        ExponentialMovingAverage(Module(), 1.5)


def test_a_bank_updates_each_kind_in_its_time() -> None:
    module = Module()
    bank = AverageBank(module, step_decays=(0.5,), epoch_decays=(0.9,))
    assert not bank.ready
    for value in (1.0, 4.0):
        module.fill(value)
        bank.step()
    assert list(bank.ready) == ["step_0.5"]
    bank.epoch()
    assert list(bank.ready) == ["step_0.5", "epoch_0.9"]
    for name, expected in (("step_0.5", 3.0), ("epoch_0.9", 4.0)):
        with bank.averages[name].applied():
            assert module.weight[0].item() == pytest.approx(expected)


def test_a_bank_continues_only_the_same_bank() -> None:
    module = Module()
    bank, other = AverageBank(module, (0.5,), ()), AverageBank(module, (0.9,), ())
    module.fill(3)
    bank.step()
    again = AverageBank(module, (0.5,), ())
    again.load_state_dict(bank.state_dict())
    assert list(again.ready) == ["step_0.5"]
    with pytest.raises(CheckpointError, match="has the averages"):
        other.load_state_dict(bank.state_dict())
