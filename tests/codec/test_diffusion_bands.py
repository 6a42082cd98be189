from __future__ import annotations

import pytest
import torch

from sonorant.codec.diffusion_bands import BandEqualizer, EqualizerConfig, match_bands
from sonorant.dsp.filters import lowpass, split_bands
from sonorant.errors import ConfigError

RATE = 8000


def dull_sounds() -> torch.Tensor:
    """Noise with less energy in high bands."""
    torch.manual_seed(0)
    return 0.1 * lowpass(torch.randn(6, 1, 4000), 0.1) + 0.02 * torch.randn(6, 1, 4000)


def levels(x: torch.Tensor) -> torch.Tensor:
    return split_bands(x, RATE, n_bands=4).std(dim=(1, 2, 3))


def test_the_equaliser_brings_bands_towards_noise_and_back() -> None:
    sounds = dull_sounds()
    equalizer = BandEqualizer(EqualizerConfig(bands=4, power=0.5, sounds=6), RATE)
    equalizer.observe(sounds)
    brought = equalizer.to_diffusion(sounds)
    spread = levels(sounds).log().std()
    assert levels(brought).log().std() < 0.7 * spread
    error = equalizer.to_sound(brought) - sounds
    assert error.std() < 0.15 * sounds.std()  # bands overlap a little


def test_bands_may_have_powers_of_their_own() -> None:
    torch.manual_seed(0)
    sounds = 0.1 * torch.randn(6, 1, 4000)
    equalizer = BandEqualizer(EqualizerConfig(bands=2, power=(0.0, 1.0), sounds=6), RATE)
    equalizer.observe(sounds)
    low, high = split_bands(equalizer.to_diffusion(sounds), RATE, n_bands=2)
    old_low, old_high = split_bands(sounds, RATE, n_bands=2)
    assert high.std() > 5 * old_high.std()
    assert low.std() < 2 * old_low.std()  # what leaks from the other
    with pytest.raises(ConfigError, match="2 powers for 3 bands"):
        EqualizerConfig(bands=3, power=(0.0, 1.0))


def test_it_listens_until_it_has_heard_enough() -> None:
    equalizer = BandEqualizer(EqualizerConfig(bands=2, sounds=5), RATE)
    with pytest.raises(ConfigError, match="no sound yet"):
        equalizer.to_diffusion(torch.zeros(1, 1, 100))
    for expected in (3, 6, 6):
        equalizer.observe(torch.randn(3, 1, 500))
        assert equalizer.sounds.item() == expected


def test_matched_bands_have_the_levels_of_the_reference() -> None:
    reference, noise = dull_sounds(), torch.randn(6, 1, 4000)
    matched = match_bands(noise, reference, RATE, bands=4)
    torch.testing.assert_close(levels(matched), levels(reference), rtol=0.25, atol=0)
    assert torch.allclose(match_bands(noise, reference, RATE, strictness=0.0), noise, atol=1e-5)


def test_matching_does_not_depend_on_the_rest_of_the_batch_unless_asked() -> None:
    reference = torch.cat([dull_sounds(), 5 * dull_sounds()])
    noise = torch.randn(12, 1, 4000)
    alone = match_bands(noise[:1], reference[:1], RATE)
    torch.testing.assert_close(match_bands(noise, reference, RATE)[:1], alone)
    together = match_bands(noise, reference, RATE, together=True)[:1]
    assert together.std() > 2 * alone.std()


def test_silence_is_matched_without_dividing_by_zero() -> None:
    silence, sound = torch.zeros(1, 1, 1000), torch.randn(1, 1, 1000)
    assert match_bands(silence, sound, RATE).isfinite().all()
    assert match_bands(sound, silence, RATE).abs().max() < 1e-6
