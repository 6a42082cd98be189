from typing import Any

import pytest
import torch
from torch import nn

from sonorant.errors import ConfigError
from sonorant.separation import cross_transformer
from sonorant.separation.cross_transformer import (
    Attention,
    CrossTransformer,
    CrossTransformerConfig,
    TokenGroupNorm,
    TransformerLayer,
    linear_of_many,
)
from sonorant.separation.sparse_attention import SparseConfig


def small(**options: Any) -> CrossTransformer:
    torch.manual_seed(0)
    return CrossTransformer(8, CrossTransformerConfig(**{"layers": 3, "heads": 2} | options)).eval()


EVERYWHERE = SparseConfig(in_self_attention=True, in_cross_attention=True, window=100)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"position": "cape"},
        {"position": "scaled", "max_steps": 20},
        {"norm_first": False, "group_norm_groups": 2, "gelu": False, "layer_scale": False},
        {"norm_in": False, "norm_in_groups": 4, "norm_out_groups": 2},
        {"norm_in": False, "norm_out_groups": 0},
        {"sparse": EVERYWHERE},
        {"sparse": SparseConfig(in_self_attention=True, in_cross_attention=True, hashed=True)},
        {"dropout": 0.5},
    ],
)
def test_both_sequences_keep_their_shape_and_learn(options: dict[str, Any]) -> None:
    transformer = small(**options)
    x, xt = torch.randn(2, 8, 3, 5), torch.randn(2, 8, 7)
    with torch.no_grad():
        again = transformer(x, xt)
        assert again[0].shape == x.shape
        assert again[1].shape == xt.shape
    y, yt = transformer.train()(x, xt)
    (y.sum() + (yt * torch.randn_like(yt)).sum()).backward()
    learned = [
        p.grad is not None for name, p in transformer.named_parameters() if "norm3" not in name
    ]
    assert all(learned)


def test_layers_take_turns() -> None:
    assert [layer.crosses for layer in small().layers] == [False, True, False]
    assert [layer.crosses for layer in small(cross_first=True).layers_t] == [True, False, True]


def test_both_cross_layers_see_the_other_sequence_before_them() -> None:
    transformer = small(layers=1, cross_first=True, layer_scale=False)
    x, xt = torch.randn(1, 8, 2, 3), torch.randn(1, 8, 4)
    seen: list[torch.Tensor] = []
    transformer.layers[0].register_forward_hook(lambda layer, given, result: seen.extend(given))
    transformer.layers_t[0].register_forward_hook(lambda layer, given, result: seen.extend(given))
    with torch.no_grad():
        transformer(x, xt)
    assert torch.equal(seen[0], seen[3])
    assert torch.equal(seen[1], seen[2])


def test_frames_of_the_spectrum_come_one_after_the_other() -> None:
    transformer = small(layers=0, norm_in=False, position_weight=0.0)
    transformer.layers.append(nn.Module())
    transformer.layers_t.append(nn.Module())
    tokens: list[torch.Tensor] = []

    def keep(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        tokens.append(x)
        return x

    transformer.layers[0].forward = keep
    transformer.layers_t[0].forward = keep
    x = torch.arange(6.0).view(1, 1, 2, 3).expand(-1, 8, -1, -1)
    y, _ = transformer(x, torch.zeros(1, 8, 2))
    assert tokens[0][0, :, 0].tolist() == [0, 3, 1, 4, 2, 5]
    assert torch.equal(y, x)


def test_attention_is_that_of_torch() -> None:
    ours, theirs = Attention(8, 2, 0.0), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    x, memory = torch.randn(2, 5, 8), torch.randn(2, 9, 8)
    for other in (x, memory):
        torch.testing.assert_close(ours(x, other), theirs(x, other, other)[0])


def test_a_window_over_everything_is_full_attention() -> None:
    full, sparse = small(), small(sparse=EVERYWHERE)
    tensors = full.state_dict()
    for name in list(tensors):
        start, _, kind = name.partition("in_proj_")
        if kind:
            for letter, part in zip("qkv", tensors.pop(name).chunk(3), strict=True):
                tensors[f"{start}{letter}.{kind}"] = part
        elif "out_proj" in name:
            tensors[name.replace("out_proj", "proj")] = tensors.pop(name)
    sparse.load_state_dict(tensors)
    x, xt = torch.randn(1, 8, 3, 5), torch.randn(1, 8, 7)
    with torch.no_grad():
        torch.testing.assert_close(sparse(x, xt), full(x, xt))


def test_dropout_only_acts_in_training() -> None:
    layer = TransformerLayer(8, CrossTransformerConfig(heads=2, dropout=0.5), crosses=False)
    x = torch.randn(1, 6, 8)
    assert not torch.equal(layer(x, x), layer(x, x))
    assert torch.equal(layer.eval()(x, x), layer(x, x))


@pytest.mark.parametrize("groups", [1, 4])
def test_token_group_norm_normalises_over_all_steps(groups: int) -> None:
    norm, plain = TokenGroupNorm(groups, 8), nn.GroupNorm(groups, 8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    plain.load_state_dict(norm.state_dict())
    x = 2 + torch.randn(2, 5, 8)
    torch.testing.assert_close(norm(x), plain(x.transpose(1, 2)).transpose(1, 2))


def test_random_shifts_move_the_positions() -> None:
    transformer = small(random_shift=1000)
    xt = torch.zeros(1, 4, 8)
    draws = [transformer._positions(xt)[0] for _ in range(4)]
    assert not all(torch.equal(draws[0], draw) for draw in draws[1:])


def test_a_width_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="width 10"):
        CrossTransformer(10, CrossTransformerConfig(heads=2))


@pytest.mark.parametrize("bias", [False, True])
def test_many_steps_give_what_a_linear_layer_gives(
    monkeypatch: pytest.MonkeyPatch, bias: bool
) -> None:
    monkeypatch.setattr(cross_transformer, "MANY_STEPS", 10)
    layer = nn.Linear(8, 5, bias=bias)
    for shape in ((3, 7, 8), (1, 21, 8), (1, 4, 8)):
        x = torch.randn(shape)
        with torch.no_grad():
            y = linear_of_many(x, layer.weight, layer.bias)
            torch.testing.assert_close(y, layer(x))
            assert y.is_contiguous()
