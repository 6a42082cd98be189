"""The transformer: published arithmetic, live equals offline, rows of different ages."""

from pathlib import Path

import msgspec
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sonorant.errors import ConfigError, ShapeError
from sonorant.nn.state import State, init_state
from sonorant.nn.transformer import GatedFeedForward, Transformer, TransformerConfig

CONTEXT = 5
SMALL = TransformerConfig(width=16, layers=2, heads=4, hidden=24, context=CONTEXT, live_chunk=3)

# What the systems ask for, at tiny sizes.
KINDS = {
    "mimi": msgspec.structs.replace(SMALL, layer_scale=0.5),
    "llama": msgspec.structs.replace(
        SMALL, key_value_heads=2, feed_forward="gated_silu", norm="rms_norm", max_period=1e6
    ),
    "musicgen": msgspec.structs.replace(SMALL, position="sinusoidal", memory_steps=4),
    "entropy": msgspec.structs.replace(SMALL, position="sinusoidal", norm_order="post", bias=True),
    "post_norm_with_condition": msgspec.structs.replace(SMALL, norm_order="post", memory_steps=4),
    "one_step_at_once": msgspec.structs.replace(SMALL, live_chunk=1, position="none"),
    "context_of_one": msgspec.structs.replace(SMALL, context=1, feed_forward="relu"),
}


def build(config: TransformerConfig) -> Transformer:
    """A transformer of random weights in which every part matters."""
    torch.manual_seed(0)
    transformer = Transformer(config).eval()
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return transformer


def condition(config: TransformerConfig, rows: int = 1) -> Tensor | None:
    if not config.memory_steps:
        return None
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 3, config.width, generator=generator)


def live_state(transformer: Transformer, rows: int = 1) -> State:
    state = init_state(transformer, rows)
    memory = condition(transformer.config, rows)
    if memory is not None:
        transformer.remember(memory, state)
    return state


@torch.no_grad()
def test_equals_the_built_in_encoder_layers() -> None:
    """PyTorch's own layers, unmasked and with biases, in both orders of norms."""
    for order, norm_first in (("pre", True), ("post", False)):
        config = msgspec.structs.replace(
            SMALL, bias=True, norm_order=order, position="none", causal=False, context=None
        )
        ours = build(config)
        x = torch.randn(2, 7, config.width)
        y = x
        for layer in ours.layers:
            theirs = nn.TransformerEncoderLayer(
                config.width, config.heads, config.hidden, 0.0, F.gelu, 1e-5, True, norm_first
            ).eval()
            theirs.load_state_dict(
                {
                    "self_attn.in_proj_weight": layer.attention.in_proj.weight,
                    "self_attn.in_proj_bias": layer.attention.in_proj.bias,
                    **prefixed("self_attn.out_proj", layer.attention.out_proj),
                    **prefixed("linear1", layer.feed_forward.linear_in),
                    **prefixed("linear2", layer.feed_forward.linear_out),
                    **prefixed("norm1", layer.attention_norm),
                    **prefixed("norm2", layer.feed_forward_norm),
                }
            )
            y = theirs(y)
        torch.testing.assert_close(ours(x), y, rtol=1e-4, atol=1e-5)


def prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def test_gated_feed_forward_is_swiglu() -> None:
    layer = GatedFeedForward(4, 6, bias=False)
    x = torch.randn(3, 4)
    gate, up = layer.linear_in.weight.split(6)
    expected = (F.silu(x @ gate.T) * (x @ up.T)) @ layer.linear_out.weight.T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_step_sees_exactly_its_context(kind: str) -> None:
    config = msgspec.structs.replace(KINDS[kind], layers=1)
    transformer, memory = build(config), condition(config)
    x = torch.randn(1, 12, config.width)
    before = transformer(x, memory=memory)
    changed = x.clone()
    changed[:, 3] = torch.randn(config.width)
    touched = (transformer(changed, memory=memory) - before).abs().amax(dim=(0, 2)) > 1e-5
    assert touched.nonzero().flatten().tolist() == list(range(3, 3 + config.context))


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), sizes=st.lists(st.integers(0, 9), max_size=8))
@torch.no_grad()
def test_live_equals_offline_for_any_chunking(kind: str, sizes: list[int]) -> None:
    transformer = build(KINDS[kind])
    x = torch.randn(1, sum(sizes) + 1, SMALL.width)
    state = live_state(transformer)
    live = torch.cat([transformer(part, state) for part in x.split([*sizes, 1], dim=1)], dim=1)
    offline = transformer(x, memory=condition(transformer.config))
    torch.testing.assert_close(live, offline, rtol=1e-4, atol=1e-5)


ROWS = 3
row_masks = st.lists(st.booleans(), min_size=ROWS, max_size=ROWS).map(torch.tensor)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    calls=st.lists(st.tuples(st.integers(1, 8), row_masks, row_masks), min_size=1, max_size=10),
)
@torch.no_grad()
def test_rows_of_different_ages_share_a_batch(
    kind: str, calls: list[tuple[int, Tensor, Tensor]]
) -> None:
    """Rows pause and restart at different times; each equals its own offline run."""
    transformer = build(KINDS[kind])
    memory = condition(transformer.config, ROWS)
    state = live_state(transformer, ROWS)
    heard: list[list[Tensor]] = [[] for _ in range(ROWS)]
    said: list[list[Tensor]] = [[] for _ in range(ROWS)]

    def check_and_forget(row: int) -> None:
        if heard[row]:
            own_memory = None if memory is None else memory[row : row + 1]
            offline = transformer(torch.cat(heard[row])[None], memory=own_memory)[0]
            torch.testing.assert_close(torch.cat(said[row]), offline, rtol=1e-4, atol=1e-5)
        heard[row], said[row] = [], []

    for steps, active, restarted in calls:
        for row in restarted.nonzero().flatten().tolist():
            check_and_forget(row)
        state.reset(restarted)
        if memory is not None:
            state.set_active(restarted)
            transformer.remember(memory, state)
        state.set_active(active)
        x = torch.randn(ROWS, steps, SMALL.width)
        paused = {name: tensor[~active].clone() for name, tensor in state.tensors.items()}
        y = transformer(x, state)
        assert y.isfinite().all()
        assert all(torch.equal(state.tensors[name][~active], paused[name]) for name in paused)
        for row in active.nonzero().flatten().tolist():
            heard[row].append(x[row])
            said[row].append(y[row])
    for row in range(ROWS):
        check_and_forget(row)


@torch.no_grad()
def test_a_saved_state_continues(tmp_path: Path) -> None:
    transformer = build(KINDS["musicgen"])
    x = torch.randn(1, 11, SMALL.width)
    state = live_state(transformer)
    transformer(x[:, :7], state)
    state.save(tmp_path / "session.safetensors")
    moved = init_state(transformer)
    moved.load(tmp_path / "session.safetensors")
    assert torch.equal(transformer(x[:, 7:], moved), transformer(x[:, 7:], state))


