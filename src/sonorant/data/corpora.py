"""Openly licensed full-band audio that anyone on Debian or Ubuntu can fetch, package by package.

Each corpus is one Debian package. Its selections say which files are speech, music or sounds, under
which licence, and how a file's name gives its group (language, song, class of sound). Licences were
read from each package's `copyright` file and from notes beside the audio. Whole languages, songs
and classes are kept aside for validation and test, the same ones in every package, since one
narrator may speak in several.
"""

from __future__ import annotations

import hashlib
import re

import msgspec

from sonorant.data.manifest import Domain, Split
from sonorant.errors import ConfigError

TEST_LANGUAGES = frozenset({"lt", "it", "pt"})
VALID_LANGUAGES = frozenset({"hu", "nds", "gl", "wa", "sl"})
TEST_SOUNDS = frozenset({"rooster", "helicopter"})
VALID_SOUNDS = frozenset({"person_sneeze", "sneeze", "thunder"})


class Selection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Some of a corpus's audio files, and how they may be used.

    files: regular expression, searched in the path below the corpus's root. Its group `group` is
        the file's speaker, song or class; without one, the file's own name is.
    kind: what groups are called; selections of the same kind share their groups.
    test, valid: groups kept aside; all others are trained on. When both are None, a hash of the
        group puts about one in twenty in each.
    default_group: for files where the expression's `group` matches nothing.
    """

    domain: Domain
    licence: str
    attribution: str
    files: str = ""
    kind: str = ""
    test: frozenset[str] | None = None
    valid: frozenset[str] | None = None
    default_group: str = ""

    def group_of(self, path: str) -> str | None:
        """The group of a file by its path below the corpus's root; None if it is not selected."""
        match = re.search(self.files, path)
        if match is None:
            return None
        stem = path.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        found = match.groupdict().get("group") or self.default_group or stem
        return found.lower()

    def split_of(self, group: str) -> Split:
        """The split that a group belongs to."""
        if self.test is None and self.valid is None:
            draw = int.from_bytes(hashlib.sha256(group.encode()).digest()[:4], "big") % 20
            return "test" if draw == 0 else "valid" if draw == 1 else "train"
        if group in (self.test or ()):
            return "test"
        return "valid" if group in (self.valid or ()) else "train"


