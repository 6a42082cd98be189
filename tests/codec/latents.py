"""What codecs quantise, seen from outside: tokens alone hide how near two computations are."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def latents_quantised_by(model: Any) -> Iterator[list[Tensor]]:
    """The latents `[batch, dimension, frames]` that `model.quantizer.encode` gets meanwhile."""
    quantizer: nn.Module = model.quantizer
    seen: list[Tensor] = []
    encode = quantizer.encode

    def noted(latent: Tensor, *arguments: Any) -> Tensor:
        seen.append(latent)
        tokens: Tensor = encode(latent, *arguments)
        return tokens

    quantizer.encode = noted
    try:
        yield seen
    finally:
        del quantizer.encode


def assert_quantised_alike(
    live: list[Tensor], offline: list[Tensor], tokens: Tensor, expected: Tensor
) -> None:
    """The same tokens in double precision; in single, latents that agree but for rounding.

    Two codewords can be as near to a latent as single precision tells, and then a sum in another
    order takes the other one. Double precision leaves no such case in a test of this size.
    """
    precision = offline[0].dtype
    near = 1e-10 if precision == torch.float64 else 1e-4
    torch.testing.assert_close(
        torch.cat(live, -1), torch.cat(offline, -1), rtol=near, atol=near / 10
    )
    assert tokens.shape == expected.shape
    if precision == torch.float64:
        assert torch.equal(tokens, expected)
