from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sonorant.codec.dependence import shuffled, total_correlation
from sonorant.errors import ShapeError

SIZE = 16


def tokens(frames: int, copied: float, seed: int, summed: bool = False) -> Tensor:
    """Three codebooks: the second copies the first with that probability; the third is their sum,
    or independent of them."""
    generator = torch.Generator().manual_seed(seed)
    first, own, third = torch.randint(SIZE, (3, frames), generator=generator)
    copies = torch.rand(frames, generator=generator) < copied
    second = torch.where(copies, first, own)
    return torch.stack([first, second, (first + second) % SIZE if summed else third])


def truth(copied: float) -> float:
    """Mutual information in bits of a token and its sometimes copy."""
    same = copied + (1 - copied) / SIZE
    other = (1 - copied) / SIZE
    noise = -same * math.log2(same) - (SIZE - 1) * other * math.log2(other) if other else 0.0
    return math.log2(SIZE) - noise


@pytest.mark.parametrize("copied", [0.4, 0.8])
def test_the_bound_is_close_to_the_truth_where_that_is_known(copied: float) -> None:
    found = total_correlation(tokens(12_000, copied, 0), tokens(6_000, copied, 1), SIZE)
    assert found.bits == pytest.approx(truth(copied), rel=0.1)
    assert found.gains[0] == 0
    assert found.gains[1] == pytest.approx(found.bits, abs=0.02)
    assert found.share == pytest.approx(found.bits / 12, rel=0.02)


def test_what_two_codebooks_tell_only_together_counts() -> None:
    train, held_out = (tokens(frames, 0.0, frames, summed=True) for frames in (12_000, 4_000))
    found = total_correlation(train, held_out, SIZE)
    assert abs(found.gains[1]) < 0.02
    assert found.gains[2] > 2  # of 4


def test_shuffled_codebooks_tell_nothing_of_each_other() -> None:
    train, held_out = tokens(10_000, 0.8, 0), tokens(4_000, 0.8, 1)
    assert torch.equal(shuffled(train).sort(dim=1).values, train.sort(dim=1).values)
    found = total_correlation(shuffled(train), shuffled(held_out), SIZE)
    assert abs(found.bits) < 0.02


def test_too_few_codebooks_are_an_error() -> None:
    with pytest.raises(ShapeError, match="two or more codebooks"):
        total_correlation(torch.zeros(1, 9).long(), torch.zeros(1, 9).long(), SIZE)
