"""Teachers: one feature vector per frame of tokens, that tells what is said and not how loudly."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.codec.semantic_teachers import (
    SpectralSettings,
    SpectralTeacher,
    WavLMSettings,
    WavLMTeacher,
    make_teacher,
)
from sonorant.errors import ConfigError

RATE, HOP = 24000, 1920


def vowel(first_hz: float, second_hz: float, seconds: float = 0.4, pitch_hz: float = 120) -> Tensor:
    """A buzz with two resonances."""
    time = torch.arange(int(seconds * RATE)) / RATE
    partials = torch.arange(1, 60)[:, None] * pitch_hz
    heights = sum(1 / (1 + ((partials - centre) / 80) ** 2) for centre in (first_hz, second_hz))
    return 0.1 * (heights * torch.sin(6.2832 * partials * time)).sum(0)


def words(order: str, pitch_hz: float = 120) -> Tensor:
    vowels = {"a": (750, 1200), "i": (300, 2300), "u": (320, 800)}
    return torch.cat([vowel(*vowels[name], pitch_hz=pitch_hz) for name in order])[None, None]


def similarity(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one, other, dim=-1).mean())


@pytest.mark.parametrize("samples", [HOP, 3 * HOP, 3 * HOP + 1, 100])
def test_one_vector_for_every_frame(samples: int) -> None:
    teacher = SpectralTeacher(SpectralSettings(), RATE, HOP)
    features = teacher(torch.randn(2, 1, samples))
    assert features.shape == (2, -(-samples // HOP), teacher.dimensions)
    assert bool(torch.isfinite(features).all())


def test_silence_has_no_meaning() -> None:
    features = SpectralTeacher(SpectralSettings(), RATE, HOP)(torch.zeros(1, 1, 5 * HOP))
    assert float(features.abs().max()) < 0.05


def test_level_does_not_matter_and_content_does() -> None:
    teacher = SpectralTeacher(SpectralSettings(), RATE, HOP)
    target = teacher(words("aiua"))
    assert similarity(target, teacher(0.1 * words("aiua"))) > 0.999
    same = similarity(target, teacher(words("aiua", pitch_hz=150)))
    other = similarity(target, teacher(words("uaiu")))
    assert same > 0.5 > other + 0.2


def test_a_frame_tells_of_its_neighbours_on_both_sides() -> None:
    teacher = SpectralTeacher(SpectralSettings(), RATE, HOP)
    x = 0.1 * torch.randn(1, 1, 12 * HOP)
    before, after = teacher(x), x.clone()
    after[..., 6 * HOP : 7 * HOP] *= 3
    changed = (teacher(after) - before).abs().amax(dim=(0, 2))
    assert bool((changed[5:8] > changed[[0, 1, 2, 10, 11]].max()).all())


class Network(nn.Module):
    """In the place of WavLM: the mean of every step's window, and a layer twice as large."""

    config = SimpleNamespace(hidden_size=1)

    def forward(self, x: Tensor, output_hidden_states: bool) -> SimpleNamespace:
        steps = x.unfold(-1, 400, 320).mean(-1, keepdim=True)
        return SimpleNamespace(hidden_states=(steps, 2 * steps))


def test_wavlm_features_are_averaged_over_twice_a_frame_around_its_middle() -> None:
    teacher = WavLMTeacher(Network(), 0, 16000, 1280, normalizes=False)
    assert teacher.steps_per_frame == 4
    x = torch.zeros(1, 1, 5 * 1280)
    x[..., 2 * 1280 : 3 * 1280] = 1  # the third frame
    features = teacher(x)[0, :, 0]
    assert features.shape == (5,)
    assert features[2] == features.max()
    torch.testing.assert_close(features[1], features[3])
    assert float(features[0]) == float(features[4]) == 0
    assert 0.4 < float(features[2]) < 0.6
    mean = WavLMTeacher(Network(), None, 16000, 1280, normalizes=False)(x)[0, :, 0]
    torch.testing.assert_close(mean, 1.5 * features)


def test_wavlm_counts_frames_at_other_rates() -> None:
    teacher = WavLMTeacher(Network(), 1, RATE, HOP, normalizes=True)
    for samples in (HOP, 3 * HOP, 3 * HOP + 7):
        assert teacher(torch.randn(1, 1, samples)).shape == (1, -(-samples // HOP), 1)


def test_wavlm_hears_every_sound_at_the_level_it_was_trained_on() -> None:
    teacher = WavLMTeacher(Network(), 0, 16000, 1280, normalizes=True)
    x = torch.randn(2, 1, 5 * 1280).cumsum(-1)
    x = x / x.std(dim=-1, keepdim=True)
    louder = x * torch.tensor([0.1, 3.0])[:, None, None] + 0.2
    torch.testing.assert_close(teacher(louder), teacher(x), rtol=1e-4, atol=1e-4)
    heard = WavLMTeacher(Network(), 0, 16000, 1280, normalizes=False)(x - x.mean(-1, keepdim=True))
    torch.testing.assert_close(teacher(louder), heard, rtol=1e-3, atol=1e-4)
    assert bool(torch.isfinite(teacher(torch.zeros(1, 1, 1280))).all())


@pytest.mark.parametrize(
    ("norm", "extractor", "expected"),
    [("layer", None, True), ("group", None, False), ("layer", False, False), ("group", True, True)],
)
def test_the_checkpoint_says_whether_its_wavlm_normalises(
    norm: str, extractor: bool | None, expected: bool, tmp_path: Path
) -> None:
    import transformers

    config = transformers.WavLMConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=[8] * 7,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm=norm,
    )
    transformers.WavLMModel(config).save_pretrained(tmp_path)
    if extractor is not None:
        transformers.Wav2Vec2FeatureExtractor(do_normalize=extractor).save_pretrained(tmp_path)
    teacher = make_teacher(WavLMSettings(str(tmp_path)), 16000, 1280)
    assert isinstance(teacher, WavLMTeacher)
    assert teacher.normalizes == expected
    x = 0.1 * torch.randn(1, 1, 3 * 1280)
    extract = transformers.Wav2Vec2FeatureExtractor(do_normalize=expected)
    heard = torch.tensor(extract(x[0, 0].numpy(), sampling_rate=16000)["input_values"][0])
    plain = WavLMTeacher(teacher.network, None, 16000, 1280, normalizes=False)
    torch.testing.assert_close(teacher(x), plain(heard[None, None]), rtol=1e-3, atol=1e-4)


def test_frames_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not divide"):
        WavLMTeacher(Network(), None, RATE, 1000, normalizes=True)
    with pytest.raises(ConfigError, match="divided by four"):
        make_teacher(SpectralSettings(), RATE, 1001)
