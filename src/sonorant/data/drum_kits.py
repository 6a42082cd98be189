"""Recorded drums: kits of single strokes that play a drum part, and loops that are played over.

Kits are those of the drum machine Hydrogen: a folder with `drumkit.xml` that names the recordings
of each instrument, softest first.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import numpy as np
import numpy.typing as npt
import soundfile  # type: ignore[import-untyped]
import soxr  # type: ignore[import-untyped]

from sonorant.errors import AudioError, FormatError

Samples = npt.NDArray[np.float32]

# What an instrument's name says, and the notes of General MIDI's percussion that it then plays.
# The first rule that fits decides.
_INSTRUMENTS: tuple[tuple[str, frozenset[int]], ...] = (
    (r"kick|bass ?drum|\bbd\b", frozenset({35, 36})),
    (r"open.*(hat|hh)|(hat|hh).*open|\boh\b", frozenset({46})),
    (r"pedal.*(hat|hh)|(hat|hh).*(pedal|foot)", frozenset({44})),
    (r"hat|hh", frozenset({42, 44})),
    (r"stick|rim", frozenset({37})),
    (r"clap", frozenset({39})),
    (r"snare|\bsd\b", frozenset({38, 40})),
    (r"(floor|low|lo|3).*tom|tom.*(floor|low|lo|3)", frozenset({41, 43})),
    (r"(mid|2).*tom|tom.*(mid|2)", frozenset({45, 47})),
    (r"tom", frozenset({48, 50})),
    (r"ride|bell", frozenset({51, 53, 59})),
    (r"crash|splash|china|cymbal", frozenset({49, 52, 55, 57})),
    (r"cow", frozenset({56})),
    (r"tamb", frozenset({54})),
    (r"shak|marac", frozenset({70, 82})),
)
_NEEDED = frozenset({36, 38, 42})  # a kit without kick, snare or hi-hat is none


class Kit(msgspec.Struct, frozen=True, kw_only=True):
    """A drum kit: recordings of each General MIDI note, softest first, `[2, time]`."""

    name: str
    licence: str
    attribution: str
    strokes: dict[int, list[Samples]]


def kit_folders(root: Path) -> list[Path]:
    """Folders of kits below `root`."""
    return sorted(path.parent for path in root.rglob("drumkit.xml"))


def read_kit(folder: Path, rate: int) -> Kit | None:
    """The kit of a folder, at `rate` Hz; None if it has no kick, snare and hi-hat by name.

    Raises: FormatError if `drumkit.xml` is damaged; AudioError if a recording is.
    """
    try:
        tree = ElementTree.fromstring(_without_namespace((folder / "drumkit.xml").read_text()))
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise FormatError(f"{folder / 'drumkit.xml'} is damaged: {error}") from error
    strokes: dict[int, list[Samples]] = {}
    for instrument in tree.iter("instrument"):
        notes = _notes_of(instrument.findtext("name") or "") - strokes.keys()
        files = [each.text for each in instrument.iter("filename") if each.text]
        if notes and files:
            recordings = [read_stereo(folder / file, rate) for file in files]
            strokes |= {note: recordings for note in notes}
    if not strokes.keys() >= _NEEDED:
        return None
    return Kit(
        name=folder.name,
        licence=" ".join((tree.findtext("license") or "not stated").split()),
        attribution=" ".join((tree.findtext("author") or "unknown").split()),
        strokes=strokes,
    )


def play(kit: Kit, hits: list[tuple[float, int, float]], seconds: float, rate: int) -> Samples:
    """The hits (second, note, velocity) that the kit has recordings for, `[2, time]`."""
    played = np.zeros((2, int(seconds * rate)), np.float32)
    for second, note, velocity in hits:
        recordings = kit.strokes.get(note)
        start = int(second * rate)
        if recordings is None or start >= played.shape[1]:
            continue
        stroke = recordings[min(int(velocity * len(recordings)), len(recordings) - 1)]
        end = min(played.shape[1], start + stroke.shape[1])
        played[:, start:end] += velocity * stroke[:, : end - start]
    return played


def repeat(loop: Samples, seconds: float, rate: int, speed: float) -> Samples:
    """A loop `[2, time]` over and over, played `speed` times as fast, its pitch with it."""
    changed = soxr.resample(loop.T, rate * speed, rate).T
    wanted = int(seconds * rate)
    times = -(-wanted // changed.shape[1])
    repeated: Samples = np.tile(changed, (1, times))[:, :wanted]
    return repeated


def _notes_of(name: str) -> frozenset[int]:
    for pattern, notes in _INSTRUMENTS:
        if re.search(pattern, name, re.IGNORECASE):
            return notes
    return frozenset()


def _without_namespace(text: str) -> str:
    """So that elements have the same names in kits of all versions."""
    return re.sub(r'\sxmlns="[^"]+"', "", text, count=1)


def read_stereo(path: Path, rate: int) -> Samples:
    """A recording as `[2, time]` at `rate` Hz. Raises: AudioError if it cannot be read."""
    try:
        samples, own_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise AudioError(f"cannot read {path}: {error}") from error
    if own_rate != rate:
        samples = soxr.resample(samples, own_rate, rate)
    stereo = samples if samples.shape[1] >= 2 else samples.repeat(2, axis=1)
    return np.ascontiguousarray(stereo[:, :2].T)
