"""SEANet: the convolutional encoder and decoder of EnCodec, Mimi and the generative codecs.

Source: EnCodec (arXiv 2210.13438, section 3.2 and figure 1). The encoder is a convolution, then per
ratio a residual block and a strided convolution that doubles the channels, an LSTM and a last
convolution; the decoder mirrors it with transposed convolutions.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import Literal

import msgspec
import torch
from torch import Tensor, nn

from sonorant.nn.conv import (
    ConvStyle,
    Norm,
    PadMode,
    StreamingConv1d,
    StreamingConvTranspose1d,
    uses_matrix_form,
)
from sonorant.nn.elu import ELU
from sonorant.nn.lstm import SkipLSTM
from sonorant.nn.matrix_conv import add_pointwise, conv_time_major, pointwise_sum, two_convs
from sonorant.nn.state import State

# The stages at low rates run on this many blocks at once (benchmarks/codec.py).
SLOW_STAGE_BLOCKS = 4


class SEANetVariant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the AudioCraft package can change beside the sizes; no published model does.

    elu_alpha: of all ELUs. final_activation: after the decoder's last convolution.
    plain_outer_blocks: how many blocks have no norm, counted from the sound inwards: its
        convolution, then one block for each ratio, then the latent's convolution.
    """

    elu_alpha: float = 1.0
    plain_outer_blocks: int = 0
    final_activation: Literal["tanh"] | None = None


class SEANetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes of one encoder and its decoder; the defaults are EnCodec's.

    `ratios` are in the decoder's order; their product is the hop length in samples. `compress` is
    how many times narrower residual branches are. `skip` says how residual blocks carry their
    input: through a 1x1 convolution (EnCodec) or unchanged (the 32 kHz and Mimi models).
    """

    channels: int = 1
    dimension: int = 128
    base_filters: int = 32
    ratios: tuple[int, ...] = (8, 5, 4, 2)
    residual_layers: int = 1
    kernel_size: int = 7
    last_kernel_size: int = 7
    residual_kernel_size: int = 3
    dilation_base: int = 2
    compress: int = 2
    lstm_layers: int = 2
    skip: Literal["convolution", "identity"] = "convolution"
    causal: bool = True
    pad_mode: PadMode = "reflect"
    norm: Norm = "weight_norm"
    trim_right_ratio: float = 1.0
    # Left out of saved configs where unset, so that the fingerprints in containers stay the same.
    variant: SEANetVariant | msgspec.UnsetType = msgspec.UNSET

    @property
    def details(self) -> SEANetVariant:
        return SEANetVariant() if isinstance(self.variant, msgspec.UnsetType) else self.variant

    def style(self, block: int) -> ConvStyle:
        """Of a block counted from the sound inwards, from 0 to `len(ratios) + 1`."""
        plain = block < self.details.plain_outer_blocks
        return ConvStyle(self.causal, self.pad_mode, "none" if plain else self.norm)

    def elu(self) -> ELU:
        return ELU(self.details.elu_alpha)


class StreamingSequence(nn.Module):
    """Layers in a row; those that stream are handed the state."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        return self.run(x, state, 0, len(self.layers))

    def run(self, x: Tensor, state: State | None, first: int, end: int) -> Tensor:
        """Only the layers from `first` to before `end`."""
        activation: ELU | None = None
        for layer in islice(self.layers, first, end):
            if isinstance(layer, ELU):
                activation = layer
            elif activation is not None and isinstance(layer, StreamingConv1d):
                x, activation = layer(x, state, activation), None
            else:
                x, activation = layer(x if activation is None else activation(x), state), None
        return x if activation is None else activation(x)

    def run_split(self, x: Tensor, state: State, first: int, end: int, block: int) -> Tensor:
        """The same on `block` samples at a time."""
        return _joined([self.run(part, state, first, end) for part in x.split(block, dim=-1)])


