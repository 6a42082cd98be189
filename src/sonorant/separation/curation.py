"""Picking the songs of a catalogue whose stems are what their names say.

Source: Hybrid Transformer Demucs (arXiv 2211.08553, on its data), which kept 800 of 3,500 songs so.
A song must have all of its stems at least some of the time, and a separator, given the stem i
alone, must hear i in it and none of the others. Of the volume the paper says no more than that it
is in dB over a second: here it is the mean power over channels and time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np
import torch
from torch import Tensor

from sonorant.audio import Audio
from sonorant.audio.sound import Converter
from sonorant.data.journal import Journal
from sonorant.data.songs import LeaveOut, Song
from sonorant.errors import AudioError, ConfigError
from sonorant.separation.apply import separate_pieces
from sonorant.separation.catalogue import key_of, read_blocks
from sonorant.separation.mixture import Level, take_channels
from sonorant.separation.separator import Separator

ACTIVE_DB = -40.0
"""A stem is active in a second in which its volume is at least this."""
LEAST_ACTIVE = 0.3
"""Share of the seconds in which each stem of a song must be active."""
HEARD_DB = -10.0
"""A source is heard in a stem where what is separated is louder than this, beside the stem."""
LEAST_OWN, MOST_OTHER = 0.7, 0.3
"""Shares of a stem's active seconds: its own source must be heard in more than the first, and each
other source in less than the second."""
_LOWEST_POWER = 1e-20  # of digital silence, whose logarithm would not be finite


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was found of a song.

    key: of its files and the model. active: by stem, the share of its seconds in which it is.
    heard: by stem, then by source, P_ij of the paper: the share of the stem's active seconds in
        which the model hears the source in it. Empty where a stem is active too seldom, since the
        song is out then, whatever the model would hear.
    kept: whether the song passes.
    """

    key: str
    name: str
    active: dict[str, float]
    heard: dict[str, dict[str, float]]
    kept: bool


def curate(
    songs: Iterable[Song], model: Separator, journal: Journal[Measured], leave_out: LeaveOut
) -> Iterator[tuple[Song, Measured]]:
    """Measure songs in the sources of a model, and add them to the journal if they are not there.

    leave_out: hears of songs that lack a source, are damaged, or shorter than a second.
    Memory does not grow with the length of a song.
    """
    facts = (model.system, msgspec.json.encode(model.config).decode(), model.checksum())
    for song in songs:
        try:
            key = key_of(song, model.sources, *facts)
            measured = journal.get(key)
            if measured is None:
                measured = measure(song, model, key)
                journal.add(measured)
        except (AudioError, ConfigError) as error:
            leave_out(error)
            continue
        yield song, measured


def measure(song: Song, model: Separator, key: str = "") -> Measured:
    """How active a song's stems are, and what the model hears in each of them.

    Raises: ConfigError if the song lacks a source of the model; AudioError if a stem is damaged or
    shorter than a second, or the model cannot take it.
    """
    volumes = {source: _volumes(_heard(song, source, model), model) for source in model.sources}
    active = {source: float((each >= ACTIVE_DB).mean()) for source, each in volumes.items()}
    heard: dict[str, dict[str, float]] = {}
    if min(active.values()) >= LEAST_ACTIVE:
        heard = {
            source: _heard_in(song, source, model, volume) for source, volume in volumes.items()
        }
    kept = bool(heard) and all(
        share > LEAST_OWN if source == stem else share < MOST_OTHER
        for stem, row in heard.items()
        for source, share in row.items()
    )
    return Measured(key=key, name=song.name, active=active, heard=heard, kept=kept)


def _heard_in(song: Song, stem: str, model: Separator, volume: np.ndarray) -> dict[str, float]:
    """By source, the share of a stem's active seconds in which it is heard."""
    level = Level.of_pieces(_heard(song, stem, model))
    mixture = (level.normalize(piece)[None] for piece in _heard(song, stem, model))
    pieces = (level.restore(piece[0]) for piece in separate_pieces(model, mixture))
    separated = _volumes(pieces, model)
    active = volume >= ACTIVE_DB
    louder = separated[:, active] - volume[active] > HEARD_DB
    return dict(zip(model.sources, louder.mean(axis=1).tolist(), strict=True))


def _heard(song: Song, source: str, model: Separator) -> Iterator[Tensor]:
    """A stem as the model takes it but for its level, in pieces `[channels, time]`."""
    channels = model.audio_channels
    blocks = (
        take_channels(Audio(torch.from_numpy(block), song.sample_rate), channels).samples.numpy()
        for block in read_blocks(song, source)
    )
    for piece in Converter(song.sample_rate, model.sample_rate, channels, channels).stream(blocks):
        yield torch.from_numpy(np.array(piece))


def _volumes(pieces: Iterable[Tensor], model: Separator) -> np.ndarray:
    """Volumes in dB, `[..., seconds]`, of sounds in pieces `[..., channels, time]`.

    What is left after the last whole second does not count.
    Raises: AudioError if there is no whole second.
    """
    rate, powers = model.sample_rate, []
    rest: Tensor | None = None
    for piece in pieces:
        sound = piece if rest is None else torch.cat([rest, piece], dim=-1)
        seconds = sound.shape[-1] // rate
        whole, rest = sound[..., : seconds * rate], sound[..., seconds * rate :].clone()
        powers.append(whole.unflatten(-1, (seconds, rate)).double().square().mean(dim=(-3, -1)))
    found = torch.cat(powers, dim=-1)
    if not found.shape[-1]:
        raise AudioError("a stem is shorter than a second, over which volumes are measured")
    decibels: np.ndarray = 10 * found.clamp(min=_LOWEST_POWER).log10().numpy()
    return decibels


def summary(measured: Sequence[Measured]) -> str:
    """How many songs pass, and what the others fail by."""
    kept = sum(each.kept for each in measured)
    silent = sum(not each.heard for each in measured)
    return (
        f"{kept} of {len(measured)} songs kept; {silent} with a stem that plays too seldom, "
        f"{len(measured) - kept - silent} with stems that do not hold their source alone"
    )
