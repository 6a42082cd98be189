"""Join overlapping pieces of sound with triangular weights.

Source: EnCodec on segments (arXiv 2210.13438, section 3.2; weights as in the published package).
Every sample is the mean of the pieces that hold it, each weighted by how far inside it stands.
Demucs weights the same way (arXiv 1911.13254, its package), up to a constant that cancels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sonorant.errors import ShapeError


def triangular_weights(
    length: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """Weights `[length]` that rise to the middle and fall again, never zero.

    >>> triangular_weights(3).tolist()
    [0.25, 0.5, 0.25]
    """
    positions = torch.linspace(0, 1, length + 2, dtype=dtype, device=device)[1:-1]
    return 0.5 - (positions - 0.5).abs()


def overlap_add(frames: Iterable[Tensor], stride: int) -> Tensor:
    """One signal `[..., time]` of pieces `[..., samples]` that start every `stride` samples.

    The length of the first piece sets the weights; shorter pieces use the beginning of them.
    Raises: ShapeError if there is no piece, one is longer than the first, or a gap is left.

    >>> overlap_add([torch.ones(1, 4), torch.ones(1, 4), torch.ones(1, 3)], stride=3)
    tensor([[1., 1., 1., 1., 1., 1., 1., 1., 1.]])
    """
    adder = OverlapAdder(stride)
    pieces = [adder.push(frame) for frame in frames]
    return torch.cat([*pieces, adder.flush()], dim=-1)


class OverlapAdder:
    """`overlap_add` of pieces that come one by one; keeps no more than one piece.

    weights `[samples]`: in place of triangular ones as long as the first piece; no piece may be
    longer.

    >>> adder = OverlapAdder(stride=3)
    >>> adder.push(torch.ones(1, 4)).shape, adder.push(torch.ones(1, 4)).shape, adder.flush().shape
    (torch.Size([1, 0]), torch.Size([1, 3]), torch.Size([1, 4]))
    """

    def __init__(self, stride: int, weights: Tensor | None = None) -> None:
        if stride < 1:
            raise ShapeError(f"pieces must start at least one sample apart, got stride={stride}")
        self.stride = stride
        self._given = weights
        self._reset()

    def _reset(self) -> None:
        self._weights: Tensor | None = None
        self._settled = True  # whether all samples before the next piece have been handed out
        self._sum = torch.zeros(0)  # weighted samples from the start of the last piece on
        self._sum_weights = torch.zeros(0)

    def push(self, frame: Tensor) -> Tensor:
        """Add a piece `[..., samples]`; returns the samples `[..., stride]` before it, now final.

        The first piece makes none final.
        """
        samples = frame.shape[-1]
        if self._weights is None:
            self._weights = self._given
            if self._weights is None:
                self._weights = triangular_weights(samples, frame.dtype, frame.device)
            self._sum, self._sum_weights = frame[..., :0], self._weights[:0]
        final = self._sum[..., :0] if self._settled else self._take(self.stride)
        self._settled = False
        if samples > len(self._weights):
            raise ShapeError(
                f"a piece of {samples} samples does not fit the weights of {len(self._weights)}, "
                "the length of the first one; only shorter ones may follow"
            )
        weights = self._weights[:samples]
        self._sum = _add(self._sum, frame * weights)
        self._sum_weights = _add(self._sum_weights, weights)
        return final

    def settle(self) -> Tensor:
        """The samples `[..., stride]` before the next piece, without waiting for it.

        None of them if the last piece is shorter than that, for then it may well be the last.
        """
        if self._settled or self._sum.shape[-1] < self.stride:
            return self._sum[..., :0]
        self._settled = True
        return self._take(self.stride)

    def flush(self) -> Tensor:
        """The rest of the signal. The next push begins a new one."""
        if self._weights is None:
            raise ShapeError("there is no piece to join")
        rest = self._take(self._sum.shape[-1])
        self._reset()
        return rest

    def _take(self, samples: int) -> Tensor:
        if samples > self._sum.shape[-1]:
            raise ShapeError(
                f"pieces start {samples} samples apart, but the last one ends after "
                f"{self._sum.shape[-1]}: a gap would be left"
            )
        taken = self._sum[..., :samples] / self._sum_weights[:samples]
        self._sum = self._sum[..., samples:]
        self._sum_weights = self._sum_weights[samples:]
        return taken


def _add(a: Tensor, b: Tensor) -> Tensor:
    """Sum of two signals that start together, as long as the longer one."""
    short, long = (a, b) if a.shape[-1] < b.shape[-1] else (b, a)
    shared = short.shape[-1]
    return torch.cat([short + long[..., :shared], long[..., shared:]], dim=-1)
