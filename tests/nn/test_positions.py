"""Positions: published formulas, and what makes rotary ones relative."""

import math

import torch

from sonorant.nn.positions import rotation, sinusoidal


def test_sinusoidal_positions_by_hand() -> None:
    """Exponents reach 1; cosines stand before sines."""
    position = 3
    expected = [
        *(math.cos(position / 100.0 ** (i / 2)) for i in range(3)),
        *(math.sin(position / 100.0 ** (i / 2)) for i in range(3)),
    ]
    ours = sinusoidal(torch.tensor([[position]]), 6, max_period=100.0)
    torch.testing.assert_close(ours, torch.tensor([[expected]]))


def test_rotary_positions_turn_neighbouring_channels() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    turned = rotation(torch.tensor([[2]]), 4, max_period=100.0).turn(x).flatten()
    slow = 2 / 100.0**0.5
    expected = [math.cos(2), math.sin(2), -math.sin(slow), math.cos(slow)]
    torch.testing.assert_close(turned, torch.tensor(expected))


def test_rotated_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(1, 1, 2, 8), torch.randn(1, 1, 2, 8)

    def product(query: int, key: int) -> torch.Tensor:
        turned = rotation(torch.tensor([[query]]), 8).turn(q)
        return (turned * rotation(torch.tensor([[key]]), 8).turn(k)).sum(-1)

    torch.testing.assert_close(product(9, 4), product(105, 100), rtol=1e-4, atol=1e-5)


def test_every_row_has_its_own_positions() -> None:
    x = torch.randn(2, 3, 2, 8)
    positions = torch.tensor([[0, 1, 2], [70, 71, 72]])
    turned = rotation(positions, 8).turn(x)
    assert torch.equal(turned[1:], rotation(positions[1:], 8).turn(x[1:]))
    torch.testing.assert_close(turned[0, 0], x[0, 0])