def _joined(parts: list[Tensor]) -> Tensor:
    """Parts of one sound in a row, laid out in memory as they are: by time where that is quick."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.transpose(1, 2) for part in parts], dim=1).transpose(1, 2)


class ResidualBlock(nn.Module):
    """Two convolutions, the first dilated, beside a shortcut.

    Shape: x [batch, channels, time] -> the same.
    """

    def __init__(
        self, channels: int, dilation: int, config: SEANetConfig, style: ConvStyle
    ) -> None:
        super().__init__()
        hidden = channels // config.compress
        kernel_size = config.residual_kernel_size
        self.block = StreamingSequence(
            [
                config.elu(),
                StreamingConv1d(channels, hidden, kernel_size, dilation=dilation, style=style),
                config.elu(),
                StreamingConv1d(hidden, channels, kernel_size=1, style=style),
            ]
        )
        self.mergeable = style.norm != "time_group_norm"
        self.shortcut: StreamingConv1d | None = None
        if config.skip == "convolution":
            self.shortcut = StreamingConv1d(channels, channels, kernel_size=1, style=style)

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        if self.shortcut is None:
            branch = self.block(x, state)
            return x + branch if torch.is_grad_enabled() else branch.add_(x)
        if not (uses_matrix_form(x) and self.mergeable):
            return self.block(x, state) + self.shortcut(x, state)
        pair = ((self.last, self.hidden(x, state)), (self.shortcut, x))
        terms = [(conv.conv, conv.packed, part.transpose(1, 2)) for conv, part in pair]
        return pointwise_sum(terms).transpose(1, 2)

    @property
    def last(self) -> StreamingConv1d:
        """The convolution of one tap that ends the branch beside the shortcut."""
        last = self.block.layers[-1]
        assert isinstance(last, StreamingConv1d)
        return last

    def hidden(self, x: Tensor, state: State | None) -> Tensor:
        """What goes into `last`."""
        return self.block.run(x, state, 0, len(self.block.layers) - 1)


class FinalTanh(nn.Module):
    """Bounds the decoded sound. Shape: any."""

    def forward(self, x: Tensor, state: State | None = None) -> Tensor:
        return x.tanh()


def _residual_blocks(channels: int, config: SEANetConfig, style: ConvStyle) -> list[nn.Module]:
    return [
        ResidualBlock(channels, config.dilation_base**layer, config, style)
        for layer in range(config.residual_layers)
    ]


class SEANetEncoder(StreamingSequence):
    """Sound to latents.

    Shape: x [batch, channels, time] -> [batch, dimension, ceil(time / hop)]. Latency: none once
    started; see `StreamingConv1d` for the start of a stream.
    """

    def __init__(self, config: SEANetConfig) -> None:
        width = config.base_filters
        layers: list[nn.Module] = [
            StreamingConv1d(config.channels, width, config.kernel_size, style=config.style(0))
        ]
        for block, ratio in enumerate(reversed(config.ratios), start=1):
            style = config.style(block)
            layers += _residual_blocks(width, config, style)
            layers.append(config.elu())
            layers.append(StreamingConv1d(width, 2 * width, 2 * ratio, stride=ratio, style=style))
            width *= 2
        if config.lstm_layers:
            layers.append(SkipLSTM(width, config.lstm_layers))
        layers.append(config.elu())
        style = config.style(len(config.ratios) + 1)
        layers.append(
            StreamingConv1d(width, config.dimension, config.last_kernel_size, style=style)
        )
        super().__init__(layers)
        self.opens_at_once = (
            config.residual_layers > 0
            and config.skip == "convolution"
            and config.norm != "time_group_norm"
            and config.channels * config.kernel_size < config.base_filters
        )
        stage = config.residual_layers + 2
        self.strided_layers = 1 + len(config.ratios) * stage
        self.fast_layers = 1 + len(config.ratios) // 2 * stage

    def run(self, x: Tensor, state: State | None, first: int, end: int) -> Tensor:
        if self.opens_at_once and first == 0 and end > 1 and uses_matrix_form(x):
            return super().run(self._open(x, state), state, 2, end)
        return super().run(x, state, first, end)

    def _open(self, x: Tensor, state: State | None) -> Tensor:
        """The first convolution and block, of which the shortcut then takes few products.

        It sees what the convolution makes as it is: both are one convolution of the sound.
        """
        first, block = self.layers[0], self.layers[1]
        assert isinstance(first, StreamingConv1d)
        assert isinstance(block, ResidualBlock)
        assert block.shortcut is not None
        padded = first._pad(x.transpose(1, 2), state, 1, None)
        wide = conv_time_major(padded, first.conv, first.packed).transpose(1, 2)
        hidden, last = block.hidden(wide, state).transpose(1, 2), block.last
        y = two_convs(padded, first.conv, block.shortcut.conv)
        add_pointwise(y, hidden, last.conv, last.packed)
        return y.transpose(1, 2)

    def run_in_blocks(self, x: Tensor, state: State, block: int) -> Tensor:
        """The same as a live call, with less memory and time for long inputs.

        The first half of the stages, at high rates, runs on `block` samples at a time, so that what
        they make stays in the processor's cache; the second half on several blocks, so that its
        large weights are read less often; the LSTM and the rest run once.
        """
        fast, strided = self.fast_layers, self.strided_layers
        parts = []
        for part in x.split(SLOW_STAGE_BLOCKS * block, dim=-1):
            part = self.run_split(part, state, 0, fast, block)
            parts.append(self.run(part, state, fast, strided))
        return self.run(_joined(parts), state, strided, len(self.layers))


class SEANetDecoder(StreamingSequence):
    """Latents to sound.

    Shape: x [batch, dimension, frames] -> [batch, channels, frames * hop]. Latency: none once
    started; see `StreamingConv1d` for the start of a stream.
    """

    def __init__(self, config: SEANetConfig) -> None:
        width = config.base_filters * 2 ** len(config.ratios)
        style = config.style(len(config.ratios) + 1)
        layers: list[nn.Module] = [
            StreamingConv1d(config.dimension, width, config.kernel_size, style=style)
        ]
        if config.lstm_layers:
            layers.append(SkipLSTM(width, config.lstm_layers))
        for index, ratio in enumerate(config.ratios):
            style = config.style(len(config.ratios) - index)
            layers.append(config.elu())
            layers.append(
                StreamingConvTranspose1d(
                    width, width // 2, 2 * ratio, ratio, style, config.trim_right_ratio
                )
            )
            width //= 2
            layers += _residual_blocks(width, config, style)
        layers.append(config.elu())
        style = config.style(0)
        layers.append(StreamingConv1d(width, config.channels, config.last_kernel_size, style=style))
        if config.details.final_activation == "tanh":
            layers.append(FinalTanh())
        super().__init__(layers)
        self.latent_layers = 2 if config.lstm_layers else 1
        slow = (len(config.ratios) + 1) // 2
        self.slow_layers = self.latent_layers + slow * (2 + config.residual_layers)
        self.slow_ratio = math.prod(config.ratios[:slow])

    def run_in_blocks(self, x: Tensor, state: State, block: int) -> Tensor:
        """The same as a live call, with less memory and time for long inputs.

        The first convolution and the LSTM run once, the first half of the stages on several blocks
        of `block` frames, the others on one at a time: see `SEANetEncoder.run_in_blocks`.
        """
        latent, slow = self.latent_layers, self.slow_layers
        x = self.run(x, state, 0, latent)
        parts = []
        for part in x.split(SLOW_STAGE_BLOCKS * block, dim=-1):
            part = self.run(part, state, latent, slow)
            parts.append(
                self.run_split(part, state, slow, len(self.layers), block * self.slow_ratio)
            )
        return _joined(parts)
