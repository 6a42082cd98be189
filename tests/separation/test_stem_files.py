from __future__ import annotations

import sys
from pathlib import Path

import pytest
import soundfile
import torch

from sonorant.audio import read
from sonorant.errors import AudioError, ConfigError, DependencyError
from sonorant.separation.stem_files import Encoding, Stem, wav_header, write_stem

RATE = 44100


def noise(peak: float = 0.5, seconds: float = 1.0) -> torch.Tensor:
    samples = torch.randn(2, int(RATE * seconds), generator=torch.Generator().manual_seed(1))
    return samples * peak / samples.abs().max()


def written(path: Path, samples: torch.Tensor, encoding: Encoding) -> torch.Tensor:
    stem = Stem(RATE, 2, samples.shape[1], float(samples.abs().max()))
    write_stem(path, samples.split(7000, dim=1), stem, encoding)
    return read(path).samples


@pytest.mark.parametrize(
    ("encoding", "error"),
    [
        (Encoding(), 2**-15),
        (Encoding(samples="int24"), 2**-23),
        (Encoding(samples="float32"), 0.0),
        (Encoding("flac"), 2**-15),
        (Encoding("flac", "int24"), 2**-23),
    ],
)
def test_stems_come_back_as_exact_as_their_samples(
    tmp_path: Path, encoding: Encoding, error: float
) -> None:
    samples = noise()
    back = written(tmp_path / f"stem.{encoding.ending}", samples, encoding)
    assert float((back - samples).abs().max()) <= 1.6 * error


def test_loud_stems_are_made_quieter_or_cut_off(tmp_path: Path) -> None:
    samples = noise(peak=2.0)
    quieter = written(tmp_path / "a.wav", samples, Encoding(samples="int24"))
    torch.testing.assert_close(quieter, samples / 2.02, atol=1e-6, rtol=0)
    cut = written(tmp_path / "b.wav", samples, Encoding(samples="int24", clip="clamp"))
    torch.testing.assert_close(cut, samples.clamp(-0.99, 0.99), atol=1e-6, rtol=0)


def test_mp3_has_the_bitrate_asked_for(tmp_path: Path) -> None:
    samples = noise(seconds=4)
    for kbps in (32, 128, 320):
        written(tmp_path / "stem.mp3", samples, Encoding("mp3", mp3_kbps=kbps))
        size = (tmp_path / "stem.mp3").stat().st_size
        assert size * 8 / 4000 == pytest.approx(kbps, rel=0.05)


def test_mp3_presets_trade_time_for_quality(tmp_path: Path) -> None:
    samples = noise()
    contents = []
    for preset in (2, 7):
        encoding = Encoding("mp3", mp3_kbps=128, mp3_preset=preset)
        assert written(tmp_path / "stem.mp3", samples, encoding).shape[0] == 2
        contents.append((tmp_path / "stem.mp3").read_bytes())
    assert contents[0] != contents[1]
    assert len(contents[0]) == pytest.approx(128000 / 8, rel=0.1)


def test_wav_files_are_known_to_others(tmp_path: Path) -> None:
    for kind, subtype in (("int16", "PCM_16"), ("int24", "PCM_24"), ("float32", "FLOAT")):
        written(tmp_path / "stem.wav", noise(), Encoding(samples=kind))  # type: ignore[arg-type]
        assert soundfile.info(tmp_path / "stem.wav").subtype == subtype


def test_wav_files_that_would_be_too_long_are_refused() -> None:
    with pytest.raises(AudioError, match="does not fit into a WAV file"):
        wav_header(Stem(RATE, 2, 2**30, 1.0), Encoding())


@pytest.mark.parametrize(
    "wrong",
    [
        {"ending": "doc"},
        {"clip": "loud"},
        {"ending": "flac", "samples": "float32"},
        {"ending": "mp3", "samples": "int24"},
        {"ending": "mp3", "mp3_preset": 9},
        {"ending": "mp3", "mp3_kbps": 1000},
    ],
)
def test_impossible_encodings_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        Encoding(**wrong)  # type: ignore[arg-type]


def test_what_cannot_be_written_is_known_before_it_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    day = Stem(44100, 2, 86400 * 44100, 1.0)
    with pytest.raises(AudioError, match="does not fit into a WAV file"):
        Encoding().check(day)
    Encoding("flac").check(day)
    monkeypatch.setitem(sys.modules, "av", None)
    Encoding("mp3").check(day)
    with pytest.raises(DependencyError, match="needs PyAV"):
        Encoding("mp3", mp3_preset=2).check(day)


def test_nothing_is_left_of_a_stem_that_fails(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="cannot write"):
        write_stem(tmp_path / "no" / "stem.wav", [noise()], Stem(RATE, 2, RATE, 0.5), Encoding())

    def failing():
        yield noise()
        raise OSError(28, "No space left on device")

    for ending in ("wav", "flac", "mp3", "opus"):
        with pytest.raises((AudioError, OSError), match="No space left"):
            write_stem(
                tmp_path / f"stem.{ending}", failing(), Stem(RATE, 2, RATE, 0.5), Encoding(ending)
            )
    assert list(tmp_path.iterdir()) == []
