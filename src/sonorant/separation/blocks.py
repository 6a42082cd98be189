"""What all Demucs models are made of beside plain convolutions.

Sources: Demucs (arXiv 1911.13254, section 3) for the LSTM at the bottom and the scaling of initial
weights; Hybrid Demucs (arXiv 2111.03600, section 4) for the residual branches with their LSTM on
frames and local attention, and for the embedding of frequencies; numbers as in the published
package (demucs 4.1.0). Attributes have the published names, in the published order.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.errors import ConfigError, ShapeError
from sonorant.nn.conv import uses_matrix_form
from sonorant.separation import branch_products

Convolution = nn.Conv1d | nn.Conv2d | nn.ConvTranspose1d | nn.ConvTranspose2d

WIDE_TYPES = (torch.float32, torch.float64)  # whose sums need no special care
CACHED = 2**18  # scores that are computed at once, 1 MB
SELF_SCORE = -100.0  # of a step with itself, which local attention leaves out
FIRST_DECAY = -2.0  # bias of the decays: every head begins with a wide view (published package)


def gelu_of(x: Tensor) -> Tensor:
    """GELU of values that nobody else has a use for: without gradients, written into x."""
    if torch.is_grad_enabled():
        return F.gelu(x)
    result: Tensor = torch.ops.aten.gelu_(x)
    return result


def center_trim(x: Tensor, length: int) -> Tensor:
    """The middle `length` steps of x [..., time]; the odd one too many goes on the right.

    Raises: ShapeError if x is shorter than that.

    >>> center_trim(torch.arange(6), 3).tolist()
    [1, 2, 3]
    """
    excess = x.shape[-1] - length
    if excess < 0:
        raise ShapeError(f"cannot trim {x.shape[-1]} steps to {length}")
    return x[..., excess // 2 : excess // 2 + length]


def pad1d(
    x: Tensor,
    left: int,
    right: int,
    mode: Literal["constant", "reflect"] = "constant",
    value: float = 0.0,
) -> Tensor:
    """Pad x [batch, channels, time] in time; reflection also works on very short sounds.

    A sound too short to be reflected first gets as many zeros as it lacks, on the right as far as
    the right padding reaches, then on the left; reflection adds the rest.

    >>> pad1d(torch.ones(1, 1, 2), 1, 3, "reflect").tolist()
    [[[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]]]
    """
    if mode != "reflect":
        return F.pad(x, (left, right), mode, value)
    missing = max(0, max(left, right) - x.shape[-1] + 1)
    zeros_right = min(right, missing)
    zeros_left = missing - zeros_right
    if missing:
        x = F.pad(x, (zeros_left, zeros_right))
    return F.pad(x, (left - zeros_left, right - zeros_right), "reflect")


def mono_level(mix: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over time, each [batch, 1, 1], of the mean of the channels.

    Shape: mix [batch, channels, time].
    """
    mono = mix.mean(dim=1, keepdim=True)
    correction = min(1, mono.shape[-1] - 1)  # the deviation of a single sample is 0, not NaN
    std = mono.std(dim=-1, keepdim=True, correction=correction)
    return mono.mean(dim=-1, keepdim=True), std


def covered_length(
    samples: int, depth: int, kernel_size: int, stride: int, context: int = 1
) -> int:
    """The shortest length of at least `samples` at which no layer of a U-Net leaves out a step.

    The U-Net has `depth` unpadded convolutions and as many transposed ones; before each of the
    latter, an unpadded convolution over `context` steps shortens the sound.

    >>> covered_length(101, depth=2, kernel_size=8, stride=4)
    116
    """
    length = samples
    for _ in range(depth):
        length = max(1, math.ceil((length - kernel_size) / stride) + 1) + context - 1
    for _ in range(depth):
        length = (length - 1) * stride + kernel_size
    return length


@torch.no_grad()
def rescale_convolutions(module: nn.Module, reference: float) -> None:
    """Bring the initial weights of every convolution below `module` closer to one scale.

    Weight and bias are divided by sqrt(std(weight) / reference).
    Source: arXiv 1911.13254, section 3.3.
    """
    for layer in module.modules():
        if isinstance(layer, Convolution):
            scale = (layer.weight.std() / reference).sqrt()
            layer.weight /= scale
            if layer.bias is not None:
                layer.bias /= scale