@torch.no_grad()
def test_conditions_of_different_lengths_share_a_batch() -> None:
    transformer = build(KINDS["musicgen"])
    x, long, short = torch.randn(2, 4, 16), torch.randn(1, 4, 16), torch.randn(1, 2, 16)
    state = init_state(transformer, 2)
    for row, memory in enumerate((long, short)):
        state.set_active(torch.arange(2) == row)
        transformer.remember(memory.expand(2, -1, -1), state)
    state.set_active(None)
    live = transformer(x, state)
    torch.testing.assert_close(live[:1], transformer(x[:1], memory=long), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(live[1:], transformer(x[1:], memory=short), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_row_without_a_condition_takes_nothing_from_it() -> None:
    """As with a condition of zeros, which is how generators drop their text."""
    transformer = build(KINDS["musicgen"])
    x = torch.randn(1, 4, 16)
    zeros = torch.zeros(1, 3, 16)
    torch.testing.assert_close(
        transformer(x, init_state(transformer)), transformer(x, memory=zeros)
    )


@torch.no_grad()
def test_half_precision_follows_the_full_one() -> None:
    """Positions far from the start stay exact, since angles are computed in fp32."""
    config = msgspec.structs.replace(KINDS["llama"], context=600, live_chunk=600)
    full, half = build(config), build(config).to(torch.bfloat16)
    x = torch.randn(1, 600, SMALL.width)
    live = half(x.bfloat16(), init_state(half))
    error = (live.float() - full(x)).norm() / full(x).norm()
    assert live.dtype == torch.bfloat16
    assert error < 0.03


def test_gradients_reach_every_weight() -> None:
    for config in KINDS.values():
        transformer = Transformer(config)
        transformer(torch.randn(2, 8, 16), memory=condition(config, 2)).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in transformer.parameters())


def test_memory_of_a_live_row_is_bounded_and_known() -> None:
    state = init_state(Transformer(SMALL), 2)
    capacity = CONTEXT + SMALL.live_chunk - 1
    assert state.tensors["layers.0.attention.keys"].shape == (2, 4, capacity, 4)
    assert state.tensors["position"].dtype == torch.int64


@pytest.mark.parametrize(
    "fields",
    [
        {"heads": 3},
        {"key_value_heads": 3},
        {"width": 12, "heads": 4, "position": "rotary"},
        {"width": 2, "heads": 1, "position": "sinusoidal"},
        {"context": 0},
        {"causal": False, "context": 4},
        {"live_chunk": 0},
    ],
)
def test_impossible_configs_are_refused(fields: dict) -> None:
    with pytest.raises(ConfigError):
        msgspec.structs.replace(SMALL, **fields)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="colour"):
        msgspec.convert({"colour": 1}, TransformerConfig)


def test_calls_that_cannot_work_say_why() -> None:
    endless = Transformer(msgspec.structs.replace(SMALL, context=None))
    x = torch.randn(1, 2, 16)
    assert endless(x).shape == x.shape
    with pytest.raises(ShapeError, match="only with a context"):
        endless(x, init_state(endless))
    plain, conditioned = Transformer(SMALL), Transformer(KINDS["musicgen"])
    with pytest.raises(ShapeError, match="takes no memory"):
        plain(x, memory=x)
    with pytest.raises(ShapeError, match="give it as `memory`"):
        conditioned(x)
    with pytest.raises(ShapeError, match="with `remember`"):
        conditioned(x, init_state(conditioned), x)
    with pytest.raises(ShapeError, match="1 to 4"):
        conditioned.remember(torch.randn(1, 5, 16), init_state(conditioned))
    with pytest.raises(ShapeError, match="no cross-attention"):
        plain.remember(x, init_state(plain))


def test_a_long_input_needs_no_square_of_memory() -> None:
    """For a hundred thousand steps, all pairs would be 40 GB."""
    config = msgspec.structs.replace(SMALL, width=4, heads=1, layers=1, hidden=4, context=50)
    with torch.no_grad():
        assert Transformer(config)(torch.randn(1, 100_000, 4)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_live_step_never_asks_the_device_for_a_number(kind: str) -> None:
    """On the meta device there are none to be had, and shapes are all that may decide."""
    with torch.device("meta"):
        transformer = Transformer(KINDS[kind])
        state = init_state(transformer, 2)
        state.set_active(torch.ones(2, dtype=torch.bool))
        if transformer.config.memory_steps:
            transformer.remember(torch.empty(2, 3, SMALL.width), state)
        assert transformer(torch.empty(2, 4, SMALL.width), state).shape == (2, 4, SMALL.width)
