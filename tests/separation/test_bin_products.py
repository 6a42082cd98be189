"""Transposed convolutions over bins as matrix products equal the layer they stand for."""

import pytest
import torch
from torch import nn

from sonorant.separation import bin_products


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("batch", "bins", "frames"), [(1, 8, 33), (3, 1, 1), (2, 5, 7)])
@pytest.mark.parametrize("stride", [2, 4])
def test_any_size_agrees(bias: bool, batch: int, bins: int, frames: int, stride: int) -> None:
    conv = nn.ConvTranspose2d(6, 3, (2 * stride, 1), (stride, 1), bias=bias)
    x = torch.randn(batch, 6, bins, frames)
    with torch.no_grad():
        assert bin_products.fits(x, conv)
        expected = conv(x)
        torch.testing.assert_close(bin_products.transposed_convolution(x, conv), expected)
        apart = x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)  # another order in memory
        torch.testing.assert_close(bin_products.transposed_convolution(apart, conv), expected)


@pytest.mark.parametrize(
    "conv",
    [
        nn.ConvTranspose2d(6, 3, (6, 1), (4, 1)),
        nn.ConvTranspose2d(6, 3, (8, 1), (4, 1), padding=(2, 0)),
        nn.ConvTranspose2d(6, 3, (8, 3), (4, 1)),
        nn.ConvTranspose2d(6, 6, (8, 1), (4, 1), groups=2),
        nn.ConvTranspose1d(6, 3, 8, 4),
    ],
)
def test_other_layers_do_not_fit(conv: nn.Module) -> None:
    with torch.no_grad():
        assert not bin_products.fits(torch.randn(1, 6, 8, 5), conv)


def test_training_takes_the_layer() -> None:
    conv = nn.ConvTranspose2d(6, 3, (8, 1), (4, 1))
    assert not bin_products.fits(torch.randn(1, 6, 8, 5), conv)
