"""Change of pitch and tempo: the pitch, the length, and who is changed."""

import numpy as np
import pytest

from sonorant.separation.repitch import Repitch, change_sound, repitch

RATE = 16_000


def tone(hz: float = 440.0, seconds: float = 2.0) -> np.ndarray:
    wave = np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)
    return np.stack([wave, wave]).astype(np.float32)


@pytest.mark.parametrize(("semitones", "tempo"), [(0, 1.0), (2, 1.0), (-2, 1.1), (1, 0.9)])
def test_pitch_and_length_follow_what_is_asked(semitones: int, tempo: float) -> None:
    changed = change_sound(tone(), RATE, semitones, tempo)
    spectrum = np.abs(np.fft.rfft(changed[0] * np.hanning(changed.shape[1])))
    hz = float(spectrum.argmax()) * RATE / changed.shape[1]
    assert hz == pytest.approx(440 * 2 ** (semitones / 12), abs=1.0)
    assert changed.shape[1] == pytest.approx(2 * RATE / tempo, rel=0.02)


def test_what_is_not_changed_is_cut_alike() -> None:
    stems = np.stack([tone(), tone(220)])
    random = np.random.default_rng(0)
    kept = repitch(stems, RATE, Repitch(probability=0.0), random)
    changed = repitch(stems, RATE, Repitch(probability=1.0), random)
    np.testing.assert_array_equal(kept, stems[..., : int(0.88 * stems.shape[-1])])
    assert changed.shape == kept.shape
    assert not np.allclose(changed, kept, atol=0.1)


def test_silence_stays_silence() -> None:
    assert not change_sound(np.zeros((2, 1000), np.float32), RATE, 2, 1.1).any()
