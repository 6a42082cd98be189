from __future__ import annotations

import pytest
import torch

from sonorant.audio import Audio
from sonorant.errors import AudioError, ConfigError
from sonorant.separation.bag import bag_of
from sonorant.separation.mixture import Level, LevelSums
from tests.separation.toys import Gains, ToyConfig


def sound(channels: int = 2, samples: int = 300, rate: int = 100) -> Audio:
    generator = torch.Generator().manual_seed(3)
    return Audio(0.1 * torch.randn(channels, samples, generator=generator) + 0.02, rate)


def test_stems_come_by_their_names_at_the_models_rate() -> None:
    stems = Gains(ToyConfig(gains=(0.3, 0.7))).separate(sound(rate=200))
    assert list(stems) == ["source0", "source1"]
    assert {stem.sample_rate for stem in stems.values()} == {100}
    assert stems["source0"].samples.shape == (2, 150)


def test_stems_are_as_loud_as_in_the_sound() -> None:
    audio = sound()
    stems = Gains(ToyConfig(gains=(1.0, 0.0))).separate(audio)
    torch.testing.assert_close(stems["source0"].samples, audio.samples)
    mean = audio.samples.mean(dim=0).mean()
    torch.testing.assert_close(stems["source1"].samples, torch.full((2, 300), float(mean)))


def test_silence_stays_silence() -> None:
    stems = Gains().separate(Audio(torch.zeros(2, 500), 100))
    assert all(bool((stem.samples == 0).all()) for stem in stems.values())


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_any_number_of_channels_is_taken(channels: int) -> None:
    audio = sound(channels)
    stems = Gains(ToyConfig(gains=(1.0,))).separate(audio)
    expected = audio.samples[[0, 0]] if channels == 1 else audio.samples[:2]
    torch.testing.assert_close(stems["source0"].samples, expected)


def test_a_mono_model_takes_the_mean_of_the_channels() -> None:
    audio = sound(3)
    stems = Gains(ToyConfig(gains=(1.0,), audio_channels=1)).separate(audio)
    expected = audio.samples.mean(dim=0, keepdim=True)
    torch.testing.assert_close(stems["source0"].samples, expected)


def test_too_few_channels_are_refused() -> None:
    with pytest.raises(AudioError, match="takes 4 channels, and the sound has 2"):
        Gains(ToyConfig(audio_channels=4)).separate(sound())


@pytest.mark.parametrize("samples", [torch.zeros(2, 0), torch.full((2, 50), float("nan"))])
def test_sounds_that_are_none_are_refused(samples: torch.Tensor) -> None:
    with pytest.raises(AudioError):
        Gains().separate(Audio(samples, 100))


@pytest.mark.parametrize("samples", [1, 7])
def test_very_short_sounds_are_separated(samples: int) -> None:
    stems = Gains().separate(sound(samples=samples), shifts=2)
    assert stems["source1"].samples.shape == (2, samples)
    assert bool(torch.isfinite(stems["source1"].samples).all())


def test_clipped_sounds_are_separated() -> None:
    audio = Audio((5 * sound().samples).clamp(-1, 1), 100)
    stems = Gains(ToyConfig(gains=(1.0,))).separate(audio)
    torch.testing.assert_close(stems["source0"].samples, audio.samples)


def test_unknown_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="no setting shift; it has shifts"):
        Gains().separate(sound(), shift=2)


def test_levels_of_pieces_are_those_of_the_whole() -> None:
    samples = sound().samples
    mono = samples.mean(dim=0)
    sums = LevelSums()
    for piece in samples.split(77, dim=1):
        sums.add(piece)
    assert sums.level().mean == pytest.approx(float(mono.mean()))
    assert sums.level().std == pytest.approx(float(mono.std()))
    torch.testing.assert_close(
        Level.of(samples).restore(Level.of(samples).normalize(samples)), samples
    )


def test_a_bag_is_the_mean_of_its_networks_by_their_weights() -> None:
    first, second = Gains(ToyConfig(gains=(1.0, 0.0))), Gains(ToyConfig(gains=(0.0, 1.0)))
    bag = bag_of([first, second], ((1.0, 3.0), (1.0, 1.0)))
    mix = torch.randn(1, 2, 64)
    torch.testing.assert_close(bag(mix), torch.stack([0.5 * mix, 0.25 * mix], dim=1))
    audio = sound(samples=200)
    torch.testing.assert_close(
        bag.separate(audio)["source0"].samples,
        (first.separate(audio)["source0"].samples + second.separate(audio)["source0"].samples) / 2,
    )


def test_networks_without_weight_for_a_stem_are_not_run() -> None:
    networks = [Gains(), Gains()]
    bag = bag_of(networks, ((1.0, 0.0), (0.0, 1.0)))
    bag.separate(sound(), stems=["source1"])
    assert [len(network.inputs) > 0 for network in networks] == [False, True]


def test_a_stem_of_a_bag_does_not_depend_on_which_others_are_asked_for() -> None:
    bag = bag_of([Gains(), Gains(ToyConfig(segment_samples=50))], ((1.0, 0.0), (0.5, 1.0)))
    alone = bag.separate(sound(), stems=["source1"], shifts=2, seed=5)["source1"]
    among = bag.separate(sound(), shifts=2, seed=5)["source1"]
    torch.testing.assert_close(alone.samples, among.samples)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (((1.0, 1.0),), "one row of weights for each of its 2"),
        (((1.0, 1.0), (1.0,)), "differ in length"),
        (((1.0, 0.0), (1.0, 0.0)), "every source needs"),
        (((1.0, -1.0), (1.0, 2.0)), "negative"),
        (((1.0,), (1.0,)), "weights for 1 sources"),
    ],
)
def test_bags_with_wrong_weights_are_refused(
    weights: tuple[tuple[float, ...], ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        bag_of([Gains(), Gains()], weights)


def test_bags_of_different_networks_are_refused() -> None:
    with pytest.raises(ConfigError, match="differ in sample_rate: 100 and 50"):
        bag_of([Gains(), Gains(ToyConfig(sample_rate=50))])
