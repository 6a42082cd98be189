"""The multi-period discriminator: what it sees, gradients, errors."""

import pytest
import torch

from sonorant.errors import ConfigError, ShapeError
from sonorant.losses.multi_period_discriminator import (
    MultiPeriodDiscriminator,
    MultiPeriodDiscriminatorConfig,
)

SMALL = MultiPeriodDiscriminatorConfig(periods=(2, 3), channels=(4, 8, 8))


def small() -> MultiPeriodDiscriminator:
    torch.manual_seed(0)
    return MultiPeriodDiscriminator(SMALL)


def test_has_the_published_number_of_weights() -> None:
    """HiFi-GAN's: five convolutions and the logits, per period; biases and norms included."""
    widths = [
        (1, 32, 5),
        (32, 128, 5),
        (128, 512, 5),
        (512, 1024, 5),
        (1024, 1024, 5),
        (1024, 1, 3),
    ]
    per_period = sum(into * out * kernel + 2 * out for into, out, kernel in widths)
    model = MultiPeriodDiscriminator()
    assert sum(weight.numel() for weight in model.parameters()) == 5 * per_period


def test_a_column_sees_every_pth_sample_only() -> None:
    model = small()
    x = torch.randn(1, 1, 60, requires_grad=True)
    logits, _ = model(x)
    logits[1][..., 1].sum().backward()  # period 3, phase 1
    assert x.grad is not None
    touched = x.grad[0, 0].nonzero().flatten()
    assert len(touched) == 20
    assert (touched % 3 == 1).all()


def test_features_end_with_the_logits() -> None:
    logits, features = small()(torch.randn(1, 1, 60))
    for scale, maps in zip(logits, features, strict=True):
        assert len(maps) == 4
        assert maps[-1] is scale


@pytest.mark.parametrize("time", [1, 2, 31])
def test_any_length_works_with_finite_gradients(time: int) -> None:
    model = small()
    x = torch.zeros(1, 1, time, requires_grad=True)
    logits, _ = model(x)
    sum(scale.square().mean() for scale in logits).backward()
    for tensor in (x, *model.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 1, 0), (1, 2, 60), (60,)])
def test_sound_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="takes"):
        small()(torch.zeros(shape))


@pytest.mark.parametrize("values", [{"periods": ()}, {"channels": ()}, {"kernel_size": 4}])
def test_impossible_configs_are_refused(values: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ConfigError):
        MultiPeriodDiscriminatorConfig(**values)  # type: ignore[arg-type]
