"""Metrics: known values, direction, and refusal of what cannot be compared."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sonorant.audio import Audio, read
from sonorant.codec import metrics
from sonorant.codec.metrics import (
    CodebookUse,
    codebook_use,
    codeword_counts,
    has_visqol,
    mel_distance,
    pesq,
    si_snr,
    stft_distance,
    stoi,
    use_of_counts,
    visqol,
)
from sonorant.errors import AudioError, DependencyError

RATE = 24000


def noise(seed: int, seconds: float = 1.0, channels: int = 1) -> Audio:
    generator = torch.Generator().manual_seed(seed)
    samples = 0.1 * torch.randn(channels, int(seconds * RATE), generator=generator)
    return Audio(samples, RATE)


def scaled(audio: Audio, gain: float, offset: float = 0.0) -> Audio:
    return Audio(audio.samples * gain + offset, audio.sample_rate)


def mixed(first: Audio, second: Audio, gain: float) -> Audio:
    return Audio(first.samples + gain * second.samples, first.sample_rate)


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 20.0])
def test_si_snr_is_the_ratio_of_the_mix_whatever_its_gain_and_offset(snr_db: float) -> None:
    decoded = mixed(noise(0), noise(1), 10 ** (-snr_db / 20))
    assert si_snr(noise(0), decoded) == pytest.approx(snr_db, abs=0.15)
    assert si_snr(noise(0), scaled(decoded, 0.3, offset=0.2)) == pytest.approx(
        si_snr(noise(0), decoded), abs=1e-3
    )


def test_si_snr_of_orthogonal_waves_is_exact() -> None:
    time = torch.arange(RATE).double() / RATE
    wave, other = (torch.sin(2 * math.pi * f * time) for f in (100, 300))
    decoded = Audio((wave + 0.1 * other)[None].float(), RATE)
    assert si_snr(Audio(wave[None].float(), RATE), decoded) == pytest.approx(20, abs=1e-3)


def test_si_snr_of_equal_sounds_is_infinite() -> None:
    assert si_snr(noise(0), noise(0)) > 120


def test_si_snr_counts_the_channels_that_sound_and_knows_silence() -> None:
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(1, 800, generator=generator)
    decoded = left + 0.1 * torch.randn(1, 800, generator=generator)
    nothing = torch.zeros_like(left)
    reference = Audio(torch.cat([left, nothing]), 8000)
    both = Audio(torch.cat([decoded, decoded]), 8000)
    assert si_snr(reference, both) == si_snr(Audio(left, 8000), Audio(decoded, 8000))
    assert si_snr(Audio(left, 8000), Audio(nothing, 8000)) == -math.inf
    twice = Audio(torch.cat([left, left]), 8000)
    assert si_snr(twice, Audio(torch.cat([left, nothing]), 8000)) == -math.inf


def test_mel_distance_is_the_gain_in_db() -> None:
    assert mel_distance(noise(0), noise(0)) == 0
    assert mel_distance(noise(0), scaled(noise(0), 0.5)) == pytest.approx(6.02, abs=0.01)


def test_mel_distance_grows_with_noise() -> None:
    tone = scaled(noise(0), 0.3)
    distances = [mel_distance(tone, mixed(tone, noise(1), gain)) for gain in (0.01, 0.1, 1.0)]
    assert distances == sorted(distances)


def test_mel_distance_takes_any_length() -> None:
    short = Audio(torch.ones(1, 1), RATE)
    assert mel_distance(short, short) == 0


def test_sounds_that_differ_in_shape_or_rate_are_not_compared() -> None:
    reference = noise(0)
    others = [noise(0, 0.5), noise(0, channels=2), Audio(reference.samples, 48000)]
    for metric in (si_snr, mel_distance, visqol):
        for other in others:
            with pytest.raises(AudioError, match="cannot compare"):
                metric(reference, other)


def test_sounds_without_signal_are_not_judged() -> None:
    silent, empty = scaled(noise(0), 0.0), Audio(torch.zeros(1, 0), RATE)
    with pytest.raises(AudioError, match="silent reference"):
        si_snr(silent, noise(0))
    for metric in (si_snr, mel_distance, visqol):
        with pytest.raises(AudioError, match="empty"):
            metric(empty, empty)
    for pair in ((silent, noise(0)), (noise(0), silent)):
        with pytest.raises(AudioError, match="digital silence"):
            visqol(*pair)
    with pytest.raises(AudioError, match="1 s of sound or more"):
        visqol(noise(0, 0.9), noise(0, 0.9))


@pytest.mark.slow
def test_visqol_falls_as_noise_rises() -> None:
    reference = noise(0, channels=2)
    versions = [mixed(reference, noise(1, channels=2), gain) for gain in (0.0, 0.03, 0.3)]
    scores = [visqol(reference, version) for version in versions]
    assert scores[0] == pytest.approx(4.73, abs=0.01)
    assert scores[0] > scores[1] > scores[2] >= 1


def test_stft_distance_of_a_gain_is_known() -> None:
    """Convergence 1 - gain, and |ln gain| of every magnitude."""
    distance = stft_distance(noise(0), scaled(noise(0), 0.5))
    assert distance == pytest.approx(0.5 + math.log(2), abs=0.01)
    assert stft_distance(noise(0), noise(0)) == 0


def test_stft_distance_needs_sound() -> None:
    with pytest.raises(AudioError, match="1025 samples or more"):
        stft_distance(noise(0, 0.04), noise(0, 0.04))
    with pytest.raises(AudioError, match="silent reference"):
        stft_distance(scaled(noise(0), 0.0), noise(0))


def speech(seconds: float) -> Audio:
    audio = read(Path(metrics.__file__).parents[1] / "clips" / "speech.flac")
    return Audio(audio.samples[:, : int(seconds * audio.sample_rate)], audio.sample_rate)


@pytest.mark.parametrize(("metric", "best"), [(pesq, 4.64), (stoi, 1.0)])
def test_speech_metrics_fall_as_noise_rises(
    metric: Callable[[Audio, Audio], float], best: float
) -> None:
    clean = speech(3.0)
    generator = torch.Generator().manual_seed(0)
    hiss = Audio(torch.randn(clean.samples.shape, generator=generator), clean.sample_rate)
    scores = [metric(clean, mixed(clean, hiss, gain)) for gain in (0.0, 0.003, 0.1)]
    assert scores[0] == pytest.approx(best, abs=0.01)
    assert scores[0] > scores[1] > scores[2]


def test_long_speech_is_scored_in_pieces() -> None:
    clip = speech(4.0)
    silent = torch.zeros_like(clip.samples)
    long = Audio(torch.cat([clip.samples] * 3 + [silent] * 2, dim=-1), clip.sample_rate)
    assert pesq(long, long) == pytest.approx(4.64, abs=0.01)


def test_speech_metrics_say_what_they_cannot_judge() -> None:
    short, silent = noise(0, 0.1), scaled(noise(0), 0.0)
    for metric, words in ((pesq, "0.25 s"), (stoi, "0.5 s")):
        with pytest.raises(AudioError, match=words):
            metric(short, short)
    with pytest.raises(AudioError, match="no speech"):
        pesq(silent, noise(0))
    with pytest.raises(AudioError, match="digital silence"):
        stoi(silent, noise(0))
    click = Audio(torch.zeros(1, RATE).index_fill(1, torch.tensor([100]), 0.5), RATE)
    with pytest.raises(AudioError, match="too little speech"):
        stoi(click, click)


def test_counts_of_parts_add_up_to_those_of_the_whole() -> None:
    tokens = torch.randint(8, (1, 2, 40), generator=torch.Generator().manual_seed(0))
    parts = sum(codeword_counts(part, 8) for part in tokens.split(15, dim=-1))
    assert isinstance(parts, torch.Tensor)
    assert use_of_counts(parts) == codebook_use(tokens, 8)


def test_without_visqol_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics._visqol_api.cache_clear()
    monkeypatch.setitem(sys.modules, "visqol", None)
    assert not has_visqol()
    with pytest.raises(DependencyError, match=r"sonorant\[eval\]"):
        visqol(noise(0), noise(0))


def test_codebook_use_counts_codewords_and_their_evenness() -> None:
    even = torch.arange(16).repeat(2, 4)  # [batch, frames]
    single = torch.full_like(even, 3)
    skewed = torch.where(torch.arange(64) % 4 == 0, 1, 2).expand(2, -1)
    uses = codebook_use(torch.stack([even, single, skewed], dim=1), 16)
    assert uses[0] == CodebookUse(used=1.0, entropy_bits=4.0)
    assert uses[1] == CodebookUse(used=1 / 16, entropy_bits=0.0)
    assert uses[2].used == 2 / 16
    assert uses[2].entropy_bits == pytest.approx(2 - 0.75 * math.log2(3))
    assert [use.perplexity for use in uses[:2]] == [16.0, 1.0]
