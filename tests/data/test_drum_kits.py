"""Recorded drums: kits that are read and played, loops that are repeated."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sonorant.data.drum_kits import Kit, kit_folders, play, read_kit, repeat
from sonorant.errors import AudioError, FormatError

RATE = 8000


def write_kit(folder: Path, names: dict[str, list[float]]) -> Path:
    """A kit of clicks: instruments by name, with the height of each recording's click."""
    folder.mkdir(parents=True)
    instruments = ""
    for number, (name, heights) in enumerate(names.items()):
        layers = ""
        for layer, height in enumerate(heights):
            file = f"{number}_{layer}.wav"
            soundfile.write(folder / file, np.array([height, 0.0, 0.0]), RATE, "FLOAT")
            layers += f"<layer><filename>{file}</filename></layer>"
        instruments += f"<instrument><name>{name}</name>{layers}</instrument>"
    (folder / "drumkit.xml").write_text(
        '<drumkit_info xmlns="http://example.org/kit"><author>A. Drummer</author>'
        f"<license>CC0</license><instrumentList>{instruments}</instrumentList></drumkit_info>"
    )
    return folder


def test_instruments_are_known_by_their_names(tmp_path: Path) -> None:
    names = {"Kick 1": [0.1], "Snare": [0.2, 0.4], "Hat Closed": [0.3], "Hat Open": [0.5]}
    folder = write_kit(tmp_path / "kit", names)
    assert kit_folders(tmp_path) == [folder]
    kit = read_kit(folder, RATE)
    assert kit is not None
    assert (kit.name, kit.licence, kit.attribution) == ("kit", "CC0", "A. Drummer")
    heights = {
        note: [float(each[0, 0]) for each in strokes] for note, strokes in kit.strokes.items()
    }
    assert heights[36] == pytest.approx([0.1])
    assert heights[38] == pytest.approx([0.2, 0.4])
    assert heights[42] == pytest.approx([0.3])
    assert heights[46] == pytest.approx([0.5])


def test_a_kit_without_a_snare_is_none(tmp_path: Path) -> None:
    assert read_kit(write_kit(tmp_path / "kit", {"Kick": [0.1], "HiHat": [0.2]}), RATE) is None


def test_damaged_kits_are_refused(tmp_path: Path) -> None:
    folder = write_kit(tmp_path / "kit", {"Kick": [0.1], "Snare": [0.1], "HiHat": [0.2]})
    (folder / "0_0.wav").unlink()
    with pytest.raises(AudioError, match=r"0_0\.wav"):
        read_kit(folder, RATE)
    (folder / "drumkit.xml").write_text("<drumkit_info>")
    with pytest.raises(FormatError, match="is damaged"):
        read_kit(folder, RATE)


def test_hits_sound_when_and_as_hard_as_they_are_struck() -> None:
    soft, hard = (np.full((2, 4), value, np.float32) for value in (0.1, 0.4))
    kit = Kit(name="kit", licence="", attribution="", strokes={36: [soft, hard]})
    played = play(kit, [(0.0, 36, 0.4), (0.5, 36, 1.0), (0.7, 99, 1.0), (9.0, 36, 1.0)], 1.0, 10)
    expected = np.zeros(10)
    expected[:4] += 0.4 * 0.1
    expected[5:9] += 1.0 * 0.4
    np.testing.assert_allclose(played, np.stack([expected, expected]), rtol=1e-6)


def test_loops_go_on_and_change_their_speed() -> None:
    loop = np.tile(np.sin(2 * np.pi * np.arange(400) / 40).astype(np.float32), (2, 1))
    same = repeat(loop, 0.1, RATE, speed=1.0)
    assert same.shape == (2, 800)
    np.testing.assert_allclose(same[:, 400:], same[:, :400], atol=1e-3)
    faster = repeat(loop, 0.1, RATE, speed=1.25)
    peak = np.abs(np.fft.rfft(faster[0])).argmax() * RATE / 800
    assert peak == pytest.approx(1.25 * RATE / 40, rel=0.05)
