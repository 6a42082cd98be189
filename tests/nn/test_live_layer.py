"""Flat live layers compute what the layers do."""

import pytest
import torch

from sonorant.nn.state import init_state
from sonorant.nn.transformer import Transformer, TransformerConfig


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_scale": 0.5},
        {"norm": "rms_norm", "feed_forward": "gated_silu", "key_value_heads": 1},
        {"position": "sinusoidal", "bias": True, "feed_forward": "relu"},
    ],
)
def test_a_flat_layer_gives_the_numbers_of_the_layer(fields: dict) -> None:
    torch.manual_seed(0)
    config = TransformerConfig(width=8, layers=2, heads=2, hidden=16, context=3, **fields)
    transformer = Transformer(config)
    flat, whole = init_state(transformer), init_state(transformer)
    for steps in (1, 2, 3, 1):  # round the ring
        x = torch.randn(1, steps, 8)
        expected = transformer(x, whole)  # with gradients, as the layers themselves
        with torch.no_grad():
            y = transformer(x, flat)
        torch.testing.assert_close(y, expected)
    assert transformer in flat.prepared
    assert transformer not in whole.prepared
