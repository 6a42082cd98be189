"""What a codec did to sound, as one page to look at and listen to: a single file, no network.

The page is `report.html` beside this file, filled in with `string.Template`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib import resources
from itertools import groupby
from pathlib import Path
from string import Template

from sonorant.audio import read
from sonorant.codec.demo import Trial
from sonorant.listening import AXES_LEFT, AXES_RIGHT, Scale, player, section
from sonorant.model import Model
from sonorant.reports import require_plots, text_table, write_whole
from sonorant.sample_clips import Clip


def write_report(
    path: Path, codec: Model, trials: Sequence[Trial], more_sections: Sequence[str] = ()
) -> None:
    """Write the page, with sections of other systems below the codec's.

    Raises: DependencyError without matplotlib.
    """
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
        sections="\n".join([*sections, *more_sections]),
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
    players = [player("Original", notes, clip.path, scale)]
    for trial in trials:
        _, size_bytes, smaller, snr, mel, score = _figures(trial)
        notes = f"{size_bytes} bytes, {smaller} smaller · SI-SNR {snr} · mel distance {mel}"
        if trial.visqol is not None:
            notes += f" · ViSQOL {score}"
        players.append(player(f"{trial.bandwidth_kbps:g} kb/s", notes, trial.decoded, scale))
    return section(clip.name.capitalize(), clip.credit, players)


def _listing(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
