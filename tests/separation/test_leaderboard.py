"""The challenge's two boards: who may take part, ranks, and baselines below."""

import msgspec
import pytest

from sonorant.errors import ConfigError
from sonorant.separation.evaluation import Evaluation, Plan, SongScores, SourceScores, totals_of
from sonorant.separation.leaderboard import BOARDS, Entry, board, entry_of


def scored(name: str, *songs: float) -> Evaluation:
    """Two sources, of `song` and `song + 2` dB."""
    results = [
        SongScores(
            name=str(index),
            seconds=1,
            sources={"bass": SourceScores(value), "drums": SourceScores(value + 2)},
            frames=0,
            silent_frames=0,
            padded_samples=0,
        )
        for index, value in enumerate(songs)
    ]
    return Evaluation(name, ("bass", "drums"), Plan(bss=False), totals_of(results), results)


ENTRIES = [
    (Entry("mine", "x", only_musdb=True), scored("mine", 4, 6)),
    (Entry("large", "y"), scored("large", 9, 9)),
    (Entry("same", "z", only_musdb=True), scored("same", 6, 4)),
    (Entry("weak", "w", only_musdb=True), scored("weak", 1, 1)),
]


def test_board_b_takes_all_and_board_a_those_that_keep_to_its_rules() -> None:
    assert [row.name for row in board("b", ENTRIES)] == ["large", "mine", "same", "weak"]
    assert [row.name for row in board("a", ENTRIES)] == ["mine", "same", "weak"]
    assert list(BOARDS) == ["a", "b"]


def test_equal_scores_share_a_rank_and_baselines_have_none() -> None:
    rows = board("a", ENTRIES, [scored("mixture", -1, -1), scored("irm1", 10, 10)])
    assert [(row.name, row.rank) for row in rows] == [
        ("mine", 1),
        ("same", 1),
        ("weak", 3),
        ("irm1", None),
        ("mixture", None),
    ]


def test_scores_are_means_over_songs() -> None:
    row = board("b", ENTRIES)[1]
    assert row.scores == {"all": 6, "bass": 5, "drums": 7}
    assert msgspec.to_builtins(row)["rank"] == 2


def test_different_songs_are_not_compared() -> None:
    other = (Entry("other", "o"), scored("other", 1))
    with pytest.raises(ConfigError, match="same songs"):
        board("b", [*ENTRIES, other])


def test_entries_say_what_they_are() -> None:
    assert entry_of("mdx") == Entry("mdx", "mdx", only_musdb=True)
    assert entry_of("Bag=mdx_extra") == Entry("Bag", "mdx_extra", only_musdb=False)
    assert entry_of("mine=out/a=b", ["mine"]) == Entry("mine", "out/a=b", only_musdb=True)
