"""Functions that give the same bits on every machine, for numbers that two machines must agree on.

Libraries round exp, erf and cos differently, and sums depend on their order. IEEE 754 leaves no
freedom in one addition, multiplication, division, square root or rounding of float64 values. What
is built of these alone, one array operation after the other, is therefore the same everywhere; and
sums of whole numbers below 2^53 are exact in any order. Accuracy, about 1e-8, is not the point.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

LOG_2 = 0.6931471805599453
TURN = 6.283185307179586
SMALLEST_EXPONENT = -60


def polynomial(x: Floats, coefficients: list[float]) -> Floats:
    """Value of a polynomial by Horner's scheme; the highest coefficient comes first.

    >>> polynomial(np.array([2.0]), [1.0, 0.0, 3.0])
    array([7.])
    """
    result = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result *= x
        result += coefficient
    return result


def exact_exp(x: Floats) -> Floats:
    """exp of numbers that are not above 0; below -41 it is that of -41."""
    x = np.maximum(x, SMALLEST_EXPONENT * LOG_2)
    exponent = np.floor(x / LOG_2 + 0.5)
    # Taylor's series on |r| <= log(2) / 2: the next term is below 5e-9.
    rest = polynomial(x - exponent * LOG_2, [1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1, 1])
    powers = np.array([2.0**k for k in range(SMALLEST_EXPONENT, 1)])
    return rest * powers[exponent.astype(np.int64) - SMALLEST_EXPONENT]


def exact_normal(x: Floats) -> Floats:
    """Distribution function of the normal distribution.

    Abramowitz and Stegun, formula 7.1.26: within 1.5e-7.
    """
    distance = np.abs(x) * 0.7071067811865476
    t = 1 / (1 + 0.3275911 * distance)
    coefficients = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592, 0.0]
    above = 0.5 * polynomial(t, coefficients) * exact_exp(-distance * distance)
    return np.where(x > 0, 1 - above, above)


def exact_cosine(turns: Floats) -> Floats:
    """Cosine of an angle given in turns."""
    turns = np.abs(turns - np.floor(turns + 0.5))  # 0 to 1/2
    beyond = turns > 0.25
    squared = np.where(beyond, 0.5 - turns, turns) * TURN
    squared = squared * squared
    # Taylor's series on 0 to pi / 2: the next term is below 1e-8.
    series = [1 / 479001600, -1 / 3628800, 1 / 40320, -1 / 720, 1 / 24, -0.5, 1.0]
    value = polynomial(squared, series)
    return np.where(beyond, -value, value)


def exact_frequencies(count: int, max_period: float) -> Floats:
    """Turns per position: 1 / (2 pi max_period^(i / (count - 1))), for i below `count`."""
    log_period = exact_log(max_period)
    return exact_exp(-log_period * np.arange(count) / (count - 1)) / TURN


def exact_log(x: float) -> float:
    """Natural logarithm of a number above 0.

    >>> round(exact_log(10000.0), 6)
    9.21034
    """
    mantissa, exponent = math.frexp(x)
    ratio = (mantissa - 1) / (mantissa + 1)
    power, total = ratio, 0.0
    for odd in range(1, 41, 2):  # log(m) = 2 artanh(ratio), and |ratio| <= 1/3
        total += power / odd
        power *= ratio * ratio
    return 2 * total + exponent * LOG_2


@functools.cache
def exp_table(steps_per_unit: int, scale: float) -> Integers:
    """Entry i is exp(-i / steps_per_unit) * scale, rounded; the last entry is the first 0."""
    steps = np.arange(40 * steps_per_unit) / steps_per_unit
    values = np.floor(exact_exp(-steps) * scale + 0.5).astype(np.int64)
    return values[: int(np.argmin(values)) + 1]


@functools.cache
def gelu_table(steps_per_unit: int, reach: int) -> Floats:
    """x * normal(x) in whole steps, for x from -reach to reach in steps."""
    steps = np.arange(-reach * steps_per_unit, reach * steps_per_unit + 1).astype(np.float64)
    return np.floor(steps * exact_normal(steps / steps_per_unit) + 0.5)
