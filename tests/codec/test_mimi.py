"""Mimi as users meet it: live equals offline, sessions that pause and restart, bad input."""

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sonorant.audio import Audio
from sonorant.codec.encoded import Encoded
from sonorant.codec.mimi import MIMI, SEANET_BLOCK_FRAMES, Mimi, MimiConfig
from sonorant.errors import AudioError, CheckpointError, ConfigError, ShapeError
from sonorant.nn.quantizer import QuantizerConfig
from sonorant.nn.transformer import TransformerConfig
from tests.codec.latents import assert_quantised_alike, latents_quantised_by

RATE = 800
HOP = 16
CONTEXT = 5


def tiny_mimi(context: int = CONTEXT, live_chunk: int = 3) -> Mimi:
    """Small, with weights that let every token depend on the sound and on what came before."""
    seanet = msgspec.structs.replace(MIMI.seanet, dimension=8, base_filters=2, ratios=(4, 2))
    transformer = TransformerConfig(
        width=8, layers=2, heads=2, hidden=16, context=context, live_chunk=live_chunk
    )
    quantizer = QuantizerConfig(dimension=4, codebooks=4, codebook_size=16, smoothing="clamp")
    model = Mimi(MimiConfig(RATE, seanet, transformer, 2, quantizer)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.dim() > 1:
                tensor.normal_(0, tensor[0].numel() ** -0.5, generator=generator)
            elif name.endswith((".bias", ".usage", ".initialized")):
                tensor.fill_(0 if name.endswith(".bias") else 1)
        for part in (model.quantizer.semantic, model.quantizer.acoustic):
            for layer in part.levels.layers:
                layer.embed.copy_(layer.embed_sum)
    return model


def sound(batch: int, samples: int) -> Tensor:
    generator = torch.Generator().manual_seed(samples)
    return 0.3 * torch.randn(batch, 1, samples, generator=generator)


def live(model: Mimi, x: Tensor, frames: list[int]) -> tuple[Tensor, Tensor]:
    """Tokens and sound, chunk by chunk; the last chunk goes to the flush."""
    state = model.init_state(x.shape[0])
    *chunks, last = x.split(
        [count * HOP for count in frames] + [x.shape[-1] - sum(frames) * HOP], -1
    )
    steps = [model.encode_step(chunk, state) for chunk in chunks]
    steps.append(model.encode_flush(state, last))
    sounds = [model.decode_step(step, state) for step in steps]
    assert model.decode_flush(state).shape == (x.shape[0], 1, 0)
    assert sum(step.samples for step in steps) == x.shape[-1]
    return torch.cat([step.tokens for step in steps], -1), torch.cat(sounds, -1)


@settings(max_examples=40, deadline=None)
@given(
    frames=st.lists(st.integers(1, 9), max_size=12),
    rest=st.integers(1, 5 * HOP),
    context=st.integers(1, 9),
    live_chunk=st.integers(1, 7),
    precision=st.sampled_from([torch.float32, torch.float64]),
)
def test_live_equals_offline_for_any_chunking(
    frames: list[int], rest: int, context: int, live_chunk: int, precision: torch.dtype
) -> None:
    model = tiny_mimi(context, live_chunk).to(precision)
    x = sound(2, sum(frames) * HOP + rest).to(precision)
    with latents_quantised_by(model) as whole:
        offline = model.encode_batch(x)
    with latents_quantised_by(model) as parts:
        tokens, decoded = live(model, x, frames)
    assert_quantised_alike(parts, whole, tokens, offline.tokens)
    expected = model.decode_tokens(tokens)[..., : x.shape[-1]]
    torch.testing.assert_close(decoded[..., : x.shape[-1]], expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_sessions_of_different_ages_that_pause_are_as_if_alone(data: st.DataObject) -> None:
    """Every row gets exactly the tokens and the sound of its own chunks since its last reset."""
    model = tiny_mimi().double()  # where single precision rounds, two codewords can be as near
    rows, steps = 3, data.draw(st.integers(1, 10))
    state = model.init_state(rows)
    heard: list[list[Tensor]] = [[] for _ in range(rows)]
    got: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(rows)]
    booleans = st.lists(st.booleans(), min_size=rows, max_size=rows)
    for step in range(steps):
        active = torch.tensor(data.draw(booleans))
        restart = torch.tensor(data.draw(booleans)) if step % 4 == 3 else torch.zeros(rows).bool()
        if restart.any():
            state.reset(restart)
        state.set_active(active)
        chunk = (sound(rows, data.draw(st.integers(1, 3)) * HOP) + 0.01 * step).double()
        encoded = model.encode_step(chunk, state)
        decoded = model.decode_step(encoded, state)
        for row in range(rows):
            if restart[row]:
                heard[row], got[row] = [], []
            if active[row]:
                heard[row].append(chunk[row : row + 1])
                got[row].append((encoded.tokens[row], decoded[row]))
    for row in range(rows):
        if heard[row]:
            alone = model.encode_batch(torch.cat(heard[row], -1))
            assert torch.equal(torch.cat([tokens for tokens, _ in got[row]], -1), alone.tokens[0])
            torch.testing.assert_close(
                torch.cat([samples for _, samples in got[row]], -1),
                model.decode_batch(alone)[0],
                rtol=1e-4,
                atol=1e-5,
            )


def test_the_published_ring_agrees_until_it_is_full_and_not_after() -> None:
    model = tiny_mimi(context=6)
    published = model.with_published_ring()
    x = sound(1, 30 * HOP)
    exact, _ = live(model, x, [1] * 29)
    theirs, _ = live(published, x, [1] * 29)
    assert torch.equal(exact[..., :3], theirs[..., :3])  # 3 frames of 2 latents fill the ring
    assert not torch.equal(exact, theirs)
    assert torch.equal(published.encode_batch(x).tokens, model.encode_batch(x).tokens)


def test_long_sounds_in_blocks_equal_the_whole() -> None:
    model = tiny_mimi()
    x = sound(1, (2 * SEANET_BLOCK_FRAMES + 3) * HOP)
    with torch.no_grad():
        whole = model.quantizer.encode(model.to_latent(x))
        assert torch.equal(model.encode_batch(x).tokens, whole)
        expected = model.from_latent(model.quantizer.decode(whole))
    torch.testing.assert_close(model.decode_tokens(whole), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("codebooks", [1, 2, 4])
def test_any_number_of_codebooks_is_a_prefix_of_all(codebooks: int) -> None:
    model = tiny_mimi()
    x = sound(2, 5 * HOP)
    encoded = model.encode_batch(x, model.bandwidth_of(codebooks))
    assert torch.equal(encoded.tokens, model.encode_batch(x).tokens[:, :codebooks])
    assert model.decode_batch(encoded).shape == x.shape


def test_bandwidths_of_the_published_model() -> None:
    with torch.device("meta"):
        model = Mimi(MIMI)
    assert model.frame_rate == 12.5
    assert model.bandwidth_of(8) == pytest.approx(1.1)
    pairs = {None: 32, 1.1: 8, 4.4: 32, 6.0: 32, 0.1375: 1, 0.138: 1, 0.27: 1, 1.24: 9}
    assert {kbps: model.codebooks_for(kbps) for kbps in pairs} == pairs
    assert model.codebooks_for(float("inf")) == 32
    for bad in (0.1, 0.0, -1.0, float("nan"), float("-inf")):
        with pytest.raises(ConfigError, match="less than one codebook"):
            model.codebooks_for(bad)


@pytest.mark.parametrize(("rate", "channels"), [(RATE, 1), (RATE, 2), (1200, 2), (400, 1)])
def test_any_rate_and_channel_count_is_converted(rate: int, channels: int) -> None:
    model = tiny_mimi()
    audio = Audio(sound(channels, rate)[:, 0], rate)
    decoded = model.decode(model.encode(audio))
    assert decoded.sample_rate == RATE
    assert decoded.samples.shape == (1, RATE)


@pytest.mark.parametrize("samples", [1, HOP - 1, HOP + 1])
def test_very_short_sounds_work(samples: int) -> None:
    x = sound(1, samples)
    model = tiny_mimi()
    encoded = model.encode_batch(x)
    assert encoded.frames == -(-samples // HOP)
    assert model.decode_batch(encoded).shape == x.shape


def test_bad_input_is_refused() -> None:
    model = tiny_mimi()
    state = model.init_state(2)
    x = sound(2, 2 * HOP)
    x[1, 0, 7] = float("nan")
    with pytest.raises(AudioError, match="not finite"):
        model.encode_batch(x)
    with pytest.raises(AudioError, match="not finite"):
        model.encode_step(x, state)
    with pytest.raises(AudioError, match="empty"):
        model.encode_batch(torch.zeros(1, 1, 0))
    with pytest.raises(AudioError, match="8 channels"):
        model.encode(Audio(torch.zeros(8, 100), RATE))
    with pytest.raises(ShapeError, match="encode_flush"):
        model.encode_step(torch.zeros(2, 1, HOP + 1), state)
    with pytest.raises(ShapeError, match="2 rows"):
        model.encode_step(torch.zeros(1, 1, HOP), state)
    with pytest.raises(ShapeError, match="2 rows"):
        model.decode_step(Encoded(torch.zeros(1, 2, 1, dtype=torch.long), HOP), state)
    with pytest.raises(ShapeError, match="tokens must be"):
        model.decode_tokens(torch.zeros(1, 5, 3, dtype=torch.long))
    with pytest.raises(ShapeError, match="another codec"):
        model.decode_tokens(torch.full((1, 2, 3), 16))
    with pytest.raises(ShapeError, match=r"torch.float32 as the model, .* got torch.float64"):
        model.encode_batch(sound(1, HOP).double())
    with pytest.raises(ShapeError, match="made for another model"):
        tiny_mimi().encode_step(sound(2, HOP), state)
    with pytest.raises(ShapeError, match="int64"):
        model.decode_tokens(torch.zeros(1, 2, 3))
    assert all(not tensor.any() for tensor in state.tensors.values())


def test_no_frames_are_no_sound() -> None:
    model = tiny_mimi()
    state = model.init_state()
    assert model.encode_step(torch.zeros(1, 1, 0), state).tokens.shape == (1, 4, 0)
    assert model.encode_flush(state).frames == 0
    none = torch.zeros(1, 2, 0, dtype=torch.long)
    assert model.decode_tokens(none).shape == (1, 1, 0)
    assert model.decode_step(Encoded(none, 0), state).shape == (1, 1, 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"semantic_codebooks": 32}, "cannot be semantic"),
        ({"semantic_codebooks": 0}, "cannot be semantic"),
        ({"seanet": msgspec.structs.replace(MIMI.seanet, dimension=256)}, "make them equal"),
        ({"seanet": msgspec.structs.replace(MIMI.seanet, causal=False)}, "must be causal"),
        ({"transformer": TransformerConfig()}, "with a context"),
        ({"latents_per_frame": 0}, "above 0"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        msgspec.structs.replace(MIMI, **changes)


def test_training_forward_reaches_every_weight_and_bypasses_rows() -> None:
    model = tiny_mimi().train()
    x = sound(2, 5 * HOP + 3)
    reconstruction, semantic, penalty = model(x, codebooks=3, bypass=torch.tensor([True, False]))
    assert reconstruction.shape == x.shape
    assert semantic.shape == (2, 8, 6)
    (reconstruction.square().mean() + semantic.square().mean() + penalty).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_bypassed_row_is_not_quantised() -> None:
    model = tiny_mimi()
    latent = torch.randn(2, 8, 3)
    with torch.no_grad():
        both, semantic, _ = model.quantizer(latent, None, torch.tensor([True, False]))
        quantized = model.quantizer.decode(model.quantizer.encode(latent))
        projected = sum(
            part.output_proj(part.input_proj(latent[:1].transpose(1, 2))).transpose(1, 2)
            for part in (model.quantizer.semantic, model.quantizer.acoustic)
        )
        meaning = model.quantizer.decode(model.quantizer.encode(latent, 1))
    torch.testing.assert_close(both[1], quantized[1])
    torch.testing.assert_close(both[:1], projected)
    torch.testing.assert_close(semantic, meaning)


def wide_mimi() -> Mimi:
    """As the tiny one, with convolutions of enough channels to be packed."""
    config = tiny_mimi().config
    seanet = msgspec.structs.replace(config.seanet, base_filters=128)
    torch.manual_seed(0)
    return Mimi(msgspec.structs.replace(config, seanet=seanet)).eval()


@pytest.mark.parametrize(("mode", "error"), [("fp16", 2e-3), ("int8", 0.1)])
def test_a_packed_model_reads_convolutions_and_linear_layers_in_few_bits(
    mode: str, error: float
) -> None:
    model, packed = wide_mimi(), wide_mimi()
    report = packed.optimize(mode)
    assert report.total < error
    paths = set(report.layers)
    assert any(path.startswith("encoder.layers") for path in paths)
    assert any(path.startswith("decoder.layers") for path in paths)
    assert any(path.startswith("decoder_transformer") for path in paths)
    state, other = model.init_state(), packed.init_state()
    latent = torch.randn(1, 8, 6)
    with torch.no_grad():
        for part in latent.split(1, dim=-1):
            exact, near = model.from_latent(part, state), packed.from_latent(part, other)
            assert 0 < float((near - exact).norm() / exact.norm()) < error
    with pytest.raises(CheckpointError, match="packed"):
        packed.saved_tensors()


def test_a_packed_model_has_no_twin() -> None:
    model = wide_mimi()
    model.optimize("fp16")
    with pytest.raises(ConfigError, match="with_published_ring comes before optimize"):
        model.with_published_ring()


def test_a_mode_that_does_not_exist_leaves_the_model_as_it_is() -> None:
    model = wide_mimi()
    names = set(model.state_dict())
    with pytest.raises(ConfigError, match="no mode 'fp3'"):
        model.optimize("fp3")
    assert set(model.state_dict()) == names
