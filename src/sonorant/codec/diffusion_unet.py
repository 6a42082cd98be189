"""The U-Net that guesses the noise in a noisy sound, told by the latents of a codec.

Source: Multi-Band Diffusion (arXiv 2308.02560, sections 3.2 and 4.1) in its published form. Strided
convolutions go down, transposed ones come up, and the decoder adds what the encoder had at the same
rate. Every level is told the diffusion step; the deepest is told the latents and looks along time.

Two traits of the published models: latents are stretched to the deepest level's frames by repeating
the nearest (the paper says linearly), and they reach the decoder twice, through the bottleneck and
through the skip connection around it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.errors import ConfigError, ShapeError
from sonorant.nn.positions import sinusoidal
from sonorant.nn.transformer import Transformer, TransformerConfig

Count = Annotated[int, msgspec.Meta(ge=1)]
BottleneckName = Literal["none", "lstm", "transformer", "cross_attention"]
NORM_EPSILON = 1e-5


class UNetConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One network. The defaults are the published ones; a level more multiplies channels by growth.

    condition_dimension: of the latents; None for a network without.
    steps: diffusion steps that it knows.
    step_at_every_level: tell every level of the encoder the step, or only the first.
    bottleneck: what looks along time at the deepest level. With `none` only skip connections and
        the condition carry anything across it.
    """

    channels: Count = 1
    condition_dimension: Count | None = 128
    steps: Count = 1000
    hidden: Count = 48
    depth: Count = 4
    growth: float = 4.0
    max_channels: Count = 10_000
    kernel: Count = 8
    stride: Count = 4
    res_blocks: Annotated[int, msgspec.Meta(ge=0)] = 1
    norm_groups: Count = 4
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.0
    step_at_every_level: bool = True
    bottleneck: BottleneckName = "lstm"

    def __post_init__(self) -> None:
        if self.kernel < self.stride or (self.kernel - self.stride) % 2:
            raise ConfigError(
                f"a kernel of {self.kernel} does not centre on strides of {self.stride}; their "
                "difference must be even and not below 0"
            )
        for width in self.widths:
            if width % self.norm_groups:
                raise ConfigError(f"{self.norm_groups} norm_groups do not divide {width} channels")
        if self.bottleneck == "cross_attention" and self.condition_dimension is None:
            raise ConfigError("cross_attention needs latents to attend to: condition_dimension")

    @property
    def widths(self) -> list[int]:
        """Channels of each level, from the first to the deepest."""
        widths = [self.hidden]
        for _ in range(self.depth - 1):
            widths.append(min(int(widths[-1] * self.growth), self.max_channels))
        return widths


class ResidualBlock(nn.Module):
    """Two normalised, dilated convolutions beside the identity.

    Shape: x [batch, channels, time] -> the same.
    """

    def __init__(self, channels: int, dilation: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm1 = _norm(channels, config)
        self.conv1 = nn.Conv1d(channels, channels, 3, dilation=dilation, padding=dilation)
        self.norm2 = _norm(channels, config)
        self.conv2 = nn.Conv1d(channels, channels, 3, dilation=dilation, padding=dilation)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = self.dropout(self.conv1(F.relu(self.norm1(x))))
        return x + self.dropout(self.conv2(F.relu(self.norm2(y))))


class EncoderLevel(nn.Module):
    """Down by `stride`: x [batch, in_channels, time] -> [batch, channels, ceil(time / stride)]."""

    def __init__(self, in_channels: int, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.stride = config.stride
        self.conv = nn.Conv1d(
            in_channels, channels, config.kernel, config.stride, _padding(config), bias=False
        )
        self.norm = _norm(channels, config)
        self.blocks = _residual_blocks(channels, config)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, -x.shape[-1] % self.stride))
        return self.blocks(F.relu(self.norm(self.conv(x))))


class DecoderLevel(nn.Module):
    """Up by `stride`: x [batch, channels, time] -> [batch, out_channels, time * stride]."""

    def __init__(self, channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.blocks = _residual_blocks(channels, config)
        self.norm = _norm(channels, config)
        self.conv = nn.ConvTranspose1d(
            channels, out_channels, config.kernel, config.stride, _padding(config), bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(self.blocks(x))))


class NoBottleneck(nn.Module):
    """Silence, as in the published networks that have none: the skip connection carries all."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return torch.zeros_like(x)


class LSTMBottleneck(nn.Module):
    """A two-layer LSTM along both directions of time, and a linear layer back to the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, num_layers=2, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * width, width)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.linear(self.lstm(x.transpose(1, 2))[0]).transpose(1, 2)