class ChannelScale(nn.Module):
    """A learned factor per channel, small at first. Shape: [batch, channels, time].

    Source: LayerScale of CaiT (arXiv 2103.17239, section 2.1).
    """

    def __init__(self, channels: int, initial: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), float(initial)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None]


class BLSTM(nn.Module):
    """LSTM in both directions, then a linear layer back to `channels`.

    With `max_steps`, a longer sound is seen in frames of that many steps, which overlap by half;
    each frame gives its middle half, the first and the last also their outer quarter.
    Shape: x [batch, channels, time] -> the same. skip: add x to the result.
    """

    def __init__(
        self, channels: int, layers: int = 2, max_steps: int | None = 200, skip: bool = True
    ) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers, bidirectional=True)
        self.linear = nn.Linear(2 * channels, channels)
        self.max_steps = max_steps
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        if self.max_steps is not None and x.shape[-1] > self.max_steps:
            y = self._in_frames(x, self.max_steps)
        else:
            y = self._whole(x)
        return x + y if self.skip else y

    def _whole(self, x: Tensor) -> Tensor:
        steps, _ = self.lstm(x.permute(2, 0, 1))
        result: Tensor = self.linear(steps).permute(1, 2, 0)
        return result

    def _in_frames(self, x: Tensor, width: int) -> Tensor:
        batch, channels, steps = x.shape
        stride, cut = width // 2, width // 4
        count = math.ceil(steps / stride)
        padded = F.pad(x, (0, (count - 1) * stride + width - steps))
        frames = padded.unfold(-1, width, stride).transpose(1, 2)  # [batch, count, channels, width]
        y = self._whole(frames.reshape(-1, channels, width)).view(batch, count, channels, width)
        parts = [y[:, 0, :, : width - cut]]
        parts += [y[:, index, :, cut : width - cut] for index in range(1, count - 1)]
        parts += [y[:, -1, :, cut:]]
        return torch.cat(parts, dim=-1)[..., :steps]


