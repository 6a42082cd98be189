"""The streaming codec that ships with the package."""

from pathlib import Path

import pytest
import torch

import sonorant
from sonorant.audio import Audio, read
from sonorant.codec.metrics import mel_distance
from sonorant.codec.mimi import Mimi

PACKAGE = Path(sonorant.__file__).parent
WEIGHTS = PACKAGE / "weights" / "mimi-small" / "model.safetensors"


@pytest.fixture(scope="module")
def codec() -> Mimi:
    model = sonorant.load("sonorant/mimi-small")
    assert isinstance(model, Mimi)
    return model


def speech(codec: Mimi) -> Audio:
    clip = read(PACKAGE / "clips" / "speech.flac").to(codec.sample_rate, 1)
    return Audio(clip.samples[:, : 2 * codec.sample_rate], codec.sample_rate)


def test_it_has_one_semantic_and_seven_acoustic_codebooks_at_a_kilobit(codec: Mimi) -> None:
    assert codec.frame_rate == 12.5
    assert codec.config.semantic_codebooks == 1
    assert codec.config.quantizer.codebooks == 8
    assert codec.bandwidth_of(8) == pytest.approx(1.0)
    assert WEIGHTS.stat().st_size < 10e6


def test_speech_comes_back_nearer_with_more_codebooks(codec: Mimi) -> None:
    clip = speech(codec)
    distances = [
        mel_distance(clip, codec.decode(codec.encode(clip, codec.bandwidth_of(count))))
        for count in (2, 4, 8)
    ]
    assert distances[0] > distances[1] > distances[2]
    silence = Audio(torch.zeros_like(clip.samples), codec.sample_rate)
    assert distances[2] < 0.5 * mel_distance(clip, silence)


def test_silence_stays_silence(codec: Mimi) -> None:
    made = codec.decode(codec.encode(Audio(torch.zeros(1, 48000), 24000)))
    assert float(made.samples.abs().max()) < 0.01


def test_live_equals_offline(codec: Mimi) -> None:
    x = speech(codec).samples[None, :, : 20 * codec.frame_samples]
    offline = codec.encode_batch(x)
    state = codec.init_state()
    steps = [codec.encode_step(chunk, state) for chunk in x.split(codec.frame_samples, dim=-1)]
    tokens = torch.cat([step.tokens for step in steps], dim=-1)
    assert torch.equal(tokens, offline.tokens)
    live = torch.cat([codec.decode_step(step, state) for step in steps], dim=-1)
    torch.testing.assert_close(live, codec.decode_batch(offline), rtol=1e-3, atol=1e-4)
