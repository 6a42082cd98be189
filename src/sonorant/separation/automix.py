"""Songs mixed from stems of several songs that go together in tempo and key.

Source: the mixes by which Hybrid Demucs was refined for the challenge (arXiv 2111.03600), of which
the ranges below are known, not the code. Each song keeps one of its stems, drawn at random; the
other three are drawn from songs that are nearly as fast and nearly in its key, are stretched and
shifted to match, and begin where their drums' onsets fall together best. How long a mix lasts (as
long as the song whose stem is kept) and that nobody lends two stems to one mix where there are
songs enough are our own.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import soxr  # type: ignore[import-untyped]
import torch

from sonorant.audio.streams import pyav
from sonorant.data.journal import Journal
from sonorant.data.songs import LeaveOut, Samples, Song, read_songs, song_of, write_songs
from sonorant.errors import AudioError, ConfigError
from sonorant.separation.catalogue import key_of, read_blocks
from sonorant.separation.repitch import change_sound
from sonorant.separation.rhythm_and_key import (
    SOURCES,
    Features,
    analyse,
    lag_seconds,
    offset_seconds,
    pitch_change,
    require_librosa,
    tempo_change,
)
from sonorant.separation.stem_files import Encoding, Stem, write_stem

PASSES = 6
"""Over the catalogue."""
MOST_TEMPO_CHANGE = 0.15
MOST_SEMITONES = 3
NOTE, UNFINISHED = "made_of.json", ".unfinished"


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A stem of a mix: from which song, how many times as fast, how much higher, how much later."""

    source: str
    song: str
    tempo: float = 1.0
    semitones: int = 0
    offset_seconds: float = 0.0


