"""Pieces of music as MIDI: composed anew from accompaniment styles, or taken from free games.

MIDI files are read and written with mido, styles played by MMA (Musical MIDI Accompaniment), and
notes sounded by fluidsynth.
"""

from __future__ import annotations

import copy
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import soundfile  # type: ignore[import-untyped]

from sonorant.errors import AudioError, DependencyError

Samples = npt.NDArray[np.float32]

STYLES = Path("/usr/share/mma/lib")
"""Where Debian's package of MMA keeps its library of styles ("grooves")."""
_PARTS = re.compile(r"intro|end|fill|count|break|metronome", re.IGNORECASE)
# Progressions in degrees of the major scale that popular music goes by; minor where small.
_PROGRESSIONS = (
    "I V vi IV|vi IV I V|I vi IV V|ii V I vi|I IV V IV|vi V IV V|I iii IV V|I IV ii V",
    "vi ii V I|IV V iii vi|I V IV IV|I I IV IV|vi vi IV V|ii IV I V|I V ii IV|iii vi ii V",
)
_DEGREES = {"I": 0, "ii": 2, "iii": 4, "IV": 5, "V": 7, "vi": 9}
_NAMES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
# General MIDI 1: channel 10 (counted from 1) is percussion; programmes 33 to 40 are basses.
DRUM_CHANNEL = 9
BASS_PROGRAMS = range(32, 40)
VOICE_PROGRAMS = range(52, 55)  # choir aahs, voice oohs, synth voice
RATE = 44_100


class Composition(msgspec.Struct, frozen=True, kw_only=True):
    """A piece: a MIDI file's bytes, or the name of a style to compose in."""

    name: str
    licence: str
    attribution: str
    midi: bytes = b""
    style: str = ""


def styles(library: Path = STYLES) -> list[Composition]:
    """One for each style of MMA's library in which a whole piece can be played.

    Raises: DependencyError where MMA is not installed.
    """
    if not library.is_dir():
        raise DependencyError(f"{library} does not exist: install the package mma")
    found = []
    for file in sorted(library.rglob("*.mma")):
        text = file.read_text(encoding="latin-1")
        grooves = [name for name in re.findall(r"^\s*DefGroove\s+(\S+)", text, re.MULTILINE)]
        whole = [name for name in grooves if not _PARTS.search(name)]
        if whole and "drum" in text.lower() and "bass" in text.lower():
            found.append(
                Composition(
                    name=f"{file.parent.name}-{file.stem}",
                    licence="GPL-2+ (the style)",
                    attribution="Bob van der Poel and the MMA contributors",
                    style=whole[0],
                )
            )
    return found


def midi_files(folder: Path, licence: str, attribution: str) -> list[Composition]:
    """Every MIDI file below a folder, those inside of game archives (WAD) included."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".mid", ".midi"):
            found[path.stem] = path.read_bytes()
        elif path.suffix.lower() == ".wad":
            found |= {f"{path.stem}-{name}": midi for name, midi in _in_archive(path)}
    return [
        Composition(name=name, licence=licence, attribution=attribution, midi=midi)
        for name, midi in found.items()
    ]


def _in_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """MIDI files in a WAD: a directory of (offset, size, name of 8 bytes) stands at its end."""
    data = path.read_bytes()
    if len(data) < 12 or data[1:4] != b"WAD":
        raise AudioError(f"{path} is not a WAD archive")
    count, directory = struct.unpack("<ii", data[4:12])
    for entry in range(count):
        start, size, name = struct.unpack_from("<ii8s", data, directory + 16 * entry)
        if data[start : start + 4] == b"MThd":
            yield name.rstrip(b"\0").decode("ascii").lower(), data[start : start + size]


def notes_of(composition: Composition, seconds: float, random: np.random.Generator) -> Any:
    """The piece as a `mido.MidiFile`; one in a style is composed with `random`, `seconds` long.

    Raises: DependencyError without mido or MMA; AudioError if the file is damaged.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "piece.mid"
        if composition.style:
            _compose(composition.style, seconds, random, path)
        else:
            path.write_bytes(composition.midi)
        try:
            return _mido().MidiFile(path)
        except (OSError, ValueError, EOFError, KeyError, IndexError) as error:
            raise AudioError(f"{composition.name} is not a MIDI file: {error}") from error


