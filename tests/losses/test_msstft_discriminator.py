"""The MS-STFT discriminator: layout, stereo, gradients, learning. Values: tests/parity."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim import Adam

from sonorant.errors import CheckpointError, ConfigError, ShapeError
from sonorant.losses.adversarial import discriminator_loss
from sonorant.losses.msstft_checkpoint import discriminator_from_official, discriminator_to_official
from sonorant.losses.msstft_discriminator import MSSTFTDiscriminator, MSSTFTDiscriminatorConfig

KEYS = Path(__file__).parent.parent / "fixtures/codecs/keys/msstftd-default-5scales.json"
SMALL = MSSTFTDiscriminatorConfig(filters=4, n_ffts=(64, 32))


def small(in_channels: int = 1) -> MSSTFTDiscriminator:
    torch.manual_seed(0)
    return MSSTFTDiscriminator(
        MSSTFTDiscriminatorConfig(filters=4, n_ffts=(64, 32), in_channels=in_channels)
    )


def test_the_published_key_list_maps_both_ways() -> None:
    listed = {name: tuple(entry) for name, entry in json.loads(KEYS.read_text()).items()}
    model = MSSTFTDiscriminator()
    official = discriminator_to_official(model)
    described = {
        name: (*tensor.shape, str(tensor.dtype).removeprefix("torch."))
        for name, tensor in official.items()
    }
    assert described == listed
    back = discriminator_from_official(model, official)
    assert back.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(back[name], tensor)


def test_checkpoints_of_other_discriminators_are_refused() -> None:
    model = small()
    official = discriminator_to_official(model)
    name = "discriminators.0.convs.0.conv.weight"
    with pytest.raises(CheckpointError, match=r"missing \[discriminators.0.convs.0.conv.weight\]"):
        discriminator_from_official(model, {k: v for k, v in official.items() if k != name})
    with pytest.raises(CheckpointError, match="another size"):
        discriminator_from_official(model, official | {name: torch.zeros(5, 2, 3, 9)})
    window = "discriminators.1.spec_transform.window"
    with pytest.raises(CheckpointError, match="Hann"):
        discriminator_from_official(model, official | {window: torch.ones(32)})


def test_one_channel_judges_stereo_channel_by_channel() -> None:
    model = small()
    stereo = torch.randn(2, 2, 200)
    logits, features = model(stereo)
    for index, channel in enumerate(stereo.flatten(0, 1)):
        alone, alone_features = model(channel[None, None])
        for scale in range(2):
            torch.testing.assert_close(logits[scale][index], alone[scale][0])
            torch.testing.assert_close(features[scale][3][index], alone_features[scale][3][0])


@pytest.mark.parametrize("in_channels", [1, 2])
def test_gradients_reach_the_sound_and_every_weight(in_channels: int) -> None:
    model = small(in_channels)
    x = torch.randn(1, in_channels, 200, requires_grad=True)
    logits, _ = model(x)
    sum(scale.square().mean() for scale in logits).backward()
    for tensor in (x, *model.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


def test_silence_has_finite_gradients() -> None:
    model = small()
    x = torch.zeros(1, 1, 200, requires_grad=True)
    logits, features = model(x)
    loss = sum(scale.mean() for scale in logits) + sum(maps[-1].abs().mean() for maps in features)
    loss.backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 1, 63), (1, 1, 0), (200,), (1, 200)])
def test_sound_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError):
        small()(torch.zeros(shape))
    with pytest.raises(ShapeError, match="batch, 2, time"):
        small(in_channels=2)(torch.zeros(1, 1, 200))


@pytest.mark.parametrize("values", [{"n_ffts": ()}, {"hop_lengths": (16,)}])
def test_impossible_configs_are_refused(values: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ConfigError):
        MSSTFTDiscriminatorConfig(**values)  # type: ignore[arg-type]


def test_learns_to_tell_tones_from_noise() -> None:
    model = small()
    optimizer = Adam(model.parameters(), 1e-2, (0.5, 0.9))
    generator = torch.Generator().manual_seed(0)

    def sounds() -> tuple[Tensor, Tensor]:
        frequency = 0.1 + torch.rand(4, 1, 1, generator=generator)
        noise = torch.randn(4, 1, 200, generator=generator)
        return (frequency * torch.arange(200)).sin(), 0.7 * noise

    losses = []
    for _ in range(20):
        real, fake = sounds()
        loss = discriminator_loss(model(real)[0], model(fake)[0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2, abs=0.5)  # knows nothing yet
    assert losses[-1] < 0.5


def test_even_kernels_strides_in_time_and_several_logits_are_possible() -> None:
    config = MSSTFTDiscriminatorConfig(
        filters=2,
        n_ffts=(32,),
        kernel_size=(2, 4),
        time_stride=2,
        dilations=(1, 2),
        out_channels=3,
    )
    x = torch.randn(1, 1, 32 + 8 * 40, generator=torch.Generator().manual_seed(0))
    logits, features = MSSTFTDiscriminator(config)(x)
    # 41 frames and 17 frequencies; padding (k - 1) * dilation // 2 on both sides.
    sizes = [tuple(image.shape[1:]) for image in features[0]]
    assert sizes == [(2, 40, 16), (2, 20, 8), (2, 10, 4), (2, 9, 3)]
    assert logits[0].shape == (1, 3, 8, 2)
