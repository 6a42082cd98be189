"""Adversarial losses: values by hand, and what they are indifferent to."""

import pytest
import torch
from torch import Tensor

from sonorant.errors import ShapeError
from sonorant.losses.adversarial import (
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    hinge_generator_loss,
    relative_feature_matching_loss,
)

REAL = [torch.tensor([3.0, 0.5]), torch.tensor([[-1.0]])]
FAKE = [torch.tensor([-2.0, 0.0]), torch.tensor([[1.0]])]


def maps(seed: int) -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(2, 4, 5, size, generator=generator) for size in (7, 3)] for _ in range(2)]


def test_losses_by_hand() -> None:
    # First: real 0 and 0.5, mean 0.25; fake 0 and 1, mean 0.5. Second: real 2, fake 2.
    torch.testing.assert_close(discriminator_loss(REAL, FAKE), torch.tensor((0.75 + 4.0) / 2))
    torch.testing.assert_close(generator_loss(FAKE), torch.tensor((1.0 - 1.0) / 2))
    # First: 3 and 1; second: 0.
    torch.testing.assert_close(hinge_generator_loss(FAKE), torch.tensor((2.0 + 0.0) / 2))


def test_sure_and_right_discriminators_have_no_loss() -> None:
    sure = [torch.full((2, 3), 1.5)]
    assert discriminator_loss(sure, [-logits for logits in sure]) == 0
    assert hinge_generator_loss(sure) == 0


def test_feature_matching_averages_over_maps_whatever_their_sizes() -> None:
    real = [[torch.zeros(1, 1, 2, 100), torch.zeros(1, 1, 2, 2)]]
    fake = [[torch.full((1, 1, 2, 100), 1.0), torch.full((1, 1, 2, 2), -3.0)]]
    torch.testing.assert_close(feature_matching_loss(real, fake), torch.tensor(2.0))


def test_relative_feature_matching_by_hand() -> None:
    real = [[torch.full((1, 1, 2, 2), 2.0)], [torch.full((1, 1, 2, 2), -10.0)]]
    fake = [[torch.full((1, 1, 2, 2), 3.0)], [torch.full((1, 1, 2, 2), -5.0)]]
    torch.testing.assert_close(relative_feature_matching_loss(real, fake), torch.tensor(0.5))


def test_relative_feature_matching_does_not_mind_loud_maps() -> None:
    real, fake = maps(0), maps(1)
    expected = relative_feature_matching_loss(real, fake)
    real[0][0], fake[0][0] = 100 * real[0][0], 100 * fake[0][0]
    torch.testing.assert_close(relative_feature_matching_loss(real, fake), expected)


def test_relative_feature_matching_of_dead_maps_is_finite() -> None:
    dead = [[torch.zeros(1, 4, 2, 2, requires_grad=True)]]
    loss = relative_feature_matching_loss([[dead[0][0].detach()]], dead)
    (gradient,) = torch.autograd.grad(loss, dead[0][0])
    assert gradient.isfinite().all()


def test_a_repeated_discriminator_changes_nothing() -> None:
    real, fake = maps(0), maps(1)
    torch.testing.assert_close(
        discriminator_loss(2 * REAL, 2 * FAKE), discriminator_loss(REAL, FAKE)
    )
    torch.testing.assert_close(generator_loss(2 * FAKE), generator_loss(FAKE))
    torch.testing.assert_close(
        feature_matching_loss(2 * real, 2 * fake), feature_matching_loss(real, fake)
    )


def test_lists_of_different_discriminators_are_refused() -> None:
    with pytest.raises(ShapeError, match="same sub-discriminators"):
        discriminator_loss(REAL, FAKE[:1])
    with pytest.raises(ShapeError, match="at least one"):
        generator_loss([])