class Corpus(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A Debian package with audio. archives: patterns of ZIP files in it that hold the audio."""

    about: str
    selections: tuple[Selection, ...]
    archives: tuple[str, ...] = ()


def _speech(files: str, licence: str, attribution: str, default: str = "") -> Selection:
    return Selection(
        domain="speech",
        licence=licence,
        attribution=attribution,
        files=files,
        kind="language",
        test=TEST_LANGUAGES,
        valid=VALID_LANGUAGES,
        default_group=default,
    )


def _sounds(files: str, licence: str, attribution: str) -> Selection:
    """Sound effects: `thunder2.ogg` and `Thunder.wav` are of one class, whatever their package."""
    return Selection(
        domain="sound",
        licence=licence,
        attribution=attribution,
        files=files + r"(?P<group>[^/]+?)(?:[-_ ]?[0-9]+[a-z]?)?\.(?:ogg|wav|flac)$",
        kind="sound",
        test=TEST_SOUNDS,
        valid=VALID_SOUNDS,
    )


def _songs(
    files: str,
    licence: str,
    attribution: str,
    test: tuple[str, ...] = (),
    valid: tuple[str, ...] = (),
) -> Selection:
    """Music: every file is a song of its own, so the file's name is its group."""
    return Selection(
        domain="music",
        licence=licence,
        attribution=attribution,
        files=files,
        test=frozenset(test),
        valid=frozenset(valid),
    )


CORPORA: dict[str, Corpus] = {
    "tuxpaint-stamps-default": Corpus(
        about="names of pictured things spoken in many languages; animal and machine sounds",
        selections=(
            _speech(
                r"_desc(?:_(?P<group>[a-z]+))?(?:_[A-Z]+)?(?:\.ogg)?\.(?:ogg|wav)$",
                "GPL-2",
                "Bill Kendrick and the Tux Paint contributors",
                default="en",
            ),
            _speech(
                r"symbols/math/[0-9](?:_(?P<group>[a-z]+))?(?:_\w+)?\.ogg$",
                "GPL-2",
                "Bill Kendrick and the Tux Paint contributors",
                default="en",
            ),
            _sounds(
                r"stamps/(?!.*_desc|symbols/|.*_[a-z]{2}\.)(?:.*/)?",
                "GPL-2",
                "Bill Kendrick and the Tux Paint contributors",
            ),
        ),
    ),
    "klettres-data": Corpus(
        about="letters and syllables spoken in 25 languages",
        selections=(
            _speech(
                r"klettres/(?P<group>[a-z]+)(?:_[A-Z]+)?/(?:alpha|syllab)/",
                "GPL-2+",
                "Anne-Marie Mahfouf and the KDE contributors",
            ),
        ),
    ),
    "ktuberling-data": Corpus(
        about="single words spoken in 25 languages",
        selections=(
            _speech(
                r"ktuberling/sounds/(?P<group>[a-z]+)[^/]*/",
                "GPL-2+",
                "Albert Astals Cid and the KDE contributors",
            ),
        ),
    ),
    "hedgewars-data": Corpus(
        about="exclamations of 18 game characters; explosions, tools, animals",
        selections=(
            Selection(
                domain="speech",
                licence="GFDL-1.3",
                attribution="Andrey Korotaev and the Hedgewars contributors",
                files=r"Sounds/voices/(?P<group>[^/]+)/",
                kind="hedgewars voice",
                test=frozenset(),
            ),
            _sounds(r"Data/Sounds/", "GFDL-1.3", "Andrey Korotaev and the Hedgewars contributors"),
        ),
    ),
    "wesnoth-1.16-music": Corpus(
        about="orchestral music",
        selections=(
            _songs(
                r"core/music/.*\.ogg$",
                "GPL-2+",
                "the Battle for Wesnoth composers",
                test=("knolls", "traveling_minstrels"),
                valid=("sad",),
            ),
        ),
    ),
    "warzone2100-music": Corpus(
        about="electronic and orchestral music",
        selections=(
            _songs(
                r"music/albums/(?:aftermath|legacy)_soundtrack/(?!track3_enh|menu_enh).*\.opus$",
                "CC-BY-SA-3.0 or GPL-2+",
                "LupusMechanicus",
            ),
            _songs(
                r"music/albums/.*\.opus$",
                "GPL-2+",
                "Martin Severn, LupusMechanicus",
            ),
        ),
    ),
    "singularity-music": Corpus(
        about="ambient electronic music",
        selections=(
            _songs(
                r"singularity/music/.*\.ogg$",
                "CC-BY-SA-3.0",
                "Max McCracken",
                test=("nebula",),
                valid=("coherence",),
            ),
        ),
    ),
    "ufoai-music": Corpus(
        about="rock, electronic and film music",
        archives=("usr/share/games/ufoai/base/*.pk3",),
        selections=(
            _songs(
                r"music/(?:David|azrael|karlmacklin|van_)",
                "CC-BY-3.0",
                "Manuel Marino, Gren, David Reeves, azrael1322, Karl Macklin",
                test=("david02",),
                valid=("david04",),
            ),
            _songs(
                r"music/(?:alBasrahM|greecei|turinItalyM)",
                "public domain",
                "Independent.nu, Golgotha",
                test=("turinitalym",),
            ),
            _songs(
                r"music/(?:Crystan|Marine|TheThings|dynamictest|returnjourney)",
                "CC-BY-SA-3.0",
                "Gren, Christian Hoffmann, Slippycurb",
            ),
            _songs(
                r"music/.*\.ogg$",
                "GPL-2",
                "Al Riddoch, Simon Green (Psymong), Alex Parker, Paul Bee, Karen Rei Pease, "
                "Draikon",
            ),
        ),
    ),
    "sonic-pi-samples": Corpus(
        about="drum, bass, guitar, tabla and electronic one-shots and loops",
        selections=(
            _songs(
                r"sonic-pi/samples/.*\.flac$",
                "CC0-1.0 or MIT by file (see the package's copyright file)",
                "freesound.org authors, collected by Sam Aaron and the Sonic Pi contributors",
                test=("loop_amen_full", "loop_amen"),
                valid=("loop_garzul",),
            ),
        ),
    ),
    "hyperrogue-music": Corpus(
        about="atmospheric music and effects",
        selections=(
            _songs(
                r"hyperrogue/music/.*\.ogg$",
                "CC-BY-SA-3.0",
                "Shawn Parrotte, Lincoln Domina, Will Savino",
                test=("hr-savino-ocean",),
                valid=("hr3-jungle",),
            ),
            _sounds(
                r"hyperrogue/sounds/",
                "CC-BY-SA-4.0",
                "Brett Cornwall, Zeno Rogue, Tehora Rogue",
            ),
        ),
    ),
    "unknown-horizons": Corpus(
        about="Renaissance-like music; sounds of trades, animals and the sea",
        selections=(
            _songs(r"content/audio/music/.*\.ogg$", "CC-BY-SA-3.0", "the Unknown Horizons team"),
            _sounds(r"content/audio/sounds/(?:.*/)?", "CC-BY-SA-3.0", "the Unknown Horizons team"),
        ),
    ),
    "colobot-common-sounds": Corpus(
        about="electronic and orchestral music; machine sounds",
        selections=(
            _songs(r"colobot/music/.*\.ogg$", "GPL-3+", "Epsitec SA and TerranovaTeam"),
            _sounds(r"colobot/sounds/", "GPL-3+", "Epsitec SA and TerranovaTeam"),
        ),
    ),
    "ufoai-sound": Corpus(
        about="ambience, weather, machines, footsteps, weapons",
        archives=("usr/share/games/ufoai/base/*.pk3",),
        selections=(
            _sounds(
                r"sound/(?!ambience/(?:disco|tv_news|jingle|radiomessage)|soldiers/)(?:.*/)?",
                "GPL-2+, CC-BY-SA-3.0 or CC-BY-3.0 by file (see the package's copyright file)",
                "the UFO:AI team",
            ),
        ),
    ),
    "megaglest-data": Corpus(
        about="ambience of landscapes, weather, tools, weapons, animals",
        selections=(
            _sounds(
                r"megaglest/(?:tilesets|techs)/.*sounds/(?!.*_(?:ack|select))",  # spoken replies
                "CC-BY-SA-3.0",
                "the Glest team",
            ),
        ),
    ),
    "wesnoth-1.16-data": Corpus(
        about="weapons, animals, ambience",
        selections=(
            _sounds(r"core/sounds/(?:.*/)?", "GPL-2+", "the Battle for Wesnoth contributors"),
        ),
    ),
}


def find_corpus(name: str) -> Corpus:
    """The corpus of a package name. Raises ConfigError naming the known ones."""
    if name not in CORPORA:
        raise ConfigError(f"unknown corpus {name!r}: choose from {', '.join(sorted(CORPORA))}")
    return CORPORA[name]
