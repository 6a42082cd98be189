"""Sound to look at and listen to in a page: waveform over spectrogram, with a player.

Pictures are drawn by matplotlib, on transparent ground and in colours that can be read on light and
on dark pages. All is inside the page, so that it needs no other file and no network.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sonorant.audio import Audio, read
from sonorant.dsp.mel import mel_frequencies, mel_spectrogram
from sonorant.dsp.stft import stft

PICTURE_INCHES = (9.6, 2.5)
DOTS_PER_INCH = 150
# Share of the width that the axes take; a page needs it to put the playhead in its place.
AXES_LEFT, AXES_RIGHT = 0.055, 0.985
INK, WAVE = "#8b93a1", "#3d8bfd"
PICTURE_RATE = 24_000  # Hz; pictures end at half of it, whatever the sound
MELS, N_FFT, RANGE_DB = 128, 1024, 70
STRETCHES = 2000  # of a waveform
FREQUENCY_TICKS = (250, 1000, 4000)  # Hz


def section(title: str, text: str, players: Sequence[str]) -> str:
    """HTML of several players under a title."""
    return (
        f"<section>\n<h2>{html.escape(title)}</h2>\n"
        f'<p class="credit">{html.escape(text)}</p>\n' + "\n".join(players) + "\n</section>"
    )


def player(label: str, notes: str, path: Path, scale: Scale) -> str:
    """HTML of a FLAC file's name, notes, player and picture."""
    sound = base64.b64encode(path.read_bytes()).decode()
    picture = base64.b64encode(draw(read(path), scale)).decode()
    label, notes = html.escape(label), html.escape(notes)
    return (
        f"<article>\n<header><h3>{label}</h3><p>{notes}</p></header>\n"
        f'<audio controls preload="auto" src="data:audio/flac;base64,{sound}"></audio>\n'
        f'<div class="sound"><img alt="waveform and spectrogram, {label}" '
        f'src="data:image/png;base64,{picture}"><i></i></div>\n</article>'
    )


@dataclass(frozen=True)
class Scale:
    """What fills a picture: the same for all versions of a sound, so that they can be compared."""

    peak: float
    loudest_db: float

    @classmethod
    def of(cls, audio: Audio) -> Scale:
        """The scale that suits this sound."""
        mono = audio.to(channels=1)
        return cls(float(mono.samples.abs().max()) or 1.0, float(_decibels(mono).max()))


def draw(audio: Audio, scale: Scale) -> bytes:
    """Waveform over mel spectrogram up to 12 kHz, of the mean of the channels, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=PICTURE_INCHES, dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    wave, spectrum = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2.6))
    figure.subplots_adjust(AXES_LEFT, 0.1, AXES_RIGHT, 0.99, hspace=0.06)
    mono = audio.to(channels=1)
    _draw_wave(wave, mono, scale.peak)
    draw_spectrum(spectrum, mono, scale.loudest_db)
    for axes in (wave, spectrum):
        axes.tick_params(colors=INK, labelsize=7, length=2, width=0.5)
        for spine in axes.spines.values():
            spine.set_visible(False)
    wave.tick_params(length=0)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", transparent=True)
    return picture.getvalue()


def _draw_wave(axes: Any, audio: Audio, peak: float) -> None:
    """The range of the samples in each of some thousand stretches of time."""
    samples = audio.samples[0].numpy()
    parts = np.array_split(samples, min(len(samples), STRETCHES))
    times = np.linspace(0, audio.duration_seconds, len(parts))
    lows, highs = ([function(part) for part in parts] for function in (np.min, np.max))
    axes.fill_between(times, lows, highs, color=WAVE, linewidth=0.4)
    axes.set_ylim(-peak, peak)
    axes.set_yticks([])


def draw_spectrum(axes: Any, audio: Audio, loudest_db: float) -> None:
    """Mel spectrogram of one channel, in matplotlib axes, down to 70 dB below `loudest_db`."""
    axes.imshow(
        _decibels(audio).numpy(),
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=loudest_db - RANGE_DB,
        vmax=loudest_db,
        extent=(0, audio.duration_seconds, 0, MELS),
    )
    edges = mel_frequencies(MELS + 1, 0.0, PICTURE_RATE / 2).numpy()
    axes.set_yticks(
        np.interp(FREQUENCY_TICKS, edges, np.arange(MELS + 1)),
        [f"{frequency / 1000:g} kHz" for frequency in FREQUENCY_TICKS],
    )
    axes.xaxis.set_major_formatter("{x:g} s")


def _decibels(audio: Audio) -> Tensor:
    """Mel spectrogram `[bands, frames]` of one channel in dB."""
    samples = audio.to(PICTURE_RATE).samples[0]
    spectrum = stft(samples, N_FFT, N_FFT // 4, normalized=True, pad_mode="constant")
    return 10 * (mel_spectrogram(spectrum, PICTURE_RATE, MELS) + 1e-10).log10()
