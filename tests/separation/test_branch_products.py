"""Residual branches as matrix products equal the layers they stand for."""

import pytest
import torch
from torch import nn

from sonorant.separation import branch_products
from sonorant.separation.branch_products import (
    add_gated,
    gate_in_place,
    gates_in_place,
    narrow,
    normalize,
)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def by_row(layer, x):
    rows = layer(x.transpose(1, 2).flatten(0, 1))
    return rows.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


@pytest.mark.parametrize("dilation", [1, 2, 4, 40])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_narrow_is_the_padded_convolution(dilation, kernel_size):
    padding = dilation * (kernel_size // 2)
    conv = nn.Conv1d(6, 2, kernel_size, dilation=dilation, padding=padding)
    x = torch.randn(2, 6, 3, 33)
    torch.testing.assert_close(narrow(x, conv), by_row(conv, x))


def test_normalize_is_the_group_norm_of_every_row():
    norm = nn.GroupNorm(1, 6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 33) * 5 + 20
    torch.testing.assert_close(normalize(x, norm), by_row(norm, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("piece", [16, 2**18])
def test_gated_pieces_are_the_layers_in_a_row(monkeypatch, with_norm, piece):
    monkeypatch.setattr(branch_products, "PIECE", piece)
    monkeypatch.setattr(branch_products, "FEWEST_STEPS", 1)
    widen, norm = nn.Conv1d(2, 12, 1), nn.GroupNorm(1, 12) if with_norm else nn.Identity()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x, h, scale = torch.randn(2, 6, 3, 11), torch.randn(2, 2, 3, 11), torch.randn(6)
    expected = x + by_row(nn.Sequential(widen, norm, nn.GLU(dim=1)), h) * scale[:, None, None]
    out = torch.empty_like(x)
    add_gated(x, h, widen, norm, scale, out)
    torch.testing.assert_close(out, expected)
    add_gated(x, h, widen, norm, scale, x)
    torch.testing.assert_close(x, expected)


def test_a_constant_row_gives_finite_results():
    widen, norm = nn.Conv1d(2, 12, 1), nn.GroupNorm(1, 12)
    x, h = torch.zeros(1, 6, 1, 11), torch.zeros(1, 2, 1, 11)
    add_gated(x, h, widen, norm, torch.ones(6), x)
    assert bool(torch.isfinite(x).all())


@pytest.mark.parametrize("piece", [16, 2**18])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_a_gated_mix_of_channels_is_written_over_its_input(monkeypatch, kind, piece):
    monkeypatch.setattr(branch_products, "PIECE", piece)
    monkeypatch.setattr(branch_products, "FEWEST_STEPS", 1)
    monkeypatch.setattr(branch_products, "LARGE", 0)
    widen = kind(6, 12, 1)
    x = torch.randn(2, 6, 11) if kind is nn.Conv1d else torch.randn(2, 6, 3, 11)
    expected = nn.functional.glu(widen(x), dim=1)
    assert gates_in_place(x, widen)
    assert gate_in_place(x, widen) is x
    torch.testing.assert_close(x, expected)


def test_small_tensors_and_layers_with_context_are_not_worked_off_in_pieces(monkeypatch):
    assert not gates_in_place(torch.randn(1, 6, 11), nn.Conv1d(6, 12, 1))
    monkeypatch.setattr(branch_products, "LARGE", 0)
    assert not gates_in_place(torch.randn(1, 6, 11), nn.Conv1d(6, 12, 3, padding=1))
    assert not gates_in_place(torch.randn(1, 11, 6).transpose(1, 2), nn.Conv1d(6, 12, 1))
