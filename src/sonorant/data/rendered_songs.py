"""Songs in four stems that anyone can make: from MIDI, with recorded drums and real voices.

What is trained on and what is tested on share no piece, no soundfont, no drum kit or loop and no
language. Each song is a function of the seed and its number only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import soundfile  # type: ignore[import-untyped]

from sonorant.data.compositions import RATE, Composition, hits, notes_of, sound, split_by_stem
from sonorant.data.drum_kits import Kit, play, read_kit, read_stereo, repeat
from sonorant.data.manifest import SPLITS, Split
from sonorant.data.prepare import Candidate
from sonorant.data.singing import sing
from sonorant.data.songs import Song, read_songs, song_of, write_songs
from sonorant.errors import AudioError, ConfigError

Samples = npt.NDArray[np.float32]

SOURCES = ("drums", "bass", "other", "vocals")
# Level of each stem's loud parts, dB full scale, before a random change; by ear like pop records.
_LEVELS_DB = {"drums": -20.0, "bass": -21.0, "other": -20.0, "vocals": -20.0}
_LEVEL_SPREAD_DB = 3.0
PEAK = 0.9  # of the mixture and of each stem
_KIT_SHARE, _LOOP_SHARE = 0.4, 0.15  # of songs whose drums a kit or a loop plays, not the soundfont
_SUNG_SHARE = 0.7  # of songs whose voice sings; in the others it speaks


class Recordings(msgspec.Struct, frozen=True, kw_only=True):
    """What one split's songs are made of.

    voices: single phrases; those of one group have one speaker or language.
    """

    compositions: tuple[Composition, ...]
    soundfonts: tuple[tuple[Path, str], ...]
    kits: tuple[Path, ...]
    loops: tuple[Candidate, ...]
    voices: tuple[Candidate, ...]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How many songs are rendered, into which folder, and how long they are."""

    out: Path
    songs: dict[Split, int]
    seconds: float = 60.0
    seed: int = 0


def share_out(found: Sequence[Composition]) -> dict[Split, tuple[Composition, ...]]:
    """Pieces by split: a hash of the name puts about one in ten each into valid and test."""
    parts: dict[Split, list[Composition]] = {split: [] for split in SPLITS}
    for each in found:
        draw = hashlib.sha256(each.name.encode()).digest()[0] % 10
        parts["test" if draw == 0 else "valid" if draw == 1 else "train"].append(each)
    return {split: tuple(each) for split, each in parts.items()}


