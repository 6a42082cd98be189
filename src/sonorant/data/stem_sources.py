"""Where rendered songs come from: Debian packages of soundfonts, pieces, drums and voices.

What is kept for the test is named here: a soundfont, drum kits, loops and languages of its own.
Validation shares soundfonts and kits with training, but no piece, loop or language.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from sonorant.data.compositions import RATE, Composition, midi_files, styles
from sonorant.data.corpora import find_corpus
from sonorant.data.drum_kits import kit_folders, read_kit
from sonorant.data.manifest import SPLITS, Split
from sonorant.data.packages import download_package, unpack_package
from sonorant.data.prepare import Candidate, collect
from sonorant.data.rendered_songs import Recordings, share_out
from sonorant.errors import AudioError

Told = Callable[[str], None]

# Package -> licence, as its `copyright` file gives it.
TRAINING_SOUNDFONTS = {
    "fluid-soundfont-gm": "MIT",
    "csound-soundfont": "LGPL-2.1+",
}
TEST_SOUNDFONTS = {"timgm6mb-soundfont": "GPL-2"}
# Package -> licence and authors.
PIECES = {
    "freedoom": ("BSD-3-Clause", "the Freedoom contributors"),
    "openttd-openmsx": ("GPL-2", "the OpenMSX contributors"),
}
KITS = "hydrogen-drumkits"
TEST_KITS = frozenset({"ColomboAcousticDrumkit", "Millo-Drums_v.1"})
LOOPS = "sonic-pi-samples"
DRUM_LOOPS = frozenset(  # those of its loops that are drums
    [
        *("loop_amen", "loop_amen_full", "loop_breakbeat", "loop_compus", "loop_electric"),
        *("loop_garzul", "loop_industrial", "loop_mehackit1", "loop_mehackit2", "loop_mika"),
        *("loop_perc1", "loop_perc2", "loop_safari", "loop_tabla"),
    ]
)
VOICES = ("tuxpaint-stamps-default", "ktuberling-data", "hedgewars-data")


def gather(
    cache: Path, own_pieces: Iterable[Path] = (), told: Told = print
) -> dict[Split, Recordings]:
    """Fetch all packages into `cache`, and sort what is in them by split.

    own_pieces: folders of one's own MIDI files, to compose more songs of. told: is given a line
    about everything that had to be left out.
    Raises: as `download_package`, `unpack_package` and `styles`.
    """
    pieces = styles()
    for package, (licence, authors) in PIECES.items():
        pieces += midi_files(fetched(package, cache), licence, authors)
    for folder in own_pieces:
        pieces += midi_files(folder, f"as stated with {folder.name}", "")
    compositions = share_out(_named_once(pieces))
    kits = _usable_kits(fetched(KITS, cache), told)
    loops, voices = _loops(cache), _voices(cache)
    found = {}
    for split in SPLITS:
        tested = split == "test"
        fonts = TEST_SOUNDFONTS if tested else TRAINING_SOUNDFONTS
        found[split] = Recordings(
            compositions=compositions[split],
            soundfonts=tuple(
                (_soundfont(fetched(package, cache)), licence) for package, licence in fonts.items()
            ),
            kits=tuple(kit for kit in kits if (kit.name in TEST_KITS) == tested),
            loops=tuple(loop for loop in loops if loop.split == split),
            voices=tuple(voice for voice in voices if voice.split == split),
        )
    return found


def fetched(package: str, cache: Path) -> Path:
    """The folder of an unpacked package."""
    return unpack_package(download_package(package, cache), cache / f"{package}.unpacked")


def _soundfont(folder: Path) -> Path:
    found = [path for path in sorted(folder.rglob("*")) if path.suffix in (".sf2", ".sf3")]
    if not found:
        raise AudioError(f"there is no soundfont in {folder}")
    return found[0].resolve()


def _usable_kits(root: Path, told: Told) -> list[Path]:
    """Kits that can play a drum part; some in the package lack recordings they name."""
    usable = []
    for folder in kit_folders(root):
        try:
            kit = read_kit(folder, RATE)
        except AudioError as error:
            told(f"left out the drum kit {folder.name}: {error}")
            continue
        if kit is None:
            told(f"left out the drum kit {folder.name}: no kick, snare and hi-hat by name")
        else:
            usable.append(folder)
    return usable


def _loops(cache: Path) -> list[Candidate]:
    found = collect(fetched(LOOPS, cache), LOOPS, find_corpus(LOOPS).selections)
    return [each for each in found if each.path.stem in DRUM_LOOPS]


def _voices(cache: Path) -> list[Candidate]:
    found = []
    for package in VOICES:
        selections = find_corpus(package).selections
        spoken = collect(fetched(package, cache), package, selections)
        found += [each for each in spoken if each.selection.domain == "speech"]
    return found


def _named_once(pieces: Iterable[Composition]) -> list[Composition]:
    """Pieces that two packages have under one name are one, so that they share a split."""
    return list({piece.name: piece for piece in pieces}.values())
