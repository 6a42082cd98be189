"""Pictures of sounds, and players with their files inside."""

from pathlib import Path

import pytest
import torch

from sonorant.audio import Audio, write
from sonorant.listening import Scale, draw, player, section

RATE = 8000


@pytest.mark.parametrize(
    "samples",
    [torch.zeros(1, RATE), torch.ones(2, 1), torch.randn(2, 5000)],
    ids=["silence", "one_sample", "stereo"],
)
def test_any_sound_can_be_drawn(samples: torch.Tensor) -> None:
    audio = Audio(samples, RATE)
    assert draw(audio, Scale.of(audio)).startswith(b"\x89PNG")


def test_loud_and_soft_sounds_look_different_at_the_same_scale() -> None:
    loud = Audio(torch.sin(torch.arange(RATE) * 0.3)[None], RATE)
    soft = Audio(loud.samples * 0.1, RATE)
    assert draw(loud, Scale.of(loud)) != draw(soft, Scale.of(loud))


def test_titles_and_notes_are_text_not_markup(tmp_path: Path) -> None:
    audio = Audio(torch.zeros(1, RATE), RATE)
    write(tmp_path / "a.flac", audio)
    row = player("a<b", "5 < 6", tmp_path / "a.flac", Scale.of(audio))
    assert "<h3>a&lt;b</h3><p>5 &lt; 6</p>" in row
    assert "data:audio/flac;base64,ZkxhQ" in row  # a FLAC file's first letters, fLaC
    page = section("Drums & bass", "by <me>", [row])
    assert "<h2>Drums &amp; bass</h2>" in page
    assert "by &lt;me&gt;" in page
