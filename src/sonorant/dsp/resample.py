"""Sinc resampling as published in julius (0.2.8), computed as a few matrix products.

With the rates reduced to old : new, output i stands at input time i * old / new and is a weighted
sum of the inputs k around it:

    y[i] = sum_k x[k] h(t) / sum_k h(t)    t = (k / old - i / new) * min(old, new) * rolloff
    h(t) = sinc(t) cos(pi t / (2 zeros))^2    for |t| < zeros, else 0

Beyond its ends the signal repeats its first and last sample. The weights come back after `new`
outputs, so the outputs of many periods are one matrix product: rows are blocks of the input, one
after the other in memory (nothing is copied), columns are neighbouring outputs, which share most of
their inputs. The weights of an integer ratio are grouped the same way over several periods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from sonorant.errors import ConfigError, ShapeError

COLUMNS = 32  # outputs computed by one matrix product: wide enough for speed, few zero weights
MAX_KEPT_WEIGHTS = 2**22  # per ratio; 16 MB in float32
MAX_PERIOD = 2**20  # of reduced rates, and of inputs that one output depends on


@dataclass(frozen=True)
class Ratio:
    """A conversion in reduced rates, and where its weights lie."""

    old: int
    new: int
    zeros: int
    rolloff: float

    @classmethod
    def of(cls, old_rate: int, new_rate: int, zeros: int, rolloff: float) -> Ratio:
        if not (isinstance(old_rate, int) and isinstance(new_rate, int)):
            raise ConfigError(f"rates must be whole numbers, got {old_rate} and {new_rate}")
        if min(old_rate, new_rate, zeros) < 1 or not 0 < rolloff <= 1:
            raise ConfigError(
                f"cannot resample {old_rate} to {new_rate} Hz with zeros={zeros}, rolloff={rolloff}"
            )
        divisor = math.gcd(old_rate, new_rate)
        ratio = cls(old_rate // divisor, new_rate // divisor, zeros, rolloff)
        if max(ratio.old, ratio.new, 2 * ratio.width) > MAX_PERIOD:
            raise ConfigError(
                f"{old_rate} : {new_rate} is too odd or too far a ratio to resample; take rates "
                "with a common divisor, e.g. Fraction(old, new).limit_denominator(1000)"
            )
        return ratio

    @property
    def bandwidth(self) -> float:
        """Zero crossings of the sinc in one period."""
        return min(self.old, self.new) * self.rolloff

    @property
    def width(self) -> int:
        """Inputs that count on either side of an output."""
        return math.ceil(self.zeros * self.old / self.bandwidth)

    @property
    def periods(self) -> int:
        """Periods per block, so many that the inputs of one matrix product fit into one block.

        Short periods also fill all columns of every product.
        """
        inputs = 2 * self.width + 1 + math.ceil(COLUMNS * self.old / self.new)
        periods = math.ceil(inputs / self.old)
        step = COLUMNS // math.gcd(COLUMNS, self.new) if self.new < COLUMNS else 1
        return math.ceil(periods / step) * step

    @property
    def block_inputs(self) -> int:
        return self.periods * self.old

    @property
    def block_outputs(self) -> int:
        return self.periods * self.new

    def groups(self) -> list[tuple[range, range]]:
        """The outputs of a block in groups of at most COLUMNS, each with all inputs it needs."""
        count = math.ceil(self.block_outputs / COLUMNS)
        size = math.ceil(self.block_outputs / count)
        groups = []
        for start in range(0, self.block_outputs, size):
            outputs = range(start, min(start + size, self.block_outputs))
            first, last = (i * self.old // self.new for i in (outputs[0], outputs[-1]))
            groups.append((outputs, range(first - self.width, last + self.width + 1)))
        return groups

    def longest(self, samples: int) -> int:
        """Outputs, counting the last one that still begins within `samples` inputs."""
        return -(-samples * self.new // self.old)

    def weights(self, outputs: range, inputs: range, dtype: torch.dtype) -> Tensor:
        """Weights `[inputs, outputs]`; input 0 is at the time of output 0.

        The published weights are made in float32, with errors near 1e-5 for ratios such as
        44100 : 32000; ours are made in the same order, to have the same ones.
        """
        dtype = torch.promote_types(dtype, torch.float32)
        i, k = torch.tensor(outputs), torch.tensor(inputs)[:, None]
        period = i // self.new  # times are taken within the first period, where they are exact
        i, k = i - period * self.new, k - period * self.old
        t = (k.to(dtype) / self.old - (i.double() / self.new).to(dtype)) * self.bandwidth
        t = t.clamp(-self.zeros, self.zeros) * math.pi
        sinc = torch.where(t == 0, 1, torch.sin(t) / t)
        weights = sinc * torch.cos(t / self.zeros / 2).square()
        return weights / weights.sum(dim=0)


def resample(
    x: Tensor,
    old_rate: int,
    new_rate: int,
    zeros: int = 24,
    rolloff: float = 0.945,
    output_length: int | None = None,
    full: bool = False,
) -> Tensor:
    """Signal `[..., time]` at another rate, `[..., floor(time * new_rate / old_rate)]`.

    zeros: zero crossings of the sinc on either side. rolloff: cut-off as a part of the lower
    Nyquist frequency. full: round the length up instead. output_length: any length up to that.
    Lengths are exact; the published package rounds them through float32 beyond 2^24 samples.
    Differentiable; the weights are kept from call to call.
    Raises: ConfigError for a ratio that cannot be computed, ShapeError for an empty signal or an
    impossible output_length.

    >>> resample(torch.zeros(2, 1, 44100), 44100, 24000).shape
    torch.Size([2, 1, 24000])
    """
    ratio = Ratio.of(old_rate, new_rate, zeros, rolloff)
    samples = x.shape[-1]
    length = ratio.longest(samples) if full else samples * ratio.new // ratio.old
    if output_length is not None:
        if not 0 <= output_length <= ratio.longest(samples):
            raise ShapeError(
                f"output_length must be from 0 to {ratio.longest(samples)}, got {output_length}"
            )
        length = output_length
    if not samples:
        raise ShapeError("cannot resample an empty signal")
    if ratio.old == ratio.new:
        return x[..., :length]
    return _outputs(x, ratio.width, ratio, range(length))


def resampling_kernel(
    old_rate: int, new_rate: int, zeros: int = 24, rolloff: float = 0.945
) -> Tensor:
    """The published filters `[new, 2 * width + old]` of the reduced rates, float32.

    Row i holds the weights of output i for the inputs from -width on.

    >>> resampling_kernel(4, 5).shape
    torch.Size([5, 56])
    """
    ratio = Ratio.of(old_rate, new_rate, zeros, rolloff)
    inputs = range(-ratio.width, ratio.width + ratio.old)
    return ratio.weights(range(ratio.new), inputs, torch.float32).T


class Resampler(nn.Module):
    """`resample` between two fixed rates, as a module.

    >>> Resampler(48000, 24000)(torch.zeros(1, 1, 4800)).shape
    torch.Size([1, 1, 2400])
    """

    def __init__(
        self, old_rate: int, new_rate: int, zeros: int = 24, rolloff: float = 0.945
    ) -> None:
        super().__init__()
        Ratio.of(old_rate, new_rate, zeros, rolloff)
        self.old_rate, self.new_rate = old_rate, new_rate
        self.zeros, self.rolloff = zeros, rolloff

    def forward(self, x: Tensor, output_length: int | None = None, full: bool = False) -> Tensor:
        return resample(
            x, self.old_rate, self.new_rate, self.zeros, self.rolloff, output_length, full
        )

    def stream(self) -> ResamplerStream:
        """The same conversion for a signal that comes in chunks."""
        return ResamplerStream(self.old_rate, self.new_rate, self.zeros, self.rolloff)


class ResamplerStream:
    """`resample` of a signal that comes in chunks of any length; the outputs are the same.

    Latency: `latency` input samples, the half width of the filter. Memory is bounded.

    >>> stream = ResamplerStream(48000, 24000)
    >>> first, rest = stream.push(torch.zeros(1, 1000)), stream.flush()
    >>> first.shape[-1] + rest.shape[-1]
    500
    """

    def __init__(
        self, old_rate: int, new_rate: int, zeros: int = 24, rolloff: float = 0.945
    ) -> None:
        self._ratio = Ratio.of(old_rate, new_rate, zeros, rolloff)
        self.latency = 0 if self._ratio.old == self._ratio.new else self._ratio.width
        self._reset()

    def _reset(self) -> None:
        self._waiting: Tensor | None = None  # inputs from `start - width` on
        self._start = 0  # first input of a block, the one that the next output belongs to
        self._received = 0
        self._made = 0

    def push(self, chunk: Tensor) -> Tensor:
        """The outputs `[..., new]` that a chunk `[..., time]` makes final."""
        ratio = self._ratio
        if self._waiting is None:
            if not chunk.shape[-1]:
                return chunk
            self._waiting = chunk[..., :1].expand(*chunk.shape[:-1], self.latency)
        self._waiting = torch.cat([self._waiting, chunk], dim=-1)
        self._received += chunk.shape[-1]
        return self._take(max(0, ratio.longest(self._received - self.latency)))

    def flush(self, full: bool = False) -> Tensor:
        """The remaining outputs; full: round the length up. The next push begins a new signal."""
        if self._waiting is None:
            return torch.zeros(0)
        ratio = self._ratio
        length = self._received * ratio.new // ratio.old
        rest = self._take(ratio.longest(self._received) if full else length)
        self._reset()
        return rest

    def _take(self, until: int) -> Tensor:
        """Outputs up to number `until`; forgets the inputs that no later output needs."""
        ratio, waiting = self._ratio, self._waiting
        assert waiting is not None
        until = max(until, self._made)
        first = self._start // ratio.old * ratio.new
        wanted = range(self._made - first, until - first)
        if ratio.old == ratio.new:
            taken = waiting[..., wanted.start : wanted.stop]
        else:
            taken = _outputs(waiting, 0, ratio, wanted)
        self._made = until
        blocks = (until - first) // ratio.block_outputs
        self._start += blocks * ratio.block_inputs
        self._waiting = waiting[..., blocks * ratio.block_inputs :].clone()
        return taken


def _outputs(x: Tensor, left: int, ratio: Ratio, wanted: range) -> Tensor:
    """Outputs `[..., wanted]` of x `[..., time]`; `wanted` counts from the output at time 0.

    left: how often the first sample is to be repeated before x, so that time -width comes first.
    """
    if not wanted:
        return x[..., :0]
    blocks = -(-wanted.stop // ratio.block_outputs)
    windows = _blocks_of(x.reshape(-1, x.shape[-1]), left, blocks, ratio)
    kept = _kept_weights(ratio, x.dtype, x.device)
    products = []
    first = 0
    for index, (outputs, inputs) in enumerate(ratio.groups()):
        if blocks == 1 and outputs.stop <= wanted.start:
            first = outputs.stop
        elif blocks > 1 or outputs.start < wanted.stop:
            weights = kept[index] if kept else ratio.weights(outputs, inputs, x.dtype).to(x)
            start = inputs.start + ratio.width
            products.append(windows[:, start : start + len(inputs)] @ weights)
    y = torch.cat(products, dim=1).reshape(*x.shape[:-1], -1)
    return y[..., wanted.start - first : wanted.stop - first]


def _blocks_of(x: Tensor, left: int, blocks: int, ratio: Ratio) -> Tensor:
    """Views `[rows * (blocks + 1), 2 * block_inputs]`: every block of every row, and the next one.

    Every row gets one more block than is wanted, since the products of the last one reach into it;
    the outputs of that additional block mix two rows and are dropped with the end of the row.
    """
    size = ratio.block_inputs
    stored = (blocks + 1) * size
    memory = x.new_zeros(len(x) * stored + size)
    rows = memory[:-size].view(len(x), stored)
    samples = min(x.shape[1], stored - left)
    rows[:, :left] = x[:, :1]
    rows[:, left : left + samples] = x[:, :samples]
    rows[:, left + samples :] = x[:, -1:]
    return memory.unfold(0, 2 * size, size)


@lru_cache(maxsize=16)
def _kept_weights(ratio: Ratio, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """The weights of all groups, made once; empty for ratios whose weights would fill memory."""
    groups = ratio.groups()
    if ratio.block_outputs * len(groups[0][1]) > MAX_KEPT_WEIGHTS:
        return []
    with torch.inference_mode(False):  # so that the kept weights can be used in training
        return [ratio.weights(*group, dtype).to(device, dtype) for group in groups]