class LocalState(nn.Module):
    """Attention that sees the neighbourhood of each step; how far, it decides from the content.

    The score of step t for step s falls by a learned sum of decays times |t - s|; a step does not
    attend to itself. frequencies: also score t - s by cosines of the periods 1 to that many.
    Shape: x [batch, channels, time] -> x plus what was attended to.
    """

    def __init__(
        self, channels: int, heads: int = 4, decays: int = 4, frequencies: int = 0
    ) -> None:
        super().__init__()
        self.heads, self.decays, self.frequencies = heads, decays, frequencies
        self.content = nn.Conv1d(channels, channels, 1)
        self.query = nn.Conv1d(channels, channels, 1)
        self.key = nn.Conv1d(channels, channels, 1)
        if frequencies:
            self.query_freqs = nn.Conv1d(channels, heads * frequencies, 1)
        if decays:
            self.query_decay = nn.Conv1d(channels, heads * decays, 1)
            with torch.no_grad():
                self.query_decay.weight *= 0.01
                self.query_decay.bias.fill_(FIRST_DECAY)  # type: ignore[union-attr]
        self.proj = nn.Conv1d(channels + heads * frequencies, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query = self._by_head(self.query(x)).transpose(2, 3) / math.sqrt(x.shape[1] // self.heads)
        key, content = self._by_head(self.key(x)), self._by_head(self.content(x)).transpose(2, 3)
        slope = self._slope(x)
        strengths = self._by_head(self.query_freqs(x)) if self.frequencies else None
        steps = torch.arange(x.shape[-1], device=x.device, dtype=x.dtype)
        results = []
        for part in self._query_blocks(x):
            distance = (steps[part, None] - steps).abs()
            scores = query[:, :, part] @ key  # [batch, heads, queries, keys]
            scores = torch.addcmul(scores, slope[:, :, part], distance, value=-1)
            if strengths is not None:
                waves = self._waves(distance)
                scores = scores + torch.einsum("bhpq,pqk->bhqk", strengths[..., part], waves)
            scores.diagonal(part.start, 2, 3).fill_(SELF_SCORE)
            weights = scores.softmax(dim=3)
            results.append(weights @ content)
            if strengths is not None:
                seen = torch.einsum("bhqk,pqk->bhqp", weights, waves) * math.sqrt(self.frequencies)
                results[-1] = torch.cat([results[-1], seen], dim=3)
        return x + self.proj(torch.cat(results, dim=2).transpose(2, 3).flatten(1, 2))

    def _slope(self, x: Tensor) -> Tensor:
        """By how much scores fall per step, [batch, heads, time, 1]."""
        if not self.decays:
            return x.new_zeros(x.shape[0], self.heads, x.shape[-1], 1)
        rates = torch.arange(1, self.decays + 1, device=x.device, dtype=x.dtype)
        decays = self._by_head(self.query_decay(x)).sigmoid() / 2
        return (rates @ decays)[..., None] / math.sqrt(self.decays)

    def _waves(self, distance: Tensor) -> Tensor:
        """Cosines of the periods 1, 2, ... [frequencies, queries, keys], divided by the root of
        their number."""
        periods = torch.arange(1, self.frequencies + 1, device=distance.device)[:, None, None]
        return torch.cos(2 * math.pi * distance / periods) / math.sqrt(self.frequencies)

    def _query_blocks(self, x: Tensor) -> list[slice]:
        """All queries at once, or without gradients on CPU as many as give scores for the cache."""
        steps = size = x.shape[-1]
        if uses_matrix_form(x):
            size = max(1, CACHED // max(1, x.shape[0] * self.heads * steps))
        return [slice(start, min(start + size, steps)) for start in range(0, steps, size)]

    def _by_head(self, x: Tensor) -> Tensor:
        """[batch, heads * width, time] -> [batch, heads, width, time]."""
        return x.unflatten(1, (self.heads, -1))


class DConvConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Residual branches of one layer.

    compress: how many times narrower they are than the layer. depth: how many there are; the n-th
    dilates its convolution by 2^n, or not at all if depth is negative. initial_scale: factor of
    what they add, before training. heads, decays: of the local attention.
    """

    compress: float = 4
    depth: int = 2
    initial_scale: float = 1e-4
    norm: bool = True
    attention: bool = False
    lstm: bool = False
    heads: int = 4
    decays: int = 4
    kernel_size: int = 3
    gelu: bool = True

    def __post_init__(self) -> None:
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"residual branches need an odd kernel_size, got {self.kernel_size}")


class DConv(nn.Module):
    """Residual branches: a dilated convolution to few channels, and back to all of them.

    Shape: x [batch, channels, time], or [batch, channels, bins, time] where every bin is a sound
    of its own, -> the same.
    overwrites: x, where no gradients are needed, for callers that have no more use for it.
    """

    def __init__(self, channels: int, config: DConvConfig, overwrites: bool = False) -> None:
        super().__init__()
        self.overwrites = overwrites
        self.layers = nn.ModuleList(
            Branch(channels, 2**index if config.depth > 0 else 1, config)
            for index in range(abs(config.depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        if uses_matrix_form(x) and x.dtype in WIDE_TYPES and x.numel():
            return self._as_products(x)
        if x.dim() == 4:
            return _by_bin(self, x)
        for layer in self.layers:
            x = x + layer(x)
        return x

    def _as_products(self, x: Tensor) -> Tensor:
        """The same several times faster at high rates, see `branch_products`."""
        source = (x if x.dim() == 4 else x[:, :, None]).contiguous()
        result = source if self.overwrites else torch.empty_like(source)
        for branch in self.layers:
            assert isinstance(branch, Branch)
            branch.add_to(source, result)
            source = result
        return source.view(x.shape)


class Branch(nn.Sequential):
    """One residual branch, without the sum. Shape: x [batch, channels, time] -> the same."""

    def __init__(self, channels: int, dilation: int, config: DConvConfig) -> None:
        hidden, kernel = int(channels / config.compress), config.kernel_size
        if not hidden:
            raise ConfigError(
                f"residual branches that are {config.compress:g} times narrower than {channels} "
                "channels have none; choose a smaller dconv.compress, or more channels"
            )
        padding = dilation * (kernel // 2)
        layers: list[nn.Module] = [
            nn.Conv1d(channels, hidden, kernel, dilation=dilation, padding=padding),
            nn.GroupNorm(1, hidden) if config.norm else nn.Identity(),
            nn.GELU() if config.gelu else nn.ReLU(),
        ]
        if config.lstm:
            layers.append(BLSTM(hidden))
        if config.attention:
            layers.append(LocalState(hidden, config.heads, config.decays))
        layers += [
            nn.Conv1d(hidden, 2 * channels, 1),
            nn.GroupNorm(1, 2 * channels) if config.norm else nn.Identity(),
            nn.GLU(dim=1),
            ChannelScale(channels, config.initial_scale),
        ]
        super().__init__(*layers)

    def add_to(self, x: Tensor, out: Tensor) -> None:
        """out = x + self(x), of x [batch, channels, bins, time]; out may be x."""
        narrow, norm, activation, *inner, widen, wide_norm, _, scale = self
        assert isinstance(narrow, nn.Conv1d)
        assert isinstance(widen, nn.Conv1d)
        assert isinstance(scale, ChannelScale)
        h = branch_products.narrow(x, narrow)
        if isinstance(norm, nn.GroupNorm):
            h = branch_products.normalize(h, norm)
        h = activation(h)
        for layer in inner:
            h = _by_bin(layer, h)
        branch_products.add_gated(x, h, widen, wide_norm, scale.scale, out)


def _by_bin(layer: nn.Module, x: Tensor) -> Tensor:
    """`layer` on every bin of x [batch, channels, bins, time]."""
    rows = layer(x.transpose(1, 2).flatten(0, 1))
    result: Tensor = rows.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
    return result


class ScaledEmbedding(nn.Module):
    """A table whose stored numbers are `scale` times smaller than what it gives, to learn faster.

    smooth: neighbouring rows begin close to each other, as a random walk.
    Shape: indices [...] -> [..., width].
    """

    def __init__(self, rows: int, width: int, scale: float = 10.0, smooth: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, width)
        self.scale = scale
        with torch.no_grad():
            if smooth:
                walk = self.embedding.weight.cumsum(dim=0)
                steps = torch.arange(1, rows + 1, dtype=walk.dtype)
                self.embedding.weight.copy_(walk / steps.sqrt()[:, None])
            self.embedding.weight /= scale

    @property
    def weight(self) -> Tensor:
        """All rows [rows, width], as given."""
        return self.embedding.weight * self.scale

    def forward(self, indices: Tensor) -> Tensor:
        result: Tensor = self.embedding(indices) * self.scale
        return result


def sinusoidal_grid(width: int, bins: int, frames: int, max_period: float = 10000.0) -> Tensor:
    """Position vectors of a spectrogram, fp32 [width, bins, frames]; width is a multiple of 4.

    The first half of the channels tells the frame, the second half the bin: sines and cosines in
    turn, of geometrically spaced frequencies.
    Raises: ShapeError for another width.
    Source: arXiv 2211.08553, section 3, after the published package (demucs 4.1.0).

    >>> sinusoidal_grid(8, bins=3, frames=5).shape
    torch.Size([8, 3, 5])
    """
    if width % 4:
        raise ShapeError(f"positions on a grid need a multiple of 4 channels, got {width}")
    half = width // 2
    rates = torch.exp(torch.arange(0, half, 2) * -(math.log(max_period) / half))[:, None]
    time, frequency = (
        torch.stack([(rates * at).sin(), (rates * at).cos()], dim=1).view(half, -1)
        for at in (torch.arange(frames), torch.arange(bins))
    )
    shape = (half, bins, frames)
    return torch.cat([time[:, None].expand(shape), frequency[:, :, None].expand(shape)])
