"""Augmentations: which axes share a draw, what is kept, and what cannot be done."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sonorant.errors import ConfigError, ShapeError
from sonorant.separation.augment import (
    Augmentation,
    augment,
    flip_channels,
    flip_signs,
    remix,
    scale,
    shift,
    without_chance,
)


def numbered(batch: int = 8, sources: int = 4, time: int = 64) -> Tensor:
    """Stems of which every sample tells where it comes from."""
    return torch.arange(batch * sources * 2 * time, dtype=torch.float32).view(
        batch, sources, 2, time
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(together=st.booleans(), seed=st.integers(0, 99))
def test_shift_cuts_the_same_extract_of_both_channels(together: bool, seed: int) -> None:
    stems = numbered()
    shifted = shift(stems, 16, together, seeded(seed))
    offsets = shifted[..., 0] - stems[..., 0]
    assert torch.equal(shifted, stems[..., :48] + offsets[..., None])
    assert bool((offsets[..., 0] == offsets[..., 1]).all())
    assert int(offsets.min()) >= 0
    assert int(offsets.max()) < 16
    assert together == bool((offsets == offsets[:, :1]).all())


def test_flips_change_whole_stems_one_by_one() -> None:
    stems = numbered() + 1
    swapped = (flip_channels(stems, seeded()) == stems.flip(2)).all(dim=(2, 3))
    signs = flip_signs(stems, seeded()) / stems
    assert swapped.unique().tolist() == [False, True]
    assert signs.unique().tolist() == [-1.0, 1.0]
    assert torch.equal(signs, signs[..., :1, :1].expand_as(signs))


def test_mono_has_no_channels_to_flip() -> None:
    mono = torch.randn(3, 2, 1, 8)
    assert torch.equal(flip_channels(mono), mono)


def test_gains_lie_in_the_range_and_differ_between_sources() -> None:
    gains = scale(torch.ones(50, 4, 2, 3), 0.25, 1.25, seeded())
    assert torch.equal(gains, gains[..., :1, :1].expand_as(gains))
    assert 0.25 <= float(gains.min()) < 0.3
    assert 1.2 < float(gains.max()) <= 1.25
    assert len(gains.unique()) == 200


@given(seed=st.integers(0, 99))
def test_remix_permutes_each_source_within_its_group(seed: int) -> None:
    stems = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 4, 2, 3)
    mixed = remix(stems, 4, seeded(seed))[:, :, 0, 0]
    for source in mixed.unbind(1):
        assert source[:4].sort().values.tolist() == [0, 1, 2, 3]
        assert source[4:].sort().values.tolist() == [4, 5, 6, 7]


def test_sources_are_remixed_independently() -> None:
    stems = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 4, 2, 3)
    assert len({tuple(row.tolist()) for row in remix(stems, 8, seeded())[:, :, 0, 0].T}) == 4


def test_everything_off_leaves_the_stems() -> None:
    nothing = Augmentation(
        shift_samples=0, flip_channels=False, flip_signs=False, scale=None, remix_group=0
    )
    assert torch.equal(augment(numbered(), nothing), numbered())


def test_never_scaled_nor_remixed_with_probability_zero() -> None:
    still = Augmentation(
        shift_samples=0,
        flip_channels=False,
        flip_signs=False,
        scale_probability=0.0,
        remix_probability=0.0,
    )
    assert torch.equal(augment(numbered(), still, seeded()), numbered())


def test_the_same_seed_gives_the_same_stems() -> None:
    config = Augmentation(shift_samples=16)
    assert torch.equal(
        augment(numbered(), config, seeded(1)), augment(numbered(), config, seeded(1))
    )
    assert not torch.equal(
        augment(numbered(), config, seeded(1)), augment(numbered(), config, seeded(2))
    )


def test_signs_come_first_in_the_order_of_v2() -> None:
    stems = torch.randn(8, 4, 2, 32)
    v3 = Augmentation(shift_samples=0, scale=None, remix_group=0)
    v2 = Augmentation(shift_samples=0, scale=None, remix_group=0, signs_before_channels=True)
    generator = seeded()
    expected = flip_channels(flip_signs(stems, generator), generator)
    assert torch.equal(augment(stems, v2, seeded()), expected)
    assert not torch.equal(augment(stems, v3, seeded()), expected)


def test_evaluation_only_cuts() -> None:
    config = Augmentation(shift_samples=16)
    assert torch.equal(without_chance(numbered(), config), numbered()[..., :48])


def test_refuses_what_cannot_be_done() -> None:
    with pytest.raises(ShapeError, match="multiple of the group"):
        remix(numbered(6), 4)
    with pytest.raises(ShapeError, match="cannot be shifted"):
        shift(numbered(), 64)
    with pytest.raises(ConfigError, match="low to high"):
        Augmentation(scale=(1.0, 0.5))
