"""Curation: shares that are known, songs that pass or do not, and those that are left out."""

from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from sonorant.data.journal import Journal
from sonorant.data.songs import Song, song_of
from sonorant.errors import AudioError, ConfigError, SonorantError
from sonorant.separation.curation import Measured, curate, measure
from sonorant.separation.separator import Separator

RATE = 1000
HEARD, UNHEARD = 10 ** (-9.9 / 20), 10 ** (-10.1 / 20)
"""Gains just above and just below what counts as heard."""


class BySideConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    leak: float = 0.0
    sample_rate: int = RATE


class BySide(Separator):
    """Hears what comes from the left as the first source, what comes from the right as the second,
    and so much of the other side in each."""

    system: ClassVar[str] = "by_side"
    config_type: ClassVar[type[msgspec.Struct]] = BySideConfig
    config: BySideConfig

    def __init__(self, config: BySideConfig) -> None:
        super().__init__(config)
        self.sources, self.audio_channels = ("drums", "bass"), 2
        self.sample_rate, self.segment_samples = config.sample_rate, 700
        leak = config.leak
        self.sides = nn.Parameter(torch.tensor([[1.0, leak], [leak, 1.0]]))
        self.calls = 0
        self.eval()

    def forward(self, mix: Tensor) -> Tensor:
        self.calls += 1
        return mix[:, None] * self.sides[:, :, None]


def by_side(leak: float = 0.0, sample_rate: int = RATE) -> BySide:
    return BySide(BySideConfig(leak=leak, sample_rate=sample_rate))


def write_sides(folder: Path, **stems: str) -> Song:
    """A song whose stems play a second on the left (l), right (r), or not (-), by letter."""
    folder.mkdir(parents=True)
    files = {}
    for source, seconds in stems.items():
        noise = np.random.default_rng(len(source)).standard_normal((len(seconds), RATE))
        sides = [[letter == side for letter in seconds] for side in "lr"]
        samples = 0.1 * noise[None] * np.array(sides)[:, :, None]
        files[source] = folder / f"{source}.wav"
        soundfile.write(files[source], samples.reshape(2, -1).T, RATE, "FLOAT")
    return song_of(folder.name, "train", files, measure_level=False)


def test_shares_are_those_of_the_active_seconds(tmp_path: Path) -> None:
    song = write_sides(tmp_path / "song", drums="llllrr----", bass="rrrrrrrr-l")
    measured = measure(song, by_side())
    assert measured.active == {"drums": 0.6, "bass": 0.9}
    assert measured.heard["drums"] == pytest.approx({"drums": 4 / 6, "bass": 2 / 6})
    assert measured.heard["bass"] == pytest.approx({"drums": 1 / 9, "bass": 8 / 9})
    assert not measured.kept


@pytest.mark.parametrize(("leak", "share"), [(HEARD, 1.0), (UNHEARD, 0.0)])
def test_a_source_is_heard_from_10_db_below_the_stem_on(
    tmp_path: Path, leak: float, share: float
) -> None:
    song = write_sides(tmp_path / "song", drums="llll", bass="rrrr")
    measured = measure(song, by_side(leak))
    assert measured.heard == {
        "drums": {"drums": 1.0, "bass": share},
        "bass": {"drums": share, "bass": 1.0},
    }
    assert measured.kept == (share == 0)


@pytest.mark.parametrize(
    ("drums", "kept"), [("llllllllrr", True), ("lllllllrrr", False), ("lll-------", True)]
)
def test_a_stem_holds_more_than_70_percent_of_its_own_and_less_than_30_of_another(
    tmp_path: Path, drums: str, kept: bool
) -> None:
    song = write_sides(tmp_path / "song", drums=drums, bass="r" * 10)
    assert measure(song, by_side()).kept == kept


def test_a_song_with_a_stem_that_plays_too_seldom_is_not_separated(tmp_path: Path) -> None:
    song, model = write_sides(tmp_path / "song", drums="ll--------", bass="r" * 10), by_side()
    measured = measure(song, model)
    assert (measured.active["drums"], measured.heard, measured.kept) == (0.2, {}, False)
    assert model.calls == 0


def test_seconds_are_as_loud_at_another_rate(tmp_path: Path) -> None:
    song = write_sides(tmp_path / "song", drums="llllllllrr", bass="r" * 10)
    measured = measure(song, by_side(sample_rate=2 * RATE))
    assert measured.active == {"drums": 1.0, "bass": 1.0}
    assert measured.heard["drums"] == pytest.approx({"drums": 0.8, "bass": 0.2})


def test_what_is_measured_is_not_measured_again(tmp_path: Path) -> None:
    songs = [write_sides(tmp_path / name, drums="llll", bass="rrrr") for name in ("a", "b")]
    left_out: list[SonorantError] = []

    def found(model: BySide) -> list[Measured]:
        journal = Journal(tmp_path / "measured.jsonl", Measured)
        return [each for _, each in curate(songs, model, journal, left_out.append)]

    first = by_side()
    whole = found(first)
    assert first.calls > 0
    again = by_side()
    assert found(again) == whole
    assert again.calls == 0
    other = by_side(leak=0.9)
    assert [each.kept for each in found(other)] == [False, False]
    assert left_out == []


def test_songs_that_cannot_be_measured_are_told(tmp_path: Path) -> None:
    good = write_sides(tmp_path / "good", drums="llll", bass="rrrr")
    lacking = write_sides(tmp_path / "lacking", drums="llll", vocals="rrrr")
    damaged = write_sides(tmp_path / "damaged", drums="llll", bass="rrrr")
    soundfile.write(damaged.files["bass"], np.full((4 * RATE, 2), np.nan), RATE, "FLOAT")
    left_out: list[SonorantError] = []
    journal = Journal(tmp_path / "measured.jsonl", Measured)
    found = list(curate([lacking, damaged, good], by_side(), journal, left_out.append))
    assert [song.name for song, _ in found] == ["good"]
    assert [type(error) for error in left_out] == [ConfigError, AudioError]
    assert "lacking has no bass" in str(left_out[0])
    assert "holds nan at sample 0" in str(left_out[1])


def test_a_song_needs_a_whole_second(tmp_path: Path) -> None:
    song = write_sides(tmp_path / "song", drums="l", bass="r")
    with pytest.raises(AudioError, match="shorter than a second"):
        measure(msgspec.structs.replace(song, samples=RATE - 1), by_side())
