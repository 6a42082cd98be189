"""Speech put on notes: the pitch that is found, and the one that comes out."""

import numpy as np
import pytest

from sonorant.data.singing import pitch, sing

RATE = 16_000


def voice(hz: float, seconds: float = 1.0) -> np.ndarray:
    """Pulses of a falling formant, as a vowel is made."""
    time = np.arange(int(seconds * RATE))
    pulses = (np.diff(np.floor(time * hz / RATE), prepend=-1) > 0).astype(np.float32)
    ring = np.exp(-np.arange(200) / 30) * np.sin(2 * np.pi * 700 / RATE * np.arange(200))
    return np.convolve(pulses, ring)[: len(time)].astype(np.float32)


@pytest.mark.parametrize("hz", [90.0, 140.0, 260.0])
def test_finds_the_pitch_of_a_voice(hz: float) -> None:
    found = pitch(voice(hz), RATE)
    assert np.median(found[found > 0]) == pytest.approx(hz, rel=0.03)
    assert (found > 0).mean() > 0.9


def test_noise_has_no_pitch() -> None:
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    assert (pitch(noise, RATE) > 0).mean() < 0.1


def test_a_sung_phrase_is_longer_and_holds_its_notes() -> None:
    spoken = np.concatenate([voice(hz, 0.2) for hz in np.linspace(200, 120, 6)])
    sung = sing(spoken, RATE, np.random.default_rng(1))
    assert len(sung) > 1.15 * len(spoken)
    found = pitch(sung, RATE)
    both = (found[1:] > 0) & (found[:-1] > 0)
    steps = np.abs(12 * np.log2(found[1:][both] / found[:-1][both]))
    assert np.median(steps) < 0.35  # a vibrato's change in 10 ms
    assert 80 < np.median(found[found > 0]) < 320


def test_what_has_no_voice_stays_as_it_is() -> None:
    noise = np.random.default_rng(0).standard_normal(RATE // 2).astype(np.float32)
    np.testing.assert_array_equal(sing(noise, RATE, np.random.default_rng(0)), noise)