class TransformerBottleneck(nn.Module):
    """Six layers of attention over the whole sound."""

    attends_to_condition = False

    def __init__(self, width: int) -> None:
        super().__init__()
        config = TransformerConfig(
            width=width,
            layers=6,
            heads=8,
            hidden=2048,
            feed_forward="relu",
            norm_order="post",
            position="sinusoidal",
            causal=False,
            memory_steps=1 if self.attends_to_condition else 0,
        )
        self.transformer = Transformer(config)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return self.transformer(x.transpose(1, 2)).transpose(1, 2)


class CrossAttentionBottleneck(TransformerBottleneck):
    """The same, with attention to the latents at their own rate, which nothing else then sees."""

    attends_to_condition = True

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        assert condition is not None
        memory = condition.transpose(1, 2)
        positions = torch.arange(memory.shape[1], device=memory.device)[None]
        memory = memory + sinusoidal(positions, memory.shape[-1]).to(memory.dtype)
        return self.transformer(x.transpose(1, 2), memory=memory).transpose(1, 2)


BOTTLENECKS: dict[BottleneckName, type[nn.Module]] = {
    "none": NoBottleneck,
    "lstm": LSTMBottleneck,
    "transformer": TransformerBottleneck,
    "cross_attention": CrossAttentionBottleneck,
}


class DiffusionUNet(nn.Module):
    """The noise in x, as far as the network can tell.

    Shape: x [batch, channels, time], steps an int or int64 [batch], condition [batch,
    condition_dimension, frames] -> [batch, channels, time]. Norms and the bottleneck see the whole
    sound, so a piece of it does not give the same as the piece cut from the result.
    Raises: ShapeError for a condition that is missing, or of more than twice the frames of the
    deepest level.

    >>> unet = DiffusionUNet(UNetConfig(hidden=4, depth=2, condition_dimension=3))
    >>> unet(torch.zeros(1, 1, 100), 999, torch.zeros(1, 3, 5)).shape
    torch.Size([1, 1, 100])
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        inner = [config.channels, *widths]
        pairs = list(zip(inner, widths, strict=False))
        self.encoder = nn.ModuleList(EncoderLevel(low, high, config) for low, high in pairs)
        self.decoder = nn.ModuleList(
            DecoderLevel(high, low, config) for low, high in reversed(pairs)
        )
        told = widths if config.step_at_every_level else widths[:1]
        self.step_embeddings = nn.ModuleList(nn.Embedding(config.steps, width) for width in told)
        self.condition: nn.Conv1d | None = None
        if config.condition_dimension is not None:
            self.condition = nn.Conv1d(config.condition_dimension, widths[-1], 1)
        self.bottleneck = BOTTLENECKS[config.bottleneck](widths[-1])

    def forward(self, x: Tensor, steps: Tensor | int, condition: Tensor | None = None) -> Tensor:
        length = x.shape[-1]
        told = torch.as_tensor(steps, device=x.device).expand(len(x))
        skips = []
        for level, encoder in enumerate(self.encoder):
            x = encoder(x)
            if level < len(self.step_embeddings):
                x = x + self.step_embeddings[level](told)[:, :, None]
            skips.append(x)
        latents = self._latents(condition)
        if latents is not None and self.config.bottleneck != "cross_attention":
            _check_frames(latents, x)
            x = x + F.interpolate(latents, size=x.shape[-1])  # repeats the nearest
            skips[-1] = x
        x = self.bottleneck(x, latents)
        for decoder in self.decoder:
            skip = skips.pop()
            x = decoder(x[..., : skip.shape[-1]] + skip)
        return x[..., :length]

    def _latents(self, condition: Tensor | None) -> Tensor | None:
        """The condition in the deepest level's channels, at its own rate."""
        if (condition is None) != (self.condition is None):
            raise ShapeError(
                "this network takes the latents of a codec"
                if condition is None
                else "this network takes no latents"
            )
        return None if self.condition is None else self.condition(condition)


def _check_frames(latents: Tensor, x: Tensor) -> None:
    if latents.shape[-1] > 2 * x.shape[-1]:
        raise ShapeError(
            f"{latents.shape[-1]} frames of latents are more than twice the {x.shape[-1]} frames "
            "of the deepest level: they belong to a longer sound"
        )


def _norm(channels: int, config: UNetConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.norm_groups, channels, NORM_EPSILON)


def _residual_blocks(channels: int, config: UNetConfig) -> nn.Sequential:
    return nn.Sequential(
        *(ResidualBlock(channels, 2**index, config) for index in range(config.res_blocks))
    )


def _padding(config: UNetConfig) -> int:
    return (config.kernel - config.stride) // 2
