"""Start HDemucs and HTDemucs as masks on the mixture, so that short trainings have a head start.

With random weights the U-Nets first have to discover that sound can pass through them at all. Here
the outermost layers begin as wires: the first encoder layer gathers the bins of one stride in
channels, the skip connection carries them across, and the last decoder layer gives every source all
of them, each through a gate of its own. The gates are the gated linear units of that layer: they
see the channels of the whole network, and begin nearly alike, so that every source starts as its
share of the mixture. What training has to learn is when to open and close them. All other channels
start at random.

A signal passes a GELU unchanged as a pair of channels of opposite sign, for gelu(x) - gelu(-x) = x.

Own method.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sonorant.errors import ConfigError
from sonorant.separation.hdemucs import HybridModel
from sonorant.separation.hybrid_layers import DecoderLayer, EncoderLayer

OPEN_GATE = 6.0  # bias of a gate that lets almost everything through
GATE_WEIGHTS = 0.05  # of the first weights of the sources' gates, so that the mixture's peaks
# do not shut them before anything is learned
QUIET = 0.01  # of the first weights behind which the waveform's branch adds to the stems
# What a magnitude of zero is after it has been brought to mean 0 and deviation 1: between -0.1 and
# -0.36 in six rendered songs.
SILENCE = -0.25


@torch.no_grad()
def start_as_masks(model: HybridModel) -> None:
    """Set the outermost layers' first weights.

    Raises: ConfigError for a network with one source only, whose outermost layers are banded,
    normalised or not over bins, or that has too few channels to give every source a gate for each
    bin of a stride.
    """
    config, first, last = model.config, model.encoder[0], model.decoder[-1]
    values = config.spectrum_channels * config.stride
    needed = max(2 * values, len(config.sources) * values)
    if not (isinstance(first, EncoderLayer) and isinstance(last, DecoderLayer)):
        raise ConfigError("a start as masks needs outermost layers without bands")
    if not config.norm_from_layer or not config.rewrite:
        raise ConfigError("a start as masks needs outermost layers with `rewrite`, without norms")
    if len(config.sources) == 1:
        raise ConfigError("a start as masks shares the mixture between sources, and there is one")
    if 1 in model.bins[:2]:
        raise ConfigError(f"a start as masks needs more bins than n_fft {config.n_fft} leaves")
    if config.channels < needed:
        raise ConfigError(
            f"a start as masks needs {needed} channels for {len(config.sources)} sources, got "
            f"{config.channels}"
        )
    _gather(first, config.spectrum_channels)
    if config.embedding_weight:
        model.freq_emb.embedding.weight[:, :values] = 0
    if len(model.decoder) > 1:
        inner = model.decoder[-2]
        assert isinstance(inner, DecoderLayer)
        _keep_clear(inner.conv_tr, values)
    silence = 0.0 if config.complex_as_channels else SILENCE
    _give_shares(last, len(config.sources), config.spectrum_channels, silence)
    if model.tdecoder:
        outermost = model.tdecoder[-1]
        assert isinstance(outermost, DecoderLayer)
        assert isinstance(outermost.conv_tr, nn.ConvTranspose1d)
        outermost.conv_tr.weight *= QUIET
        _bias(outermost.conv_tr).zero_()


def _gather(layer: EncoderLayer, maps: int) -> None:
    """Output map * stride + step of the layer is that bin of its stride, whatever its size."""
    conv, rewrite, plan = layer.conv, layer.rewrite, layer.plan
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(rewrite, nn.Conv2d)
    values, channels = maps * plan.stride, conv.out_channels
    conv.weight[: 2 * values] = 0
    _bias(conv)[: 2 * values] = 0
    rewrite.weight[:values] = 0
    _bias(rewrite)[:values] = 0
    rewrite.weight[channels : channels + values] = 0
    _bias(rewrite)[channels : channels + values] = OPEN_GATE
    centre = tuple(size // 2 for size in rewrite.kernel_size)
    for value, (map_, step) in enumerate(_places(maps, plan.stride)):
        conv.weight[2 * value, map_, plan.padding + step] = 1
        conv.weight[2 * value + 1, map_, plan.padding + step] = -1
        rewrite.weight[value, 2 * value, centre[0], centre[1]] = 1
        rewrite.weight[value, 2 * value + 1, centre[0], centre[1]] = -1


def _keep_clear(conv: nn.Module, values: int) -> None:
    """A transposed convolution that adds nothing to the channels of the mixture."""
    assert isinstance(conv, nn.ConvTranspose2d)
    conv.weight[:, :values] = 0
    _bias(conv)[:values] = 0


def _give_shares(layer: DecoderLayer, sources: int, maps: int, silence: float) -> None:
    """Every source gets the mixture, each bin through a gate that lets its share through."""
    rewrite, conv, plan = layer.rewrite, layer.conv_tr, layer.plan
    assert isinstance(rewrite, nn.Conv2d)
    assert isinstance(conv, nn.ConvTranspose2d)
    values, channels = maps * plan.stride, layer.in_channels
    gated = sources * values
    rewrite.weight[:gated] = 0
    _bias(rewrite)[:gated] = -silence
    rewrite.weight[channels:] *= GATE_WEIGHTS
    share = torch.tensor(1 / sources)
    _bias(rewrite)[channels : channels + gated] = torch.logit(share)
    conv.weight.zero_()
    _bias(conv).fill_(silence)
    row, column = (size // 2 for size in rewrite.kernel_size)
    for source in range(sources):
        for value, (map_, step) in enumerate(_places(maps, plan.stride)):
            gate = source * values + value
            rewrite.weight[gate, value, row, column] = 1
            conv.weight[gate, source * maps + map_, plan.padding + step] = 1


def _places(maps: int, stride: int) -> list[tuple[int, int]]:
    return [(map_, step) for map_ in range(maps) for step in range(stride)]


def _bias(conv: nn.Module) -> Tensor:
    bias = conv.bias
    assert isinstance(bias, Tensor)
    return bias
