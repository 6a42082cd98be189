"""EnCodec as users meet it: rates, bandwidths, live equals offline, bad input."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sonorant.audio import Audio
from sonorant.codec.checkpoints import build
from sonorant.codec.encodec import (
    ENCODEC_24KHZ,
    ENCODEC_48KHZ,
    SEANET_BLOCK_FRAMES,
    WHOLE_FRAMES,
    Encodec,
    EncodecConfig,
    EncodecCore,
)
from sonorant.codec.encodec_segments import SegmentedEncodec
from sonorant.codec.encoded import Encoded
from sonorant.errors import AudioError, ConfigError, ShapeError
from sonorant.model import load
from sonorant.nn.quantizer import QuantizerConfig
from sonorant.nn.seanet import SEANetConfig
from tests.codec.latents import assert_quantised_alike, latents_quantised_by

HOP = 8
RATE = 800
QUANTIZER = QuantizerConfig(dimension=8, codebooks=4, codebook_size=16)
BANDWIDTHS = (0.4, 0.8, 1.6)  # 1, 2 and 4 codebooks of 4 bits at 100 frames a second


def random_model(config: EncodecConfig) -> EncodecCore:
    torch.manual_seed(0)
    model = build(config).eval()
    for codebook in model.quantizer.layers:
        codebook.embed.normal_()
    return model


def tiny(**changes: object) -> Encodec:
    seanet = SEANetConfig(dimension=8, base_filters=2, ratios=(4, 2), **changes)  # type: ignore[arg-type]
    model = random_model(EncodecConfig(RATE, BANDWIDTHS, seanet, QUANTIZER))
    assert isinstance(model, Encodec)
    return model


def tiny_segmented(normalize: bool = True, overlap: float = 0.1) -> SegmentedEncodec:
    seanet = SEANetConfig(
        channels=2,
        dimension=8,
        base_filters=4,
        ratios=(4, 2),
        causal=False,
        norm="time_group_norm",
    )
    model = random_model(
        EncodecConfig(RATE, BANDWIDTHS, seanet, QUANTIZER, 0.25, overlap, normalize)
    )
    assert isinstance(model, SegmentedEncodec)
    return model


MODELS: dict[str, Callable[[], EncodecCore]] = {
    "reflect": tiny,
    "zero": lambda: tiny(pad_mode="zero"),
    "replicate": lambda: tiny(pad_mode="replicate"),
    "segments": tiny_segmented,
    "plain_segments": lambda: tiny_segmented(normalize=False, overlap=0.0),
}


def sound(channels: int, samples: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(samples)
    return 0.3 * torch.randn(batch, channels, samples, generator=generator)


def run_live(model: EncodecCore, x: Tensor, lengths: list[int]) -> tuple[list[Encoded], Tensor]:
    """Encode chunk by chunk and decode step by step; the last chunk goes to the flush."""
    state = model.init_state(x.shape[0])
    *chunks, last = x.split(lengths, dim=-1)
    steps = [model.encode_step(chunk, state) for chunk in chunks]
    steps.append(model.encode_flush(state, last))
    sounds = [model.decode_step(step, state) for step in steps]
    return steps, torch.cat([*sounds, model.decode_flush(state)], dim=-1)


@settings(max_examples=50, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)),
    sizes=st.lists(st.integers(1, 40), max_size=8),
    rest=st.integers(1, 300),
    precision=st.sampled_from([torch.float32, torch.float64]),
)
def test_live_equals_offline_for_any_chunking(
    name: str, sizes: list[int], rest: int, precision: torch.dtype
) -> None:
    model = MODELS[name]().to(precision)
    lengths = [size * HOP for size in sizes] + [rest]
    x = sound(model.channels, sum(lengths), batch=2).to(precision)
    with latents_quantised_by(model) as whole:
        offline = model.encode_batch(x)
    with latents_quantised_by(model) as parts:
        steps, live = run_live(model, x, lengths)
    tokens = torch.cat([step.tokens for step in steps], dim=-1)
    assert_quantised_alike(parts, whole, tokens, offline.tokens)
    assert sum(step.samples for step in steps) == x.shape[-1]
    expected = model.decode_batch(replace(offline, tokens=tokens))
    torch.testing.assert_close(live[..., : x.shape[-1]], expected, rtol=1e-4, atol=1e-5)


def test_long_sounds_in_blocks_equal_the_whole() -> None:
    model = tiny()
    x = sound(1, (WHOLE_FRAMES + SEANET_BLOCK_FRAMES + 7) * HOP + 3)
    with torch.no_grad():
        whole = model.quantizer.encode(model.encoder(x))
        assert torch.equal(model.encode_batch(x).tokens, whole)
        sound_of_whole = model.decoder(model.quantizer.decode(whole))
    torch.testing.assert_close(model.decode_tokens(whole), sound_of_whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"dilation_base": 5, "residual_layers": 3}, {"kernel_size": 11}]
)
def test_the_exact_start_waits_for_the_widest_reflection(changes: dict[str, int]) -> None:
    model = tiny(**changes)
    x = sound(1, 60 * HOP)
    steps, live = run_live(model, x, [HOP] * 60)
    assert torch.equal(torch.cat([step.tokens for step in steps], -1), model.encode_batch(x).tokens)
    torch.testing.assert_close(
        live, model.decode_batch(model.encode_batch(x)), rtol=1e-4, atol=1e-5
    )


def test_a_model_that_trims_on_the_left_works_offline_only() -> None:
    model = tiny(trim_right_ratio=0.5)
    x = sound(1, (WHOLE_FRAMES + 20) * HOP)
    assert model.decode_batch(model.encode_batch(x)).shape == x.shape
    with pytest.raises(ConfigError, match="cannot run live"):
        model.init_state()


def test_the_exact_start_waits_for_seven_frames() -> None:
    model = tiny()
    state = model.init_state()
    frames = [model.encode_step(sound(1, HOP), state).frames for _ in range(9)]
    assert frames == [0, 0, 0, 0, 0, 0, 7, 1, 1]


def test_a_low_latency_start_waits_for_nothing_and_suits_rows_of_different_ages() -> None:
    model = tiny()
    state = model.init_state(batch_size=2, low_latency=True)
    x = sound(1, 20 * HOP, batch=1).expand(2, -1, -1)
    first = [model.encode_step(part, state) for part in x.split(HOP, dim=-1)]
    assert all(step.frames == 1 for step in first)
    state.reset(torch.tensor([True, False]))
    again = torch.cat(
        [model.encode_step(part, state).tokens for part in x.split(HOP, dim=-1)], dim=-1
    )
    before = torch.cat([step.tokens for step in first], dim=-1)
    assert torch.equal(again[0], before[0])
    assert not torch.equal(again[1], before[1])


def test_rows_of_different_ages_cannot_share_an_exact_start() -> None:
    model = tiny()
    state = model.init_state(batch_size=2)
    model.encode_step(sound(1, 3 * HOP, batch=2), state)
    state.reset(torch.tensor([True, False]))
    with pytest.raises(ShapeError, match="low_latency"):
        model.encode_step(sound(1, HOP, batch=2), state)


@pytest.mark.parametrize("bandwidth", BANDWIDTHS)
def test_bandwidth_chooses_codebooks_and_decoding_takes_what_there_is(bandwidth: float) -> None:
    model = tiny()
    x = sound(1, 30 * HOP)
    encoded = model.encode_batch(x, bandwidth)
    assert encoded.codebooks == model.codebooks_for(bandwidth)
    assert torch.equal(encoded.tokens, model.encode_batch(x).tokens[:, : encoded.codebooks])
    assert model.decode_batch(encoded).shape == x.shape
    assert model.bandwidth_of(encoded.codebooks) == pytest.approx(bandwidth)


@pytest.mark.parametrize(
    ("config", "bandwidth", "codebooks"),
    [
        (ENCODEC_24KHZ, 1.5, 2),
        (ENCODEC_24KHZ, 6.0, 8),
        (ENCODEC_24KHZ, 24.0, 32),
        (ENCODEC_48KHZ, 3.0, 2),
        (ENCODEC_48KHZ, 24.0, 16),
        (ENCODEC_24KHZ, None, 32),
    ],
)
def test_published_bandwidths(config: EncodecConfig, bandwidth: float, codebooks: int) -> None:
    with torch.device("meta"):
        assert build(config).codebooks_for(bandwidth) == codebooks


def test_an_unknown_bandwidth_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"choose one of 0\.4, 0\.8, 1\.6"):
        tiny().codebooks_for(7)


@pytest.mark.parametrize("make", [tiny, tiny_segmented])
@pytest.mark.parametrize(("rate", "channels"), [(RATE, 1), (RATE, 2), (1200, 2), (400, 1)])
def test_any_rate_and_channel_count_is_converted(
    make: Callable[[], EncodecCore], rate: int, channels: int
) -> None:
    model = make()
    audio = Audio(sound(channels, rate)[0], rate)
    decoded = model.decode(model.encode(audio))
    assert decoded.sample_rate == RATE
    assert decoded.samples.shape == (model.channels, RATE)


@pytest.mark.parametrize("samples", [1, 2, HOP - 1, HOP + 1])
@pytest.mark.parametrize("make", [tiny, tiny_segmented])
def test_very_short_sounds_work(make: Callable[[], EncodecCore], samples: int) -> None:
    model = make()
    x = sound(model.channels, samples)
    assert model.decode_batch(model.encode_batch(x)).shape == x.shape


def test_silence_is_finite_in_and_out() -> None:
    model = tiny_segmented()
    decoded = model.decode_batch(model.encode_batch(torch.zeros(1, 2, 500)))
    assert bool(torch.isfinite(decoded).all())


@pytest.mark.parametrize("make", [tiny, tiny_segmented])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_samples_that_are_not_finite_are_refused(
    make: Callable[[], EncodecCore], bad: float
) -> None:
    model = make()
    x = sound(model.channels, 100)
    x[0, 0, 50] = bad
    with pytest.raises(AudioError, match="not finite"):
        model.encode_batch(x)
    with pytest.raises(AudioError, match="not finite"):
        model.encode_step(x[..., 48:56], model.init_state())


@pytest.mark.parametrize("make", [tiny, tiny_segmented])
def test_empty_sounds_and_wrong_shapes_are_refused(make: Callable[[], EncodecCore]) -> None:
    model = make()
    with pytest.raises(AudioError, match="empty"):
        model.encode_batch(torch.zeros(1, model.channels, 0))
    with pytest.raises(ShapeError, match="takes"):
        model.encode_batch(torch.zeros(1, 3, 10))
    with pytest.raises(AudioError, match="8 channels"):
        model.encode(Audio(torch.zeros(8, 100), RATE))
    with pytest.raises(ShapeError, match="tokens must be"):
        model.decode_batch(Encoded(torch.zeros(1, 5, 3, dtype=torch.long), 24))


def test_a_live_chunk_of_odd_length_or_another_rate_is_refused() -> None:
    model = tiny()
    with pytest.raises(ShapeError, match="encode_flush"):
        model.encode_step(torch.zeros(1, 1, HOP + 1), model.init_state())
    with pytest.raises(AudioError, match=r"sonorant\.blocks"):
        model.encode_step(Audio(torch.zeros(1, HOP), 2 * RATE), model.init_state())


def test_models_that_look_ahead_say_that_they_cannot_run_live() -> None:
    with pytest.raises(ConfigError, match="cannot run live"):
        tiny(causal=False).init_state()
    assert not tiny(causal=False).streams
    assert tiny().streams


def test_segments_of_the_published_48khz_model() -> None:
    """One second makes two segments, of 48000 and 480 samples."""
    with torch.device("meta"):
        model = build(ENCODEC_48KHZ)
    assert isinstance(model, SegmentedEncodec)
    assert model.segment_lengths(48000) == [48000, 480]
    assert model.segment_lengths(47520) == [47520]
    assert model.segment_lengths(47800) == [47800, 280]


def test_a_config_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="make them equal"):
        EncodecConfig(quantizer=QuantizerConfig(dimension=64))
    with pytest.raises(ConfigError, match="encodec_segments"):
        Encodec(ENCODEC_48KHZ)


def test_training_forward_trims_to_the_input_and_reaches_every_weight() -> None:
    model = tiny().train()
    x = sound(1, 5 * HOP + 3, batch=2)
    reconstruction, tokens, penalty = model(x, codebooks=2)
    assert reconstruction.shape == x.shape
    assert tokens.shape == (2, 2, 6)
    (reconstruction.pow(2).mean() + penalty).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.bool])
def test_tokens_that_are_no_int64_are_refused(dtype: torch.dtype) -> None:
    model, tokens = tiny(), torch.zeros(1, 2, 3, dtype=dtype)
    with pytest.raises(ShapeError, match=r"int64.*tokens\.long\(\)"):
        model.decode_tokens(tokens)
    with pytest.raises(ShapeError, match="int64"):
        model.decode_step(Encoded(tokens, 3 * HOP), model.init_state())


def test_tokens_of_another_codec_are_refused() -> None:
    model = tiny()
    for token in (-1, QUANTIZER.codebook_size):
        with pytest.raises(ShapeError, match="another codec"):
            model.decode_batch(Encoded(torch.full((1, 2, 3), token), 24))


def test_no_frames_are_no_sound() -> None:
    assert tiny().decode_tokens(torch.zeros(1, 2, 0, dtype=torch.long)).shape == (1, 1, 0)


def test_a_step_with_another_number_of_rows_than_the_state_is_refused() -> None:
    model = tiny()
    state = model.init_state(batch_size=2)
    with pytest.raises(ShapeError, match="2 rows"):
        model.encode_step(sound(1, HOP, batch=1), state)
    with pytest.raises(ShapeError, match="2 rows"):
        model.decode_step(Encoded(torch.zeros(1, 2, 1, dtype=torch.long), HOP), state)


def test_a_model_made_in_inference_mode_works() -> None:
    x = sound(1, 300)
    expected = tiny().encode_batch(x).tokens
    with torch.inference_mode():
        assert torch.equal(tiny().encode_batch(x).tokens, expected)


@pytest.mark.parametrize(
    ("part", "changes"),
    [("quantizer", {"codebooks": 10**7}), ("seanet", {"residual_layers": 10**7})],
)
def test_a_config_that_asks_for_endless_layers_ends_at_once(
    part: str, changes: dict[str, int], tmp_path: Path
) -> None:
    tiny().save_pretrained(tmp_path / "saved")
    config = tmp_path / "saved" / "config.json"
    content = json.loads(config.read_text())
    content["config"][part] |= changes
    config.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="far more than are stored"):
        load(tmp_path / "saved")


def test_rows_and_segments_that_cannot_be_are_refused() -> None:
    model = tiny_segmented()
    assert model.stride_samples is not None
    state, x = model.init_state(3), sound(model.channels, 3 * model.stride_samples, batch=2)
    encoded = model.encode_batch(x)
    with pytest.raises(ShapeError, match="3 rows, this has 2"):
        model.encode_step(x, state)
    with pytest.raises(ShapeError, match="3 rows, this has 2"):
        model.decode_step(encoded, state)
    assert encoded.scales is not None
    with pytest.raises(ShapeError, match=r"scales must be \[batch, segments\]"):
        model.decode_batch(replace(encoded, scales=encoded.scales[:, :1]))
    frames, (first, *_) = encoded.frames, encoded.segment_frames
    for segments in ((frames + 5, -5), (1, frames - 1), (0, frames)):
        with pytest.raises(ShapeError, match="cannot be segments"):
            model.decode_batch(replace(encoded, segment_frames=segments))
    short = Encoded(encoded.tokens[..., : first + 2], 9, encoded.scales[:, :3], (first, 1, 1))
    with pytest.raises(ShapeError, match="leave gaps"):
        model.decode_batch(short)
