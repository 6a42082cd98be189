"""What a codec did to sound, as one page to look at and listen to: a single file, no network.

The page is `report.html` beside this file, filled in with `string.Template`. Pictures are drawn by
matplotlib, on transparent ground and in colours that can be read on light and on dark pages.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from torch import Tensor

from sonorant.audio import Audio, read
from sonorant.codec.demo import Clip, Trial
from sonorant.dsp.mel import mel_frequencies, mel_spectrogram
from sonorant.dsp.stft import stft
from sonorant.model import Model
from sonorant.reports import require_plots, text_table, write_whole

PICTURE_INCHES = (9.6, 2.5)
DOTS_PER_INCH = 150
# Share of the width that the axes take; the page needs it to put the playhead in its place.
AXES_LEFT, AXES_RIGHT = 0.055, 0.985
INK, WAVE = "#8b93a1", "#3d8bfd"
PICTURE_RATE = 24_000  # Hz; pictures end at half of it, whatever the sound
MELS, N_FFT, RANGE_DB = 128, 1024, 70
STRETCHES = 2000  # of a waveform
FREQUENCY_TICKS = (250, 1000, 4000)  # Hz


def write_report(path: Path, codec: Model, trials: Sequence[Trial]) -> None:
    """Write the page. Raises: DependencyError without matplotlib."""
    require_plots()
    facts = codec.info()
    template = Template((resources.files("sonorant.codec") / "report.html").read_text("utf-8"))
    sections = [
        _section(clip, list(group)) for clip, group in groupby(trials, key=lambda trial: trial.clip)
    ]
    page = template.substitute(
        model=html.escape(facts.name or "a codec without a name"),
        parameters=f"{facts.parameters / 1e6:.1f} million",
        bandwidths=_listing([f"{rate:g}" for rate in sorted({t.bandwidth_kbps for t in trials})]),
        summary=_summary(trials),
        sections="\n".join(sections),
        axes_left=AXES_LEFT,
        axes_width=AXES_RIGHT - AXES_LEFT,
    )
    write_whole(path, page.encode("utf-8"))


def trials_table(trials: Sequence[Trial]) -> str:
    """The figures of all trials, for a terminal."""
    head = ["clip", "kb/s", "bytes", "smaller", "SI-SNR", "mel distance", "ViSQOL"]
    rows = [head, *([trial.clip.name, *_figures(trial)] for trial in trials)]
    return text_table(rows)


def _figures(trial: Trial) -> list[str]:
    return [
        f"{trial.kbps:.2f}",
        f"{trial.size_bytes:,}",
        f"{trial.times_smaller:.0f}x",
        f"{trial.si_snr:.1f} dB",
        f"{trial.mel_distance:.1f} dB",
        "not installed" if trial.visqol is None else f"{trial.visqol:.2f}",
    ]


def _summary(trials: Sequence[Trial]) -> str:
    rows = []
    for clip, group in groupby(trials, key=lambda trial: trial.clip):
        some = list(group)
        for index, trial in enumerate(some):
            name = f'<th rowspan="{len(some)}" scope="rowgroup">{html.escape(clip.name)}</th>'
            cells = [f"{trial.bandwidth_kbps:g} kb/s", *_figures(trial)]
            rows.append(
                f"<tr>{'' if index else name}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
            )
    return "\n".join(rows)


def _section(clip: Clip, trials: Sequence[Trial]) -> str:
    original = read(clip.path)
    scale = Scale.of(original)
    rate = clip.wav_bytes * 8 / original.duration_seconds / 1000
    notes = f"{clip.wav_bytes:,} bytes as WAV, {rate:.0f} kb/s"
    rows = [_row("Original", notes, clip.path, original, scale)]
    for trial in trials:
        _, size_bytes, smaller, snr, mel, score = _figures(trial)
        notes = f"{size_bytes} bytes, {smaller} smaller · SI-SNR {snr} · mel distance {mel}"
        if trial.visqol is not None:
            notes += f" · ViSQOL {score}"
        label = f"{trial.bandwidth_kbps:g} kb/s"
        rows.append(_row(label, notes, trial.decoded, read(trial.decoded), scale))
    return (
        f"<section>\n<h2>{html.escape(clip.name.capitalize())}</h2>\n"
        f'<p class="credit">{html.escape(clip.credit)}</p>\n' + "\n".join(rows) + "\n</section>"
    )


def _row(label: str, notes: str, path: Path, audio: Audio, scale: Scale) -> str:
    sound = base64.b64encode(path.read_bytes()).decode()
    picture = base64.b64encode(draw(audio, scale)).decode()
    return (
        f"<article>\n<header><h3>{label}</h3><p>{notes}</p></header>\n"
        f'<audio controls preload="auto" src="data:audio/flac;base64,{sound}"></audio>\n'
        f'<div class="sound"><img alt="waveform and spectrogram, {label}" '
        f'src="data:image/png;base64,{picture}"><i></i></div>\n</article>'
    )


@dataclass(frozen=True)
class Scale:
    """What fills a picture: the same for all versions of a clip, so that they can be compared."""

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
    _draw_spectrum(spectrum, mono, scale.loudest_db)
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


def _draw_spectrum(axes: Any, audio: Audio, loudest_db: float) -> None:
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


def _listing(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
