"""Packed linear layers: errors within bounds, never saved by mistake, refusals in words."""

import copy

import msgspec
import pytest
import torch
from torch import Tensor, nn

from sonorant.errors import CheckpointError, ConfigError
from sonorant.nn.linear import PackedLinear, PackMode, lay_out_by_input, pack_linears
from sonorant.nn.state import init_state
from sonorant.nn.transformer import Transformer, TransformerConfig

# Relative error of one layer on normal inputs: 11 bits of mantissa; 8 bits of weights and 7 or 8
# bits of inputs.
BOUNDS: dict[PackMode, float] = {"fp16": 1e-3, "int8": 3e-2}

SMALL = TransformerConfig(width=32, layers=2, heads=4, hidden=64, context=8, live_chunk=2)


def error(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


@pytest.mark.parametrize("mode", BOUNDS)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_products_stay_within_their_bounds_at_every_batch(mode: PackMode, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(72, 50, bias)
    packed = PackedLinear(linear, mode)
    for batch in range(1, 17):
        x = torch.randn(batch, 2, 72)
        assert packed(x).shape == (batch, 2, 50)
        assert error(packed(x), linear(x)) < BOUNDS[mode]


@torch.no_grad()
def test_fp16_rows_do_not_depend_on_their_batch() -> None:
    packed = PackedLinear(nn.Linear(32, 16), "fp16")
    x = torch.randn(8, 32)
    torch.testing.assert_close(packed(x)[:1], packed(x[:1]), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_int8_sums_do_not_overflow() -> None:
    """All numbers at the end of their range: sums of pairs in 16 bits would halve this."""
    linear = nn.Linear(256, 8, bias=False)
    linear.weight.fill_(1.0)
    assert error(PackedLinear(linear, "int8")(torch.ones(1, 256)), torch.full((1, 8), 256.0)) < 0.02


@pytest.mark.parametrize("mode", BOUNDS)
@torch.no_grad()
def test_a_packed_transformer_decodes_like_the_exact_one(mode: PackMode) -> None:
    torch.manual_seed(0)
    for config in (SMALL, msgspec.structs.replace(SMALL, bias=True, memory_steps=3)):
        exact = Transformer(config).eval()
        packed = copy.deepcopy(exact)
        report = pack_linears(packed, mode)
        assert report.layers.keys() == {
            name for name, module in exact.named_modules() if isinstance(module, nn.Linear)
        }
        assert 0 < report.total < BOUNDS[mode]
        assert all(0 < layer < BOUNDS[mode] for layer in report.layers.values())
        state, exact_state = init_state(packed, 2), init_state(exact, 2)
        for _ in range(12):
            x = torch.randn(2, 1, config.width)
            assert error(packed(x, state), exact(x, exact_state)) < 2 * BOUNDS[mode]


def test_a_shared_layer_stays_shared() -> None:
    linear = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": linear, "b": nn.Sequential(linear), "c": linear})
    report = pack_linears(model, "fp16")
    assert model["a"] is model["b"][0] is model["c"]
    assert report.layers.keys() == {"a", "b.0", "c"}


def test_layers_that_others_look_into_stay_plain() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "head": nn.Linear(8, 8)})
    assert pack_linears(model, "fp16").layers.keys() == {"head"}
    x = torch.randn(3, 1, 8)
    assert model["attention"](x, x, x)[0].shape == x.shape


def test_a_packed_layer_is_neither_saved_nor_loaded() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pack_linears(model, "fp16")
    with pytest.raises(CheckpointError, match=r"0 is packed to fp16.*save the model before"):
        model.state_dict()
    with pytest.raises(CheckpointError, match=r"0 is packed to fp16.*before packing"):
        model.load_state_dict(weights)


@pytest.mark.parametrize("mode", BOUNDS)
@torch.no_grad()
def test_a_copy_computes_the_same(mode: PackMode) -> None:
    packed = PackedLinear(nn.Linear(8, 8), mode)
    x = torch.randn(2, 8)
    assert torch.equal(copy.deepcopy(packed)(x), packed(x))


def test_what_cannot_be_packed_is_refused_and_left_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with pytest.raises(ConfigError, match="choose one of fp16, int8"):
        pack_linears(model, "int3")
    with pytest.raises(ConfigError, match="no linear layers"):
        pack_linears(nn.Conv1d(1, 1, 1), "fp16")
    with torch.no_grad():
        model[1].weight[0, 0] = torch.inf
    with pytest.raises(ConfigError, match="not finite or too large"):
        pack_linears(model, "int8")
    assert type(model[0]) is nn.Linear
    with pytest.raises(ConfigError, match="only fp32 weights"):
        pack_linears(nn.Sequential(nn.Linear(8, 8).bfloat16()), "fp16")


def test_an_engine_without_the_operators_is_named() -> None:
    engine = torch.backends.quantized.engine
    if "qnnpack" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of PyTorch has no engine that lacks fp16")
    try:
        torch.backends.quantized.engine = "qnnpack"
        with pytest.raises(ConfigError, match=r"cannot run fp16.*qnnpack"):
            PackedLinear(nn.Linear(8, 8), "fp16")
    finally:
        torch.backends.quantized.engine = engine


@torch.no_grad()
def test_laying_out_by_input_keeps_values_and_can_be_packed() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 4))
    laid = copy.deepcopy(plain)
    lay_out_by_input(laid)
    assert laid[0].weight.stride() == (1, 24)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(laid(x), plain(x))
    assert all(torch.equal(laid.state_dict()[name], t) for name, t in plain.state_dict().items())
    pack_linears(laid, "fp16")
    pack_linears(plain, "fp16")
    assert torch.equal(laid(x), plain(x))
