"""The separation's part of the demo: a song and a voice, mixed and taken apart again.

Both are the package's sample clips, recordings that no shipped model was trained on. That they are
known makes the figures true ones: how much better the voice, and all that is not voice, come out
than they were in the mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sonorant.audio import Audio, read, write
from sonorant.errors import ConfigError
from sonorant.listening import Scale, player, section
from sonorant.reports import text_table
from sonorant.sample_clips import Clip, shipped_clips
from sonorant.separation.metrics import global_sdr
from sonorant.separation.separator import Separator

VOICE = "vocals"
LEVEL = 0.1  # root mean square of the voice, and of the music, in full scale
CLIPS = ("speech", "music")


@dataclass(frozen=True)
class Stem:
    """A file of the mixture or of one stem. level_db: of its samples, against the mixture's.

    sdr, gain: of the voice, and of the sum of the others, in dB; None where the truth is unknown.
    """

    name: str
    path: Path
    level_db: float
    sdr: float | None = None
    gain: float | None = None


def mixture_of_clips(sample_rate: int, channels: int) -> tuple[Audio, Audio]:
    """The voice and the music, each [channels, time], equally loud and of one length."""
    sounds = [read(clip.path).to(sample_rate, channels).samples for clip in _clips()]
    length = min(sound.shape[-1] for sound in sounds)
    voice, music = (sound[:, :length] * LEVEL / sound.square().mean().sqrt() for sound in sounds)
    return Audio(voice, sample_rate), Audio(music, sample_rate)


def _clips() -> list[Clip]:
    """The voice and the music."""
    clips = {clip.name: clip for clip in shipped_clips()}
    return [clips[name] for name in CLIPS]


def check_separator(model: Separator) -> None:
    """Raises: ConfigError for a model without vocals among its stems."""
    if VOICE not in model.sources:
        raise ConfigError(
            f"the demo needs a separator of vocals, this one gives {', '.join(model.sources)}"
        )


def separate_clips(model: Separator, folder: Path) -> list[Stem]:
    """Separate the mixture; the FLAC files `mixture` and `stem-NAME` go into `folder`.

    Raises: ConfigError for a model without vocals among its stems.
    """
    check_separator(model)
    voice, music = mixture_of_clips(model.sample_rate, model.audio_channels)
    mixture = Audio(voice.samples + music.samples, model.sample_rate)
    stems = model.separate(mixture)
    rest = Audio(sum_of(stems, [name for name in stems if name != VOICE]), model.sample_rate)
    sounds = {"mixture": mixture, **stems, f"no_{VOICE}": rest}
    truths = {VOICE: voice, f"no_{VOICE}": music}
    return [_stem(name, sound, mixture, truths.get(name), folder) for name, sound in sounds.items()]


def sum_of(stems: dict[str, Audio], names: Sequence[str]) -> torch.Tensor:
    """The sum of some stems, [channels, time]."""
    return torch.stack([stems[name].samples for name in names]).sum(dim=0)


def _stem(name: str, sound: Audio, mixture: Audio, truth: Audio | None, folder: Path) -> Stem:
    path = folder / ("mixture.flac" if sound is mixture else f"stem-{name}.flac")
    write(path, Audio(sound.samples.clamp(-1, 1), sound.sample_rate))
    ratio = sound.samples.square().mean() / mixture.samples.square().mean()
    level_db = float(10 * ratio.clamp(min=1e-10).log10())
    if truth is None:
        return Stem(name, path, level_db)
    sdr = float(global_sdr(truth.samples, sound.samples))
    return Stem(name, path, level_db, sdr, sdr - float(global_sdr(truth.samples, mixture.samples)))


def stems_table(stems: Sequence[Stem]) -> str:
    """The figures of all stems, for a terminal."""
    rows = [
        [stem.name, f"{stem.level_db:.1f} dB", _decibels(stem.sdr), _decibels(stem.gain)]
        for stem in stems
    ]
    return text_table([["stem", "level", "SDR", "better than the mixture"], *rows])


def stems_section(model: Separator, stems: Sequence[Stem]) -> str:
    """HTML with a player for each file."""
    scale = Scale.of(read(stems[0].path))
    players = []
    for stem in stems:
        notes = f"level {stem.level_db:.1f} dB of the mixture's"
        if stem.sdr is not None:
            notes += f" · SDR {stem.sdr:.1f} dB, {stem.gain:.1f} dB better than the mixture"
        players.append(player(stem.name.replace("_", " ").capitalize(), notes, stem.path, scale))
    credit = " ".join(clip.credit for clip in _clips())
    return section(f"A song taken apart by {model.name or 'a separator'}", credit, players)


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} dB"
