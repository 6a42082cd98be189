"""The penalty on singular values: what counts, its value, its gradient."""

import pytest
import torch
from torch import Tensor, nn

from sonorant.separation.weight_penalty import SingularValuePenalty, penalty

ALL = SingularValuePenalty(min_size_mb=0.0)


def largest(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix.detach().flatten(1))[0]


def test_sums_the_squared_largest_values_of_all_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(3, 5, 4), nn.LSTM(5, 5), nn.Linear(5, 2))
    weights = [tensor for tensor in model.parameters() if tensor.ndim > 1]
    expected = sum(largest(weight) ** 2 for weight in weights)
    assert float(penalty(model, ALL).detach()) == pytest.approx(float(expected), rel=1e-5)


def test_small_weights_do_not_count() -> None:
    model = nn.Linear(512, 512, bias=False)  # 2^18 values: 1 MB
    assert float(penalty(model, SingularValuePenalty(min_size_mb=1.0)).detach()) > 0
    assert float(penalty(model, SingularValuePenalty(min_size_mb=1.01))) == 0


@pytest.mark.parametrize("transposed", [True, False])
def test_transposed_convolutions_may_be_turned(transposed: bool) -> None:
    layer = nn.ConvTranspose2d(4, 3, (2, 5))
    weight = layer.weight.transpose(0, 1) if transposed else layer.weight
    config = SingularValuePenalty(min_size_mb=0.0, transposed=transposed)
    expected = float(largest(weight)) ** 2
    assert float(penalty(layer, config).detach()) == pytest.approx(expected, rel=1e-5)


def test_a_low_rank_finds_the_value_and_gradient_of_the_whole() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(80, 60, bias=False)
    with torch.no_grad():
        layer.weight += 0.5 * torch.outer(torch.randn(60), torch.randn(80))
    exact, low = (SingularValuePenalty(min_size_mb=0, rank=rank) for rank in (60, 8))
    values = [penalty(layer, config) for config in (exact, low)]
    gradients = [torch.autograd.grad(value, layer.weight)[0] for value in values]
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-2, atol=1e-3)
