"""From speech to song: recorded voices put on notes by moving their pitch periods.

Source: pitch-synchronous overlap-add (Moulines and Charpentier, Speech Communication 9, 1990): two
periods of the voice around each pulse are cut out, and added again at the distances of another
pitch; vowels grow longer as pulses are used more than once. The timbre stays.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

LOWEST_HZ, HIGHEST_HZ = 70.0, 450.0  # of spoken pitch, from a deep man's to a child's voice
_FRAME_SECONDS, _HOP_SECONDS = 0.04, 0.01
_VOICED = 0.5  # share of a frame's energy that must repeat after a period
_SCALE = (0, 2, 4, 7, 9)  # semitones of the major pentatonic, whose notes go with most chords
_UNVOICED_SECONDS = 0.005  # length of the pieces in which noise is passed on


def sing(speech: Samples, rate: int, random: np.random.Generator) -> Samples:
    """A mono phrase `[time]` sung: steady notes near the speaker's own pitch, with vibrato."""
    pitches = pitch(speech, rate)
    voiced = pitches[pitches > 0]
    if len(voiced) < 10:
        return speech
    notes = _melody(len(pitches), pitches, float(np.median(voiced)), random)
    return _resynthesise(speech, rate, pitches, notes, stretch=random.uniform(1.2, 2.5))


def pitch(speech: Samples, rate: int) -> npt.NDArray[np.float64]:
    """Pitch in Hz every 10 ms, 0 where there is none; by autocorrelation."""
    size, hop = int(_FRAME_SECONDS * rate), int(_HOP_SECONDS * rate)
    padded = np.pad(speech, (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    frames = (frames - frames.mean(axis=1, keepdims=True)) * np.hanning(size)
    spectra = np.abs(np.fft.rfft(frames, 2 * size)) ** 2
    repeats = np.fft.irfft(spectra)[:, :size]
    window = np.fft.irfft(np.abs(np.fft.rfft(np.hanning(size), 2 * size)) ** 2)[:size]
    low, high = int(rate / HIGHEST_HZ), int(rate / LOWEST_HZ)
    energy = np.maximum(repeats[:, :1], 1e-12)
    scores = (repeats / energy / np.maximum(window / window[0], 1e-3))[:, low:high]
    # The first of nearly equal peaks, since two periods repeat as well as one does.
    best = scores.max(axis=1, keepdims=True)
    lags = low + np.argmax(scores > 0.9 * best, axis=1)
    lags = np.array(
        [_peak_near(row, lag - low) + low for row, lag in zip(scores, lags, strict=True)]
    )
    loud = energy[:, 0] > 0.01 * energy.max()
    return np.where((best[:, 0] > _VOICED) & loud, rate / lags, 0.0)


def _peak_near(scores: npt.NDArray[np.float64], start: int) -> int:
    """The top of the slope that begins at `start`."""
    while start + 1 < len(scores) and scores[start + 1] > scores[start]:
        start += 1
    return start


def _melody(
    frames: int, pitches: npt.NDArray[np.float64], own: float, random: np.random.Generator
) -> npt.NDArray[np.float64]:
    """The note in Hz at every frame: a walk on a scale, a new note with each voiced stretch."""
    steps = np.array([octave * 12 + note for octave in (-1, 0, 1) for note in _SCALE])
    place, left = len(_SCALE), 0
    key = random.uniform(-3, 3)
    notes = np.empty(frames)
    for frame in range(frames):
        begins = pitches[frame] > 0 and (frame == 0 or pitches[frame - 1] == 0)
        if begins or left <= 0:
            place = int(np.clip(place + random.integers(-2, 3), 3, len(steps) - 4))
            left = int(random.integers(20, 60))
        left -= 1
        vibrato = 0.25 * np.sin(2 * np.pi * 5.5 * frame * _HOP_SECONDS)
        notes[frame] = own * 2 ** ((steps[place] + key + vibrato) / 12)
    return notes


def _resynthesise(
    speech: Samples,
    rate: int,
    pitches: npt.NDArray[np.float64],
    notes: npt.NDArray[np.float64],
    stretch: float,
) -> Samples:
    hop = int(_HOP_SECONDS * rate)
    pulses = _pulses(speech, rate, pitches)
    margin = int(rate / LOWEST_HZ)
    padded = np.pad(speech, margin)
    sung = np.zeros(int(len(speech) * stretch) + 4 * margin, np.float32)
    now, out = 0.0, float(margin)
    while now < len(speech) - 1 and out < len(sung) - 2 * margin:
        frame = min(int(now) // hop, len(pitches) - 1)
        if pitches[frame] > 0:
            period, step = rate / pitches[frame], rate / notes[frame]
            centre = int(pulses[np.argmin(np.abs(pulses - now))])
            now += step / stretch
        else:
            period = step = _UNVOICED_SECONDS * rate
            centre = int(now)
            now += step
        half = int(period)
        grain = padded[centre + margin - half : centre + margin + half] * np.hanning(2 * half)
        start = int(out) - half
        sung[start : start + 2 * half] += grain
        out += step
    return sung[margin : int(out)]


def _pulses(
    speech: Samples, rate: int, pitches: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Samples at which the voice's periods have their peak."""
    hop = int(_HOP_SECONDS * rate)
    found: list[int] = []
    now = 0
    while now < len(speech):
        current = pitches[min(now // hop, len(pitches) - 1)]
        if current == 0:
            now += hop
            continue
        period = int(rate / current)
        low, high = max(0, now - period // 3), now + period // 3 + 1
        peak = low + int(np.argmax(speech[low:high]))
        if found and peak - found[-1] < period // 2:
            peak = found[-1] + period  # the slope before the next pulse, not the pulse itself
        found.append(peak)
        now = peak + period
    return np.array(found, np.float64)