def _compose(style: str, seconds: float, random: np.random.Generator, path: Path) -> None:
    tempo = int(random.integers(75, 150))
    progressions = [each for line in _PROGRESSIONS for each in line.split("|")]
    verse, chorus = (random.choice(progressions).split() for _ in range(2))
    key, sevenths = int(random.integers(12)), random.random() < 0.3
    bars = int(seconds * tempo / 60 / 4) + 2
    lines = [f"Tempo {tempo}", f"Groove {style}"]
    for bar in range(bars):
        part = chorus if bar // 8 % 2 else verse
        degree = part[bar % 4]
        name = _NAMES[(key + _DEGREES[degree]) % 12] + ("m" if degree.islower() else "")
        lines.append(f"{bar + 1} {name}{'7' if sevenths and bar % 4 == 3 else ''}")
    source = path.with_suffix(".mma")
    source.write_text("\n".join(lines) + "\n")
    run("mma", ["-w", "-xNOCREDIT", "-f", str(path), str(source)], "the package mma")


def split_by_stem(piece: Any, random: np.random.Generator) -> dict[str, Any]:
    """The drums, the bass and the other notes of a `mido.MidiFile`, each as one of its own.

    Controllers and tempo stay in all. Choir and voice programmes of General MIDI are left out,
    since they would be vocals without a voice. `random` chooses which of two neighbouring
    programmes is played, so that a style does not always sound alike.
    """
    programs = _programs(piece)
    replaced = {
        channel: _neighbour(program, random)
        for channel, program in programs.items()
        if channel != DRUM_CHANNEL
    }
    parts = {}
    for stem in ("drums", "bass", "other"):
        part = copy.deepcopy(piece)
        for track in part.tracks:
            _keep(track, stem, programs, replaced)
        parts[stem] = part
    return parts


def _keep(track: Any, stem: str, programs: dict[int, int], replaced: dict[int, int]) -> None:
    """Silence the notes of other stems; times between events stay."""
    waiting, kept = 0, []
    for message in track:
        waiting += message.time
        channel = getattr(message, "channel", None)
        is_note = message.type in ("note_on", "note_off")
        if is_note and stem_of(channel, programs, track.name) != stem:
            continue
        if message.type == "program_change" and channel in replaced:
            message = message.copy(program=replaced[channel])
        kept.append(message.copy(time=waiting))
        waiting = 0
    track[:] = kept


def stem_of(channel: int | None, programs: dict[int, int], track: str = "") -> str:
    """The stem that notes belong to by their channel, and their track's name; "" for voices."""
    if channel == DRUM_CHANNEL:
        return "drums"
    if track.lower().startswith("bass"):
        return "bass"
    program = programs.get(channel or 0, 0)
    if program in VOICE_PROGRAMS:
        return ""
    return "bass" if program in BASS_PROGRAMS else "other"


def _programs(piece: Any) -> dict[int, int]:
    """The first programme of each channel."""
    found: dict[int, int] = {}
    for track in piece.tracks:
        for message in track:
            if message.type == "program_change":
                found.setdefault(message.channel, message.program)
    return found


def _neighbour(program: int, random: np.random.Generator) -> int:
    """A programme of the same family: General MIDI has sixteen families of eight."""
    if random.random() < 0.5 or program in VOICE_PROGRAMS:
        return program
    chosen = program - program % 8 + int(random.integers(8))
    return program if chosen in VOICE_PROGRAMS else chosen


def sound(part: Any, soundfont: Path) -> Samples:
    """The notes of a `mido.MidiFile` played with a soundfont, `[2, time]` at 44.1 kHz.

    Raises: DependencyError without fluidsynth; AudioError if it cannot play them.
    """
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder) / "part.mid", Path(folder) / "part.wav"
        part.save(midi)
        options = ["-ni", "-q", "-g", "0.5", "-r", str(RATE), "-O", "float", "-T", "wav"]
        run("fluidsynth", [*options, "-F", str(wav), str(soundfont), str(midi)], "fluidsynth")
        samples, _ = soundfile.read(wav, dtype="float32", always_2d=True)
    played: Samples = samples.T
    return played


def hits(part: Any) -> list[tuple[float, int, float]]:
    """Notes that start, as (second, note, velocity from 0 to 1)."""
    second, found = 0.0, []
    for message in part:  # mido plays all tracks in time, with seconds between messages
        second += message.time
        if message.type == "note_on" and message.velocity:
            found.append((second, message.note, message.velocity / 127))
    return found


def run(program: str, arguments: Sequence[str], package: str) -> None:
    """Run a program of the system. Raises: DependencyError without it; AudioError if it fails."""
    try:
        result = subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, timeout=300
        )
    except FileNotFoundError as error:
        raise DependencyError(f"{program} is needed: install {package}") from error
    except subprocess.TimeoutExpired as error:
        raise AudioError(f"{program} did not end: {' '.join(arguments)}") from error
    if result.returncode:
        told = (result.stderr.strip() or result.stdout.strip() or "no reason given").splitlines()
        raise AudioError(f"{program} failed: {told[-1]}")


def _mido() -> Any:
    try:
        import mido  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise DependencyError(
            "MIDI files are read with mido: pip install 'sonorant[midi]'"
        ) from error
    return mido
