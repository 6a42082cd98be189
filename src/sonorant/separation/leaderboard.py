"""The table of the Music Demixing Challenge 2021 for separators of one's own choice.

Two boards: A for what was trained on the training songs of MUSDB18-HQ alone, B for anything. Ranks
are by the challenge's SDR, the mean over songs of the mean over sources; oracles and the mixture
stand below, without a rank.

Source: Mitsufuji et al., arXiv 2108.13559, sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from sonorant.errors import ConfigError
from sonorant.separation.evaluation import GLOBAL, Evaluation

Board = Literal["a", "b"]
BOARDS: dict[Board, str] = {
    "a": "trained on the training songs of MUSDB18-HQ only",
    "b": "trained on any data",
}
TRAINED_ON_MUSDB_HQ = frozenset(
    {
        "demucs48_hq",
        "mdx",
        "mdx_q",
        "repro_mdx_a",
        "repro_mdx_a_hybrid_only",
        "repro_mdx_a_time_only",
    }
)
"""The published models that board A takes (arXiv 2111.03600, and the documentation of demucs)."""


class Entry(msgspec.Struct, frozen=True):
    """What takes part. name: as the table shows it. what: as of `evaluation.estimates_of`.

    only_musdb: whether it keeps to the rules of board A.
    """

    name: str
    what: str
    only_musdb: bool = False


class Row(msgspec.Struct, frozen=True):
    """A line of the table. rank: None for a baseline. scores: SDR in dB, "all" and by source."""

    rank: int | None
    name: str
    scores: dict[str, float]


def entry_of(text: str, only_musdb: Sequence[str] = ()) -> Entry:
    """An entry as commands take it: WHAT, or NAME=WHAT.

    only_musdb: names that keep to the rules of board A, beside the published models known to.
    """
    name, _, what = text.partition("=")
    what = what or name
    return Entry(name, what, what in TRAINED_ON_MUSDB_HQ or name in only_musdb)


def board(
    which: Board, entries: Sequence[tuple[Entry, Evaluation]], baselines: Sequence[Evaluation] = ()
) -> list[Row]:
    """The rows of one board, the best first; equal scores share a rank.

    Raises: ConfigError if the evaluations are not of the same songs.
    """
    evaluations = [*(evaluation for _, evaluation in entries), *baselines]
    if len({tuple(song.name for song in each.songs) for each in evaluations}) > 1:
        raise ConfigError("a leaderboard compares evaluations of the same songs only")
    allowed = [(entry, each) for entry, each in entries if which == "b" or entry.only_musdb]
    ranked = sorted(allowed, key=lambda pair: -_score(pair[1]))
    rows = []
    for entry, evaluation in ranked:
        better = sum(_score(other) > _score(evaluation) for _, other in ranked)
        rows.append(Row(better + 1, entry.name, _scores(evaluation)))
    below = sorted(baselines, key=lambda each: -_score(each))
    return rows + [Row(None, each.name, _scores(each)) for each in below]


def _score(evaluation: Evaluation) -> float:
    return evaluation.totals["all"][GLOBAL].mean


def _scores(evaluation: Evaluation) -> dict[str, float]:
    columns = ("all", *evaluation.sources)
    return {column: evaluation.totals[column][GLOBAL].mean for column in columns}
