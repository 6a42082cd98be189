"""Averaged least mean squares with a constant step: the recursion and its exact risk.

Source: Averaged Least-Mean-Squares: Bias-Variance Trade-offs and Optimal Sampling Distributions
(arXiv 1412.0156). For samples (X, Y) and a step gamma,

    w_k = w_{k-1} - gamma (X'w_{k-1} - Y) X,      wbar = (w_0 + ... + w_{N-1}) / N.

With H = E XX', the best w* and the noise Y - X'w* of mean zero given X, the excess risk of wbar is
exactly bias (as if there were no noise) plus variance (as if the run began at w*). Both follow from
the second moment of w_k - w*, whose recursion is linear with the operator I - gamma T,
T A = HA + AH - gamma E[(X'AX) XX']. The operators act on symmetric matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sonorant.errors import ConfigError, ShapeError

_DENSE_DIMENSION = 60  # above it the operators' matrices are large, and power iteration is used
_POWER_ITERATIONS = 10_000
_POWER_TOLERANCE = 1e-13


@dataclass(frozen=True)
class Design:
    """A discrete distribution of inputs, and how it is sampled.

    points: [points, dimension]. probability: [points], adding up to 1.
    noise_variance: [points], E[(Y - X'w*)^2 | X].
    density: [points], how much more often than its probability a point is drawn; its samples are
        divided by the root of it, so that H and w* stay. Ones if not given. See the functions
        `norm_density`, `variance_density` and `leverage_density`.
    All are float64. Raises: ShapeError, and ConfigError for values that are no distribution or
    points that do not span the space (H must be invertible).
    """

    points: Tensor
    probability: Tensor
    noise_variance: Tensor
    density: Tensor | None = None

    def __post_init__(self) -> None:
        if self.points.ndim != 2 or len(self.points) == 0:
            raise ShapeError(f"points must be [points, dimension], got {list(self.points.shape)}")
        for name in ("points", "probability", "noise_variance", "density"):
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if name != "points" and tensor.shape != self.points.shape[:1]:
                raise ShapeError(
                    f"{name} must have one value for each of the {len(self.points)} points, "
                    f"got {list(tensor.shape)}"
                )
            if tensor.dtype != torch.float64 or not tensor.isfinite().all():
                raise ConfigError(f"{name} must be finite and float64, got {tensor.dtype}")
        if (self.noise_variance < 0).any():
            raise ConfigError("noise_variance must not be negative")
        for name, weights in (("probability", self.probability), ("density", self.drawn)):
            if (weights <= 0).any() or abs(float(weights.sum()) - 1) > 1e-9:
                raise ConfigError(f"{name}: the chances of the points must be above 0 and add to 1")
        spectrum = torch.linalg.eigvalsh(self.covariance)
        if spectrum[0] <= spectrum[-1] * 1e-13:
            raise ConfigError("the points do not span the space: leave out redundant coordinates")

    @cached_property
    def drawn(self) -> Tensor:
        """The chance [points] with which each point is drawn."""
        return self.probability if self.density is None else self.probability * self.density

    @cached_property
    def scaled_points(self) -> Tensor:
        """The points [points, dimension] as the recursion sees them."""
        return self.points if self.density is None else self.points / self.density.sqrt()[:, None]

    @cached_property
    def covariance(self) -> Tensor:
        """H [dimension, dimension], the same for all samplings."""
        return _moment(self.points, self.probability)

    @property
    def noise_covariance(self) -> Tensor:
        """E[noise^2 XX'] [dimension, dimension] of what is drawn, whose noise is scaled too."""
        return _moment(self.scaled_points, self.probability * self.noise_variance)

    def fourth_moment(self, matrix: Tensor) -> Tensor:
        """E[(X'AX) XX'] of what is drawn, for a symmetric A [dimension, dimension]."""
        x = self.scaled_points
        return _moment(x, self.drawn * ((x @ matrix) * x).sum(1))


def norm_density(design: Design) -> Tensor:
    """Draw in proportion to |X|^2: allows the largest step, best while the bias dominates."""
    return _normalised(design, design.points.square().sum(1))


def variance_density(design: Design) -> Tensor:
    """Draw in proportion to the noise times sqrt(X'H^-1 X): the least variance for small steps."""
    return _normalised(design, (design.noise_variance * _leverage(design)).sqrt())


def leverage_density(design: Design) -> Tensor:
    """Draw in proportion to X'H^-1 X, between the two others."""
    return _normalised(design, _leverage(design))


def largest_step(design: Design) -> float:
    """gamma_max: below it the second moment of w_k - w* stays bounded, above it it grows.

    Never more than 2 / tr(H), which `norm_density` reaches.
    """
    eigenvalues, basis = torch.linalg.eigh(design.covariance)
    scale = (eigenvalues[:, None] + eigenvalues[None, :]).rsqrt()
    x = design.scaled_points @ basis
    if x.shape[1] <= _DENSE_DIMENSION:
        rows = (scale * x[:, :, None] * x[:, None, :]).flatten(1) * design.drawn.sqrt()[:, None]
        return float(1 / torch.linalg.matrix_norm(rows, 2) ** 2)
    return 1 / _largest_eigenvalue(x, design.drawn, scale)


def operator_matrix(design: Design, step: float) -> Tensor:
    """T in the orthonormal basis of symmetric matrices, [size, size], size = d (d + 1) / 2.

    The basis is ordered (0, 0), (0, 1), ..., (1, 1), ...; elements off the diagonal are
    (e_i e_j' + e_j e_i') / sqrt(2).
    """
    basis = _symmetric_basis(design.points.shape[1])
    images = torch.stack([_apply_operator(design, step, matrix) for matrix in basis])
    return torch.einsum("iab,jab->ij", basis, images)


@dataclass(frozen=True)
class RiskCurves:
    """Expected excess risk of the average of N = 1, 2, ... iterates; they add up.

    bias, variance: [steps].
    """

    bias: Tensor
    variance: Tensor


def risk_curves(design: Design, start: Tensor, step: float, steps: int) -> RiskCurves:
    """The exact curves, without simulation. start: w_0 - w* [dimension].

    Raises: ConfigError if `step` is not above 0 or `steps` is below 1; ShapeError for `start`.
    """
    _check_step(step)
    if steps < 1:
        raise ConfigError(f"need at least 1 step, got {steps}")
    _check_start(design, start)
    nothing = torch.zeros_like(design.covariance)
    return RiskCurves(
        bias=_risk_curve(design, step, steps, torch.outer(start, start), nothing),
        variance=_risk_curve(design, step, steps, nothing, design.noise_covariance),
    )


@dataclass(frozen=True)
class RiskLimits:
    """What the curves tend to. bias_times_n2: N^2 bias. variance_times_n: N variance."""

    bias_times_n2: float
    variance_times_n: float


def risk_limits(design: Design, start: Tensor, step: float) -> RiskLimits:
    """The limits of N^2 bias and N variance for a step below the largest.

    For small steps they are start' H^-1 start / (2 step^2) and tr(H^-1 E[noise^2 XX']) / 2: the
    variance does not depend on the step. Raises: ConfigError if `step` is not below the largest.
    """
    _check_step(step)
    _check_start(design, start)
    largest = largest_step(design)
    if step >= largest:
        raise ConfigError(f"there is no limit at step {step}: it must be below {largest:.6g}")
    identity = torch.eye(len(design.covariance), dtype=torch.float64)
    factor = 2 * identity - step * design.covariance

    def limit(matrix: Tensor) -> float:
        return float(torch.sum(factor * _solve_operator(design, step, matrix))) / 2

    return RiskLimits(limit(torch.outer(start, start)) / step**2, limit(design.noise_covariance))


class AveragedLeastMeanSquares:
    """The recursion on samples as they come, for any number of independent chains at once.

    start: w_0 [chains, dimension]. step: gamma, above 0.
    average: the mean [chains, dimension] of w_0 .. w_{N-1}, after N samples.
    With a density, give X and Y divided by the root of it.
    Raises: ConfigError if the step is not above 0, or a sample is not finite; ShapeError.

    >>> chain = AveragedLeastMeanSquares(torch.zeros(1, 1), step=0.5)
    >>> for _ in range(3):
    ...     chain.update(torch.ones(1, 1), torch.ones(1))  # w: 0, 0.5, 0.75, 0.875
    >>> chain.average
    tensor([[0.4167]])
    """

    def __init__(self, start: Tensor, step: float) -> None:
        _check_step(step)
        if start.ndim != 2 or not start.is_floating_point():
            raise ShapeError(f"start must be float [chains, dimension], got {list(start.shape)}")
        self.step = step
        self.weights = start.clone()
        self.average = torch.zeros_like(start)
        self.count = 0

    def update(self, inputs: Tensor, targets: Tensor) -> None:
        """Take one sample for each chain: inputs [chains, dimension], targets [chains]."""
        if inputs.shape != self.weights.shape or targets.shape != self.weights.shape[:1]:
            raise ShapeError(
                f"need inputs {list(self.weights.shape)} and targets {[len(self.weights)]}, got "
                f"{list(inputs.shape)} and {list(targets.shape)}"
            )
        residual = (inputs * self.weights).sum(1) - targets
        if not residual.isfinite().all():
            raise ConfigError(
                "a sample is not finite, or the recursion diverged: check the data, or take a "
                "step below `largest_step`"
            )
        self.count += 1
        self.average += (self.weights - self.average) / self.count
        self.weights = self.weights - self.step * residual[:, None] * inputs


def _risk_curve(design: Design, step: float, steps: int, second: Tensor, noise: Tensor) -> Tensor:
    """0.5 tr(H E[(wbar - w*)(wbar - w*)']) for N = 1 .. steps.

    E delta_i delta_j' = C_i (I - step H)^(j - i), so the sum over all pairs grows by C_N, and by
    `past` = sum over i < N of C_i (I - step H)^(N - i) with its transpose.
    """
    h = design.covariance
    contraction = torch.eye(len(h), dtype=h.dtype) - step * h
    past = torch.zeros_like(h)
    pairs = torch.zeros_like(h)
    risks = []
    for count in range(1, steps + 1):
        pairs = pairs + second + past + past.T
        risks.append(torch.sum(h * pairs) / (2 * count**2))
        past = (past + second) @ contraction
        second = second - step * _apply_operator(design, step, second) + step**2 * noise
    return torch.stack(risks)


def _apply_operator(design: Design, step: float, matrix: Tensor) -> Tensor:
    h = design.covariance
    return h @ matrix + matrix @ h - step * design.fourth_moment(matrix)


def _solve_operator(design: Design, step: float, matrix: Tensor) -> Tensor:
    basis = _symmetric_basis(len(matrix))
    coordinates = torch.einsum("iab,ab->i", basis, matrix)
    solved = torch.linalg.solve(operator_matrix(design, step), coordinates)
    return torch.einsum("i,iab->ab", solved, basis)


def _symmetric_basis(dimension: int) -> Tensor:
    rows, columns = torch.triu_indices(dimension, dimension)
    basis = torch.zeros(len(rows), dimension, dimension, dtype=torch.float64)
    index = torch.arange(len(rows))
    size = torch.full((len(rows),), math.sqrt(0.5), dtype=torch.float64)
    size[rows == columns] = 1
    basis[index, rows, columns] = size
    basis[index, columns, rows] = size
    return basis


def _largest_eigenvalue(x: Tensor, weights: Tensor, scale: Tensor) -> float:
    """Of A -> scale * E[(X'(scale * A)X) XX'], positive semi-definite, by power iteration."""
    matrix = torch.eye(len(scale), dtype=x.dtype) / math.sqrt(len(scale))
    before = 0.0
    for _ in range(_POWER_ITERATIONS):
        image = scale * _moment(x, weights * ((x @ (scale * matrix)) * x).sum(1))
        value = float(image.norm())
        if abs(value - before) <= _POWER_TOLERANCE * value:
            return value
        matrix, before = image / value, value
    raise ConfigError("the largest step was not found: power iteration did not converge")


def _moment(x: Tensor, weights: Tensor) -> Tensor:
    return (x * weights[:, None]).T @ x


def _leverage(design: Design) -> Tensor:
    return (design.points * torch.linalg.solve(design.covariance, design.points.T).T).sum(1)


def _normalised(design: Design, weights: Tensor) -> Tensor:
    if (weights <= 0).any():
        raise ConfigError(
            "this sampling never draws a point that is zero or has no noise: take another density"
        )
    return weights / (design.probability * weights).sum()


def _check_step(step: float) -> None:
    if not 0 < step < math.inf:
        raise ConfigError(f"the step must be finite and above 0, got {step}")


def _check_start(design: Design, start: Tensor) -> None:
    if start.shape != design.points.shape[1:] or start.dtype != torch.float64:
        raise ShapeError(
            f"start must be float64 [{design.points.shape[1]}], got {start.dtype} "
            f"{list(start.shape)}"
        )
