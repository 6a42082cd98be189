"""Training of a codec's decoder alone, on the codewords that its encoder and quantizer give."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from sonorant.codec.adversarial_training import Attempt
from sonorant.codec.encodec import Encodec
from sonorant.codec.mimi import Mimi
from sonorant.nn.conv import StreamingConvTranspose1d
from sonorant.nn.seanet import SEANetDecoder


class DecoderOnly(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Training of the decoder's weights alone. Biases stay too: what they drift sounds in silence.

    first_layers_rate: factor of the learning rate for the SEANet's first layers, which all later
        ones amplify; 0 leaves them as they are.
    first_layers: how many these are; None for those before the first upsampling.
    """

    first_layers_rate: Annotated[float, msgspec.Meta(ge=0)] = 1.0
    first_layers: Annotated[int, msgspec.Meta(ge=1)] | None = None


def attempt_decoder(codec: Encodec | Mimi, batch: Tensor, codebooks: int, drawn: int) -> Attempt:
    """A forward pass of which only the decoder learns; `drawn` is the index of the bandwidth."""
    with torch.no_grad():
        latent = codec.to_latent(batch)
        quantized = codec.quantizer.decode(codec.quantizer.encode(latent, codebooks))
    reconstruction = codec.from_latent(quantized)[..., : batch.shape[-1]]
    error = (quantized - latent).square().mean()
    return Attempt(reconstruction, None, drawn, {"commitment": error})


def decoder_optimizer(
    decoder: SEANetDecoder,
    before: Iterable[nn.Module],
    settings: DecoderOnly,
    rate: float,
    betas: tuple[float, float],
) -> Optimizer:
    """Adam on the weights of a decoder and of the modules `before` it, which take the full rate."""
    layers = list(decoder.layers)
    count = settings.first_layers
    if count is None:
        count = [isinstance(layer, StreamingConvTranspose1d) for layer in layers].index(True)
    groups: list[dict[str, Any]] = [{"params": _weights([*before, *layers[count:]])}]
    if settings.first_layers_rate:
        first_rate = rate * settings.first_layers_rate
        groups.append({"params": _weights(layers[:count]), "lr": first_rate})
    return Adam(groups, rate, betas, fused=True)


def _weights(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The parameters without the biases."""
    named = (item for module in modules for item in module.named_parameters())
    return [parameter for name, parameter in named if "bias" not in name]