def render(plan: Plan, recordings: dict[Split, Recordings], workers: int = 1) -> Iterator[Song]:
    """Render what is missing of the plan's songs, and yield all of them.

    Raises: ConfigError if a split lacks something to make songs of; others as the renderers.
    """
    # The test first, so that what a stopped run leaves can be validated and tested on.
    jobs = [
        (split, number) for split in reversed(SPLITS) for number in range(plan.songs.get(split, 0))
    ]
    for split in {split for split, _ in jobs}:
        empty = [name for name, each in _parts(recordings[split]) if not each]
        if empty:
            raise ConfigError(f"there are no {', '.join(empty)} to make {split} songs of")
    render_one = partial(_render_one, plan, recordings)
    if workers <= 1:
        yield from map(render_one, jobs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield from pool.map(render_one, jobs)


def finish(plan: Plan, songs: Iterable[Song]) -> Path:
    """Write the manifest of a rendered plan; its path."""
    path = plan.out / "songs.jsonl"
    write_songs(path, songs)
    read_songs(path)
    return path


def _parts(recordings: Recordings) -> Iterator[tuple[str, Sequence[object]]]:
    for name in recordings.__struct_fields__:
        yield name, getattr(recordings, name)


def _render_one(plan: Plan, recordings: dict[Split, Recordings], job: tuple[Split, int]) -> Song:
    split, number = job
    draw = int.from_bytes(hashlib.sha256(f"{split} {number}".encode()).digest()[:8], "big")
    key = np.array([plan.seed, draw], np.uint64)
    random = np.random.Generator(np.random.Philox(key=key))
    folder = plan.out / split / f"{split}{number:04d}"
    files = {source: folder / f"{source}.flac" for source in SOURCES}
    note = folder / "made_of.json"
    if not note.exists():
        stems, origin = _render_stems(recordings[split], plan.seconds, random)
        folder.mkdir(parents=True, exist_ok=True)
        for source, samples in _levelled(stems, random).items():
            soundfile.write(files[source], samples.T, RATE, "PCM_16", format="FLAC")
        note.write_bytes(msgspec.json.encode(origin))  # last, so that a song is whole where it is
    origin = msgspec.json.decode(note.read_bytes(), type=dict[str, list[str]])
    return song_of(
        folder.name,
        split,
        files,
        licence="; ".join(origin["licences"]),
        attribution="; ".join(origin["attributions"]),
    )


def _render_stems(
    recordings: Recordings, seconds: float, random: np.random.Generator
) -> tuple[dict[str, Samples], dict[str, list[str]]]:
    """Stems of one song, and of what it was made."""
    composition, piece, parts = _full_piece(recordings.compositions, seconds, random)
    soundfont, font_licence = recordings.soundfonts[random.integers(len(recordings.soundfonts))]
    begin = max(0.0, float(piece.length) - seconds) * random.random()
    stems = {source: _extract(sound(parts[source], soundfont), begin, seconds) for source in parts}
    licences = {composition.licence, f"{soundfont.stem}: {font_licence}"}
    credits = {composition.attribution}
    draw = random.random()
    if draw < _KIT_SHARE:
        kit = _kit(recordings.kits[random.integers(len(recordings.kits))])
        struck = [(when - begin, note, hard) for when, note, hard in hits(parts["drums"])]
        stems["drums"] = _reverberated(
            play(kit, [hit for hit in struck if hit[0] >= 0], seconds, RATE), random
        )
        licences.add(f"{kit.name}: {kit.licence}")
        credits.add(kit.attribution)
    elif draw < _KIT_SHARE + _LOOP_SHARE:
        loop = recordings.loops[random.integers(len(recordings.loops))]
        samples = read_stereo(loop.path, RATE)
        stems["drums"] = repeat(samples, seconds, RATE, speed=random.uniform(0.85, 1.2))
        licences.add(f"{loop.original}: {loop.selection.licence}")
        credits.add(loop.selection.attribution)
    stems["vocals"], voice = _voice(recordings.voices, seconds, random)
    licences.add(f"{voice.source}: {voice.selection.licence}")
    credits.add(voice.selection.attribution)
    return stems, {
        "piece": [composition.name],
        "licences": sorted(licences),
        "attributions": sorted(credits),
    }


def _full_piece(
    compositions: Sequence[Composition], seconds: float, random: np.random.Generator
) -> tuple[Composition, Any, dict[str, Any]]:
    """A piece in which all of drums, bass and other play, its notes, and those by stem."""
    for choice in random.permutation(len(compositions)):
        composition = compositions[choice]
        piece = notes_of(composition, seconds, random)
        parts = split_by_stem(piece, random)
        if all(hits(part) for part in parts.values()):
            return composition, piece, parts
    raise ConfigError("no piece has drums, a bass and another instrument")


def _extract(samples: Samples, begin: float, seconds: float) -> Samples:
    wanted = int(seconds * RATE)
    part = samples[:, int(begin * RATE) :][:, :wanted]
    return np.pad(part, ((0, 0), (0, wanted - part.shape[1])))


def _voice(
    voices: Sequence[Candidate], seconds: float, random: np.random.Generator
) -> tuple[Samples, Candidate]:
    """One group's phrases with rests between, sung or spoken, in a room; and one of the phrases."""
    groups = sorted({voice.group for voice in voices})
    group = groups[random.integers(len(groups))]
    own = [voice for voice in voices if voice.group == group]
    sung = random.random() < _SUNG_SHARE
    line = np.zeros((2, int(seconds * RATE)), np.float32)
    place = int(random.uniform(0, 4) * RATE)
    while place < line.shape[1]:
        phrase = read_stereo(own[random.integers(len(own))].path, RATE).mean(axis=0)
        phrase *= 0.1 / max(1e-4, float(_loud_rms(phrase[None])))  # recordings differ in level
        if sung:
            phrase = sing(phrase, RATE, random)
        end = min(line.shape[1], place + len(phrase))
        line[:, place:end] += phrase[: end - place]
        rest = random.exponential(0.3) if random.random() < 0.85 else random.uniform(2, 6)
        place = end + int(rest * RATE)
    return _reverberated(line, random), own[0]


def _reverberated(dry: Samples, random: np.random.Generator) -> Samples:
    """With the decaying noise of a room after it, different in both channels."""
    decay_seconds, wet = random.uniform(0.2, 1.5), random.uniform(0.0, 0.35)
    length = int(decay_seconds * RATE)
    # -60 dB at the end, as reverberation times are measured; the room's air takes high frequencies.
    tail = random.standard_normal((2, length)) * 10 ** (-3 * np.arange(length) / length)
    tail[:, 1:] += 0.7 * tail[:, :-1]
    tail /= np.sqrt(np.square(tail).sum(axis=1, keepdims=True))
    size = 1 << (dry.shape[1] + length).bit_length()
    room = np.fft.irfft(np.fft.rfft(dry, size) * np.fft.rfft(tail, size))[:, : dry.shape[1]]
    heard: Samples = (dry + wet * room).astype(np.float32)
    return heard


def _levelled(stems: dict[str, Samples], random: np.random.Generator) -> dict[str, Samples]:
    """Stems at the level of records, and none so loud that it or the mixture clips."""
    for source, samples in stems.items():
        level_db = _LEVELS_DB[source] + random.uniform(-1, 1) * _LEVEL_SPREAD_DB
        rms = _loud_rms(samples)
        if rms > 1e-5:
            stems[source] = samples * np.float32(10 ** (level_db / 20) / rms)
    mixture = np.sum(list(stems.values()), axis=0)
    peak = max(float(np.abs(each).max()) for each in (mixture, *stems.values()))
    return {source: samples * np.float32(min(1, PEAK / peak)) for source, samples in stems.items()}


def _loud_rms(samples: Samples) -> float:
    """Root of the mean power of the louder half of all pieces of 0.1 s that are not silent."""
    size = RATE // 10
    pieces = samples[:, : samples.shape[1] // size * size].reshape(len(samples), -1, size)
    powers = np.sort(np.square(pieces).mean(axis=(0, 2)))
    powers = powers[powers > 1e-8]
    return float(np.sqrt(powers[len(powers) // 2 :].mean())) if len(powers) else 0.0


@cache
def _kit(folder: Path) -> Kit:
    kit = read_kit(folder, RATE)
    if kit is None:
        raise AudioError(f"the kit in {folder} has no kick, snare and hi-hat")
    return kit
