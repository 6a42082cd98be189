"""Catalogues of songs in stems: listed, and read in blocks, whatever is wrong with some of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sonorant.audio.sound import check_finite
from sonorant.data.songs import LeaveOut, Samples, Song, read_songs, read_stem
from sonorant.errors import AudioError
from sonorant.separation.stems import check_sources, find_songs

BLOCK_SECONDS = 10
"""Of a stem that is read at once."""


def list_songs(path: Path, leave_out: LeaveOut, licence: str = "") -> list[Song]:
    """The songs of a manifest, or of a folder as `find_songs` takes it.

    licence: of the songs of a folder. leave_out: hears of songs that do not open, or are not there.
    Raises: ConfigError as `read_songs`, and for a folder without songs.
    """
    if path.is_dir():
        return list(find_songs(path, licence, leave_out))
    return read_songs(path, leave_out=leave_out)


def read_blocks(song: Song, source: str) -> Iterator[Samples]:
    """A whole stem in blocks `[channels, time]` of some seconds.

    Raises: ConfigError if the song has no such source; AudioError if the stem is damaged, cut short
    or not finite.
    """
    check_sources([song], [source])
    step = BLOCK_SECONDS * song.sample_rate
    for start in range(0, song.samples, step):
        block, wanted = read_stem(song, source, start, step), min(step, song.samples - start)
        if block.shape[1] < wanted:
            raise AudioError(
                f"{song.files[source]} is cut short: {wanted - block.shape[1]} samples are missing "
                f"from sample {start + block.shape[1]} on"
            )
        check_finite(block, song.files[source], start)
        yield block


def key_of(song: Song, sources: Sequence[str], *facts: object) -> str:
    """Tells what is found from these stems and facts: another key when a file has changed.

    Raises: ConfigError if the song lacks one of the sources.
    """
    check_sources([song], sources)
    files = [os.stat(song.files[source]) for source in sources]
    seen = [song.name, list(sources), [(file.st_size, file.st_mtime_ns) for file in files], *facts]
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
