"""Bit planes keep every value, and refuse what they cannot hold."""

import pytest
import torch

from sonorant.errors import FormatError, ShapeError
from sonorant.quantization.bit_planes import PLANES, SHORT_PLANES, Layout


@pytest.mark.parametrize("layout", [PLANES, SHORT_PLANES])
@pytest.mark.parametrize("bits", [1, 7, 15])
@pytest.mark.parametrize("count", [1, 33, 2048, 2049])
def test_unpacking_gives_the_values_back(layout: Layout, bits: int, count: int) -> None:
    values = torch.randint(0, 2**bits, (count,), dtype=torch.int16)
    assert torch.equal(layout.unpack(layout.pack(values, bits), count), values)


@pytest.mark.parametrize("layout", [PLANES, SHORT_PLANES])
def test_zeros_take_no_plane(layout: Layout) -> None:
    planes = layout.pack(torch.zeros(20, dtype=torch.int16), None)
    assert planes.numel() == 0
    assert torch.equal(layout.unpack(planes, 20), torch.zeros(20, dtype=torch.int16))


@pytest.mark.parametrize("values", [[8], [-1], [0.5]])
def test_values_that_do_not_fit_are_refused(values: list[float]) -> None:
    with pytest.raises(ShapeError):
        PLANES.pack(torch.tensor(values), 3)


@pytest.mark.parametrize("layout", [PLANES, SHORT_PLANES])
def test_planes_of_another_count_are_refused(layout: Layout) -> None:
    with pytest.raises(FormatError):
        layout.unpack(layout.pack(torch.ones(10, dtype=torch.int16), None), 5000)
