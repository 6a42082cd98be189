from __future__ import annotations

import pytest

from sonorant.data.corpora import CORPORA, Selection, find_corpus
from sonorant.errors import ConfigError


def groups(name: str, path: str) -> tuple[str, str, str] | None:
    """Domain, group and split that the table gives to a file of a package."""
    for selection in CORPORA[name].selections:
        group = selection.group_of(path)
        if group is not None:
            return selection.domain, group, selection.split_of(group)
    return None


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("tuxpaint-stamps-default", "stamps/animals/cat_desc_fr.ogg", ("speech", "fr", "train")),
        ("tuxpaint-stamps-default", "stamps/animals/cat_desc_pt_BR.wav", ("speech", "pt", "test")),
        ("tuxpaint-stamps-default", "stamps/animals/cat_desc.ogg", ("speech", "en", "train")),
        ("tuxpaint-stamps-default", "stamps/food/egg_desc_da.ogg.ogg", ("speech", "da", "train")),
        ("tuxpaint-stamps-default", "stamps/symbols/math/7_lt.ogg", ("speech", "lt", "test")),
        ("tuxpaint-stamps-default", "stamps/symbols/math/7.ogg", ("speech", "en", "train")),
        ("tuxpaint-stamps-default", "stamps/birds/rooster.ogg", ("sound", "rooster", "test")),
        ("tuxpaint-stamps-default", "stamps/animals/dog.wav", ("sound", "dog", "train")),
        ("klettres-data", "usr/share/klettres/pt_BR/alpha/a-0.ogg", ("speech", "pt", "test")),
        ("klettres-data", "usr/share/klettres/hu/syllab/ba.ogg", ("speech", "hu", "valid")),
        ("ktuberling-data", "ktuberling/sounds/sr@latin/egg.ogg", ("speech", "sr", "train")),
        ("ufoai-music", "0music.pk3.unpacked/music/David02.ogg", ("music", "david02", "test")),
        ("ufoai-sound", "x.unpacked/sound/ambience/thunder2.ogg", ("sound", "thunder", "valid")),
        ("ufoai-sound", "x.unpacked/sound/ambience/radiomessage.ogg", None),
        ("megaglest-data", "megaglest/techs/units/x/sounds/archer_ack1.wav", None),
        ("wesnoth-1.16-data", "core/sounds/ambient/birds3.ogg", ("sound", "birds", "train")),
    ],
)
def test_a_file_name_gives_domain_group_and_split(
    name: str, path: str, expected: tuple[str, str, str] | None
) -> None:
    assert groups(name, path) == expected


def test_selections_of_one_kind_keep_the_same_groups_aside() -> None:
    kept: dict[str, set[tuple[object, object]]] = {}
    for corpus in CORPORA.values():
        for selection in corpus.selections:
            if selection.kind:
                kept.setdefault(selection.kind, set()).add((selection.test, selection.valid))
    assert {kind: len(found) for kind, found in kept.items()} == dict.fromkeys(kept, 1)


def test_every_selection_names_its_licence_and_authors() -> None:
    for name, corpus in CORPORA.items():
        for selection in corpus.selections:
            assert selection.licence, name
            assert selection.attribution, name
            assert not (selection.test or frozenset()) & (selection.valid or frozenset()), name


def test_without_lists_a_hash_keeps_one_group_in_twenty_for_each_split() -> None:
    selection = Selection(domain="sound", licence="CC0-1.0", attribution="")
    splits = [selection.split_of(f"group {number}") for number in range(2000)]
    assert splits.count("test") == pytest.approx(100, abs=30)
    assert splits.count("valid") == pytest.approx(100, abs=30)
    assert splits == [selection.split_of(f"group {number}") for number in range(2000)]


def test_an_unknown_corpus_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigError, match=r"wesnoth-1\.16-music"):
        find_corpus("librispeech")
