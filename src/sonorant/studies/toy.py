"""The toy problem of Adam's convergence proof: sparse, noisy gradients at six scales.

Source: A Simple Convergence Proof of Adam and Adagrad (arXiv 2003.02395), the experiments' toy
problem. In each of six coordinates, with p = 10^-1 .. 10^-6 and Q = 1 with chance p, else 0,

    f(x) = (1 - Q) h(x - 1) + Q / sqrt(p) h(x + 1),

h being Huber's function with threshold 1. Each coordinate of the gradient has a variance near 1,
and rare, large values where p is small.

The recursion is that of `sonorant.optim.adam.Adam`, here in numpy for many settings at once: a
million steps of a few hundred numbers are bound by the calls and not by the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CHANCES: Array = 10.0 ** -np.arange(1.0, 7.0)
EPS = 1e-8
_BLOCK = 1000  # steps whose random numbers and step sizes are drawn together
_EVERY = 10  # steps between two looks at the gradient of the whole


@dataclass(frozen=True)
class Settings:
    """Several ways to run Adam, side by side. lr, beta1, beta2: [settings]."""

    lr: Array
    beta1: Array
    beta2: Array

    def step_sizes(self, first: int, count: int) -> Array:
        """alpha_n [count, settings] of the paper's Adam for n = first, first + 1, ..."""
        steps = np.arange(first, first + count)[:, None]
        root = np.sqrt(np.expm1(steps * np.log(self.beta2)) / (self.beta2 - 1))
        return self.lr * (1 - self.beta1) * root

    def iterate_weights(self, first: int, count: int, steps: int) -> Array:
        """What iterates x_j count for [count, settings], j = first, ...: 1 - beta1^(steps - j)."""
        left = steps - np.arange(first, first + count)[:, None]
        return 1 - self.beta1**left


@dataclass(frozen=True)
class Outcome:
    """iterates: [settings, seeds, 6], the last ones. gradient_squares: [settings, seeds], the mean
    of |grad F|^2 over the run, with the weights of the theorems."""

    iterates: Array
    gradient_squares: Array


def full_gradient(x: Array) -> Array:
    """grad F at x [..., 6], exactly."""
    low, high = np.clip(x - 1, -1, 1), np.clip(x + 1, -1, 1)
    return (1 - CHANCES) * low + np.sqrt(CHANCES) * high


def run(
    settings: Settings,
    start: Array,
    steps: int,
    seed: int,
    progress: Callable[[int], object] = lambda steps: None,
) -> Outcome:
    """All settings on the same random numbers. start: [settings, seeds, 6] or what fits it."""
    random = np.random.default_rng(seed)
    shape = np.broadcast_shapes(start.shape, (len(settings.lr), 1, 1))
    adam = _Adam(settings, shape)
    x = np.broadcast_to(start, shape).copy()
    squares, weights = np.zeros(shape), np.zeros((len(settings.lr), 1))
    for first in range(0, steps, _BLOCK):
        count = min(_BLOCK, steps - first)
        rare = (random.random((count, *shape[1:])) < CHANCES).astype(np.float64)
        common, weighted = 1 - rare, rare / np.sqrt(CHANCES)
        sizes = settings.step_sizes(first + 1, count)[..., None, None]
        looks = settings.iterate_weights(first, count, steps)[..., None]
        for index in range(count):
            if (first + index) % _EVERY == 0:
                squares += looks[index][..., None] * np.square(full_gradient(x))
                weights += looks[index]
            adam.step(x, common[index], weighted[index], sizes[index])
        progress(count)
    return Outcome(x, squares.sum(-1) / weights)


class _Adam:
    """One step for all settings and seeds, without making new arrays."""

    def __init__(self, settings: Settings, shape: tuple[int, ...]) -> None:
        self._beta1, self._beta2 = (b[:, None, None] for b in (settings.beta1, settings.beta2))
        self._momentum = bool(settings.beta1.any())
        self._sum, self._square_sum = np.zeros(shape), np.zeros(shape)
        self._gradient, self._scratch = np.zeros(shape), np.zeros(shape)

    def step(self, x: Array, common: Array, weighted: Array, sizes: Array) -> None:
        gradient, scratch = self._gradient, self._scratch
        _huber_slope(x, -1, out=gradient)
        gradient *= common
        _huber_slope(x, 1, out=scratch)
        scratch *= weighted
        gradient += scratch
        self._square_sum *= self._beta2
        np.multiply(gradient, gradient, out=scratch)
        self._square_sum += scratch
        if self._momentum:
            self._sum *= self._beta1
            self._sum += gradient
            gradient = self._sum
        np.add(self._square_sum, EPS, out=scratch)
        np.sqrt(scratch, out=scratch)
        np.divide(gradient, scratch, out=scratch)
        scratch *= sizes
        x -= scratch


def _huber_slope(x: Array, offset: float, out: Array) -> None:
    """h'(x + offset)."""
    np.add(x, offset, out=out)
    np.minimum(out, 1, out=out)
    np.maximum(out, -1, out=out)
