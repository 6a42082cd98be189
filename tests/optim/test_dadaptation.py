"""D-Adaptation Adam: continuation and bad input; its numbers are a parity case."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from sonorant.errors import ConfigError
from sonorant.optim.dadaptation import DAdaptAdam


def run(optimiser: DAdaptAdam, weight: nn.Parameter, steps: int) -> None:
    for _ in range(steps):
        weight.grad = weight.detach() - 5
        optimiser.step()


def test_resumes_from_a_state_dict_bit_for_bit() -> None:
    whole, halves = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    run(DAdaptAdam([whole]), whole, 10)
    first = DAdaptAdam([halves])
    run(first, halves, 5)
    second = DAdaptAdam([halves])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.distance == first.distance > 1e-6
    run(second, halves, 5)
    assert torch.equal(whole, halves)


def test_the_distance_grows_no_faster_than_asked() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimiser = DAdaptAdam([weight], growth_rate=1.1)
    run(optimiser, weight, 10)
    assert 1e-6 < optimiser.distance <= 1e-6 * 1.1**10 * (1 + 1e-9)


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimiser = DAdaptAdam([weight])
    weight.grad = torch.tensor([float("nan")])
    with pytest.raises(ConfigError, match="not finite"):
        optimiser.step()
    assert weight.item() == 0
    assert not optimiser.state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"lr": -1.0}, "learning rate"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"initial_distance": 0.0}, "initial_distance"),
        ({"growth_rate": 1.0}, "growth_rate"),
    ],
)
def test_refuses_values_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DAdaptAdam([nn.Parameter(torch.zeros(1))], **options)


def test_refuses_empty_groups_and_groups_of_different_rates() -> None:
    with pytest.raises(ConfigError, match="no parameters"):
        DAdaptAdam([])
    optimiser = DAdaptAdam([nn.Parameter(torch.zeros(1))])
    with pytest.raises(ConfigError, match="same lr"):
        optimiser.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.5})
