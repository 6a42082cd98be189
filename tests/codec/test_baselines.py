"""Baselines: rates, lengths and alignment of what the reference encoders make."""

import math
import shutil

import pytest
import torch

from sonorant.audio import Audio
from sonorant.codec.baselines import Coded, mp3, ogg_packets, opus, opus_live
from sonorant.codec.metrics import si_snr
from sonorant.errors import ConfigError, DependencyError, FormatError

RATE = 24000
needs_opusenc = pytest.mark.skipif(shutil.which("opusenc") is None, reason="needs opus-tools")
needs_lame = pytest.mark.skipif(shutil.which("lame") is None, reason="needs lame")


def melody(seconds: float = 2.0) -> Audio:
    """Decaying notes: sound whose waveform Opus and MP3 keep, and with no period to slip by."""
    time = torch.arange(int(seconds * RATE)).double() / RATE
    notes = torch.tensor([330.0, 440.0, 277.0, 523.0, 370.0])
    pitch = notes[(time / 0.15).long() % len(notes)]
    wave = torch.sin(2 * math.pi * pitch * time) * torch.exp(-6 * (time % 0.15))
    return Audio(0.5 * wave[None].float(), RATE)


def check(coded: Coded, original: Audio, kbps: float, snr_db: float) -> None:
    assert coded.sound.sample_rate == original.sample_rate
    assert coded.sound.samples.shape == original.samples.shape
    assert coded.kbps == pytest.approx(kbps, rel=0.25)
    assert si_snr(original, coded.sound) > snr_db


@needs_opusenc
@pytest.mark.parametrize("kbps", [6, 24])
def test_opus_keeps_length_place_and_rate(kbps: float) -> None:
    check(opus(melody(), kbps), melody(), kbps, snr_db=3)


@pytest.mark.parametrize("kbps", [6, 12, 24])
def test_opus_live_keeps_length_place_and_rate(kbps: float) -> None:
    check(opus_live(melody(), kbps), melody(), kbps, snr_db=3)


@needs_lame
@pytest.mark.parametrize("kbps", [8, 16, 64])
def test_mp3_keeps_length_place_and_rate(kbps: int) -> None:
    """At 8 and 16 kb/s lame changes the sample rate, at 64 it does not."""
    check(mp3(melody(), kbps), melody(), kbps, snr_db=6)


@pytest.mark.parametrize("encode", [opus, opus_live])
def test_opus_refuses_rates_it_does_not_have(encode: object) -> None:
    with pytest.raises(ConfigError, match="6 to 256"):
        encode(melody(), 3)  # type: ignore[operator]


def test_mp3_refuses_rates_it_does_not_have() -> None:
    with pytest.raises(ConfigError, match="MP3 has no 6 kb/s"):
        mp3(melody(), 6)


def test_stereo_is_refused() -> None:
    stereo = Audio(melody().samples.expand(2, -1), RATE)
    for encode in (opus, opus_live, mp3):
        with pytest.raises(ConfigError, match="one channel"):
            encode(stereo, 16)


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DependencyError, match="apt-get install opus-tools"):
        opus(melody(), 6)
    with pytest.raises(DependencyError, match="apt-get install lame"):
        mp3(melody(), 8)


def page(lacing: list[int]) -> bytes:
    return b"OggS" + bytes(22) + bytes([len(lacing), *lacing]) + bytes(sum(lacing))


def test_packets_span_segments_and_pages() -> None:
    data = page([10, 255, 255]) + page([0, 255, 1, 7])
    assert list(ogg_packets(data)) == [10, 510, 256, 7]


def test_other_data_has_no_packets() -> None:
    with pytest.raises(FormatError, match="no Ogg page at byte 28"):
        list(ogg_packets(page([0]) + b"RIFF" + bytes(40)))