class Mix(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A song to be mixed: `kept` is the source that `base` keeps."""

    name: str
    base: str
    kept: str
    parts: Annotated[tuple[Part, ...], msgspec.Meta(min_length=4, max_length=4)]


class Known(msgspec.Struct, frozen=True):
    """A song and what decides with which others it goes."""

    song: Song
    features: Features


def check_packages() -> None:
    """Raises: DependencyError without librosa or PyAV, before all the work."""
    require_librosa()
    pyav("mixing stems of other songs")


def analyse_all(
    songs: Iterable[Song], journal: Journal[Features], leave_out: LeaveOut
) -> Iterator[Known]:
    """Analyse songs, and add them to the journal if they are not there.

    leave_out: hears of songs that lack a source, are damaged, or have no beat or no bass.
    """
    for song in songs:
        try:
            key = key_of(song, SOURCES)
            features = journal.get(key)
            if features is None:
                features = analyse(song, key)
                journal.add(features)
        except (AudioError, ConfigError) as error:
            leave_out(error)
            continue
        yield Known(song, features)


def plan(
    known: Sequence[Known], passes: int, seed: int, leave_out: LeaveOut | None = None
) -> Iterator[Mix]:
    """What to mix, a function of the songs and the seed: every song once in each pass, where there
    are partners enough that it is another mix each time.

    leave_out: hears of songs with which no others go, or not in every source.
    Raises: ConfigError for songs of one name, or a name that cannot be that of a folder; for a song
    that `leave_out` would hear of, without it.
    """
    by_name = {each.song.name: each for each in known}
    if len(by_name) < len(known):
        raise ConfigError("two songs have one name; mixes are named by their songs")
    for name in by_name:
        if Path(name).name != name:
            raise ConfigError(f"a song is named {name!r}, which no folder can be")
    for base in known:
        try:
            partners = _partners(base, known)
        except ConfigError as error:
            if leave_out is None:
                raise
            leave_out(error)
            continue
        made = set[tuple[Part, ...]]()
        for number in range(1, passes + 1):
            mix = _draw(base, partners, number, seed)
            if mix.parts not in made:  # of few partners the same can be drawn again
                made.add(mix.parts)
                yield mix


def _partners(base: Known, known: Sequence[Known]) -> dict[str, list[Known]]:
    """By source, the songs that can lend it. Raises: ConfigError if a source has none."""
    fitting = [
        each
        for each in known
        if each is not base
        and abs(tempo_change(base.features, each.features) - 1) <= MOST_TEMPO_CHANGE
        and abs(pitch_change(base.features, each.features)) <= MOST_SEMITONES
    ]
    lending = {
        source: [each for each in fitting if source in each.features.sounding] for source in SOURCES
    }
    empty = [source for source, songs in lending.items() if not songs]
    if empty:
        raise ConfigError(
            f"no other song has {', '.join(empty)} that go with {base.song.name} "
            f"({base.features.tempo_bpm:.1f} beats per minute)"
        )
    return lending


def _draw(base: Known, partners: dict[str, list[Known]], number: int, seed: int) -> Mix:
    name = f"{base.song.name}.mix{number}"
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    random = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, draw], np.uint64)))
    kept = str(random.choice(base.features.sounding))
    parts, lenders = [], set[str]()
    for source in SOURCES:
        if source == kept:
            parts.append(Part(source=source, song=base.song.name))
            continue
        fresh = [each for each in partners[source] if each.song.name not in lenders]
        choice = fresh or partners[source]
        other = choice[random.integers(len(choice))]
        lenders.add(other.song.name)
        tempo = tempo_change(base.features, other.features)
        parts.append(
            Part(
                source=source,
                song=other.song.name,
                tempo=tempo,
                semitones=pitch_change(base.features, other.features),
                offset_seconds=offset_seconds(base.features, other.features, tempo),
            )
        )
    return Mix(name=name, base=base.song.name, kept=kept, parts=tuple(parts))


def mix_all(mixes: Iterable[Mix], songs: Sequence[Song], out: Path) -> Iterator[Song]:
    """Write what is missing of the mixes to OUT/train, a folder of stems each, and yield them all.

    A folder appears whole or not at all. songs: those that the mixes are made of.
    Raises: ConfigError if a mix of that name is there and made of something else; AudioError if a
    stem cannot be read or written; OSError if the folders cannot be made.
    """
    by_name = {song.name: song for song in songs}
    for mix in mixes:
        folder = out / "train" / mix.name
        note = folder / NOTE
        files = [note, *(folder / f"{source}.flac" for source in SOURCES)]
        if not all(file.is_file() for file in files):
            shutil.rmtree(folder, ignore_errors=True)
            _write(mix, by_name, folder, out / UNFINISHED / mix.name)
        elif _read_note(note) != mix:
            raise ConfigError(
                f"{folder} is made of other stems: of another seed or other songs; choose another "
                "folder for these mixes"
            )
        origins = [by_name[part.song] for part in mix.parts]
        yield song_of(
            mix.name,
            "train",
            {source: folder / f"{source}.flac" for source in SOURCES},
            licence=_joined(song.licence for song in origins),
            attribution=_joined(song.attribution for song in origins),
        )


def finish(out: Path, songs: Iterable[Song]) -> Path:
    """Write the manifest of all songs; its path."""
    path = out / "songs.jsonl"
    write_songs(path, songs)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    read_songs(path)
    return path


def render(mix: Mix, songs: dict[str, Song]) -> Samples:
    """The stems of a mix, `[sources, channels, time]`, at the rate and of the length of its base.

    Raises: AudioError if a stem cannot be read; DependencyError without PyAV.
    """
    base = songs[mix.base]
    stems = [_placed(part, songs[part.song], base) for part in mix.parts]
    channels = max(len(stem) for stem in stems)
    return np.stack([np.broadcast_to(stem, (channels, stem.shape[1])) for stem in stems])


def _placed(part: Part, song: Song, base: Song) -> Samples:
    """A stem changed as its part says, `[channels, time]`, with zeros where it does not play."""
    samples = np.concatenate(list(read_blocks(song, part.source)), axis=1)
    if song is base:
        return samples
    if song.sample_rate != base.sample_rate:
        samples = soxr.resample(samples.T, song.sample_rate, base.sample_rate).T
    changed = change_sound(samples, base.sample_rate, part.semitones, part.tempo)
    lag = lag_seconds(samples, changed, base.sample_rate, part.tempo)
    first = round((part.offset_seconds - lag) * base.sample_rate)
    changed = np.pad(changed[:, max(0, -first) :], ((0, 0), (max(0, first), 0)))
    missing = max(0, base.samples - changed.shape[1])
    return np.pad(changed[:, : base.samples], ((0, 0), (0, missing)))


def _write(mix: Mix, songs: dict[str, Song], folder: Path, unfinished: Path) -> None:
    stems = torch.from_numpy(render(mix, songs))
    # One gain for all, by which neither their sum nor any of them clips.
    peak = max(float(stems.sum(dim=0).abs().max()), float(stems.abs().max()))
    stem = Stem(songs[mix.base].sample_rate, stems.shape[1], stems.shape[2], peak)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        for part, samples in zip(mix.parts, stems, strict=True):
            write_stem(unfinished / f"{part.source}.flac", [samples], stem, Encoding("flac"))
        (unfinished / NOTE).write_bytes(msgspec.json.encode(mix))
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _read_note(path: Path) -> Mix:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Mix)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} does not say what a mix is made of: {error}") from error


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(sorted({text for text in texts if text}))
