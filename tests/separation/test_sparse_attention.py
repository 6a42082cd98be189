import pytest
import torch

from sonorant.separation.sparse_attention import SparseConfig, similar_pairs


def seen(config: SparseConfig, queries: int, keys: int) -> torch.Tensor:
    return config.visible(torch.zeros(1, 1, queries, 4), torch.zeros(1, 1, keys, 4))


def test_a_diagonal_follows_the_place_in_the_other_sequence() -> None:
    shown = seen(SparseConfig(patterns=("diagonal",), window=1), 3, 6)
    assert shown.int().tolist() == [[1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]]


def test_triangular_distances_grow() -> None:
    shown = seen(SparseConfig(patterns=("triangular",)), 12, 12)
    assert shown[0].nonzero().flatten().tolist() == [0, 1, 3, 6, 10]
    assert torch.equal(shown, shown.t())


def test_a_global_window_sees_and_is_seen() -> None:
    shown = seen(SparseConfig(patterns=("global",), global_window=2), 8, 4)
    assert shown[:, :2].all()
    assert shown[:4].all()
    assert not shown[4:, 2:].any()


def test_random_pairs_come_from_the_seed() -> None:
    config = SparseConfig(patterns=("random",), sparsity=0.8)
    assert torch.equal(seen(config, 50, 50), seen(config, 50, 50))
    assert float(seen(config, 50, 50).float().mean()) == pytest.approx(0.2, abs=0.03)
    other = SparseConfig(patterns=("random",), sparsity=0.8, seed=1)
    assert not torch.equal(seen(config, 50, 50), seen(other, 50, 50))


def test_patterns_are_united() -> None:
    both = seen(SparseConfig(patterns=("diagonal", "global"), window=1, global_window=1), 6, 6)
    diagonal = seen(SparseConfig(patterns=("diagonal",), window=1), 6, 6)
    assert both[:, 0].all()
    assert torch.equal(both[1:, 1:], diagonal[1:, 1:])


def test_hashing_finds_similar_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(1, 1, 40, 8, generator=generator)
    order = torch.randperm(40, generator=generator)
    torch.manual_seed(0)
    shown = similar_pairs(k[:, :, order], k, sparsity=0.9)
    assert shown[0, 0, torch.arange(40), order].all()
    assert 0.02 < float(shown.float().mean()) < 0.15
    assert shown.any(dim=-1).all()
