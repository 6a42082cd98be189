"""Adam and Adagrad as their convergence proof states them.

Source: A Simple Convergence Proof of Adam and Adagrad (arXiv 2003.02395), section 2. One recursion
for both, for each coordinate and n = 1, 2, ...:

    m_n = beta1 m_{n-1} + g_n          a weighted sum, not an average
    v_n = beta2 v_{n-1} + g_n^2        the same
    x_n = x_{n-1} - alpha_n m_n / sqrt(eps + v_n)

Adagrad is beta2 = 1 with a constant alpha_n. Adam has beta2 < 1 and an alpha_n that turns the sums
into averages, with or without the corrections for their start at zero (`adam_step_size`). Momentum
is heavy-ball in both. Against `torch.optim`: eps stands inside the root and is added to a sum.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sonorant.errors import ConfigError
from sonorant.optim.checks import check_gradients, check_group, loss_of, parameters_or_error

_BLOCK = 32_768
"""Elements for one thread: the least that torch gives to each, and small enough for its cache."""


def adam_step_size(
    step: int,
    lr: float,
    betas: tuple[float, float],
    *,
    correct_first: bool = False,
    correct_second: bool = True,
) -> float:
    """alpha_n of Adam at step n = 1, 2, ...; the defaults are the paper's Adam.

    correct_first: correct m for its start at zero. Without it the first steps are shorter, which
        acts as a warm-up of about 1 / (1 - beta1) steps.
    correct_second: correct v likewise. Without it the first steps are longer, the more so the
        nearer beta2 is to 1, and may diverge.
    """
    beta1, beta2 = betas
    alpha = lr * (1 - beta1)
    if correct_second:
        # sqrt of the sum of beta2^j over j < n, without cancellation for beta2 near 1
        alpha *= math.sqrt(math.expm1(step * math.log(beta2)) / (beta2 - 1))
    else:
        alpha /= math.sqrt(1 - beta2)
    return alpha / (1 - beta1**step) if correct_first else alpha


class _SumOptimizer(Optimizer, ABC):
    """The recursion that both share; a subclass says alpha_n by `_step_size`.

    State of a parameter: `step`, `square_sum` (v), and with momentum `gradient_sum` (m).
    """

    def __init__(self, parameters: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(parameters_or_error(parameters), defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters. Raises: ConfigError if the group is empty or has impossible values."""
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
            self._check_betas(*self._betas(self.param_groups[-1]))
        except ConfigError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; parameters without a gradient stay, and their count of steps too.

        Raises: ConfigError if a gradient is not finite, or sparse where momentum is not 0. In both
        cases no parameter has changed.
        """
        loss = loss_of(closure)
        groups = [
            [parameter for parameter in group["params"] if parameter.grad is not None]
            for group in self.param_groups
        ]
        everything = [parameter for group in groups for parameter in group]
        check_gradients(everything, [parameter.grad for parameter in everything])
        for group, parameters in zip(self.param_groups, groups, strict=True):
            self._refuse_sparse_momentum(group, parameters)
        for group, parameters in zip(self.param_groups, groups, strict=True):
            self._update(group, parameters)
        return loss

    @abstractmethod
    def _betas(self, group: dict[str, Any]) -> tuple[float, float]:
        """Factors of the means of gradients and of their squares."""

    @abstractmethod
    def _step_size(self, group: dict[str, Any], step: int) -> float:
        """The learning rate of step `step`, from 1, with its correction."""

    @staticmethod
    def _check_betas(beta1: float, beta2: float) -> None:
        if not 0 <= beta1 < beta2 <= 1:
            raise ConfigError(
                f"the proof needs 0 <= beta1 < beta2 <= 1, got beta1 {beta1} and beta2 {beta2}"
            )

    def _refuse_sparse_momentum(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if any(gradient.is_sparse for gradient in gradients) and self._betas(group)[0] > 0:
            raise ConfigError(
                "sparse gradients need momentum (beta1) 0: with momentum every coordinate moves at "
                "every step; set it to 0 or make the gradient dense"
            )

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        beta1, beta2 = self._betas(group)
        dense: list[Tensor] = []
        for parameter in parameters:
            state = self.state[parameter]
            if "square_sum" not in state:
                state["step"] = torch.tensor(0)
                state["square_sum"] = torch.zeros_like(parameter)
            if beta1 > 0 and "gradient_sum" not in state:
                state["gradient_sum"] = torch.zeros_like(parameter)
            state["step"] += 1
            assert parameter.grad is not None
            if parameter.grad.is_sparse:
                alpha = self._step_size(group, int(state["step"]))
                _sparse_update(parameter, state["square_sum"], alpha, beta2, group["eps"])
            else:
                dense.append(parameter)
        large = [parameter for parameter in dense if _suits_blocks(parameter)]
        for parameter in large:
            state = self.state[parameter]
            alpha = self._step_size(group, int(state["step"]))
            _update_in_blocks(parameter, state, alpha, (beta1, beta2), group["eps"])
        if small := [parameter for parameter in dense if not _suits_blocks(parameter)]:
            self._update_together(group, small)

    def _update_together(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """All tensors of a group in a few calls, for which torch has multi-tensor kernels."""
        beta1, beta2 = self._betas(group)
        states = [self.state[parameter] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        squares = [state["square_sum"] for state in states]
        steps = gradients
        if beta1 > 0:
            steps = [state["gradient_sum"] for state in states]
            torch._foreach_mul_(steps, beta1)
            torch._foreach_add_(steps, gradients)
        if beta2 < 1:
            torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients)
        roots = torch._foreach_add(squares, group["eps"])
        torch._foreach_sqrt_(roots)
        sizes = [-self._step_size(group, int(state["step"])) for state in states]
        torch._foreach_addcdiv_(parameters, steps, roots, sizes)


def _suits_blocks(parameter: Tensor) -> bool:
    return (
        parameter.device.type == "cpu" and parameter.numel() > _BLOCK and parameter.is_contiguous()
    )


def _update_in_blocks(
    parameter: Tensor, state: dict[str, Any], alpha: float, betas: tuple[float, float], eps: float
) -> None:
    """The whole step block by block: each is read from memory and written once, as by a fused
    kernel, instead of once in each of the seven operations."""
    assert parameter.grad is not None
    beta1, beta2 = betas
    size = _BLOCK * torch.get_num_threads()
    gradient = parameter.grad.reshape(-1)
    moves = state["gradient_sum"].view(-1) if beta1 > 0 else gradient
    blocks = (parameter.view(-1), gradient, state["square_sum"].view(-1), moves)
    scratch = torch.empty(size, dtype=parameter.dtype)
    for x, g, v, m in zip(*(tensor.split(size) for tensor in blocks), strict=True):
        if beta1 > 0:
            torch.add(g, m, alpha=beta1, out=m)
        if beta2 < 1:
            v.mul_(beta2)
        v.addcmul_(g, g)
        root = torch.add(v, eps, out=scratch[: len(v)])
        x.addcdiv_(m, root.sqrt_(), value=-alpha)


def _sparse_update(
    parameter: Tensor, squares: Tensor, alpha: float, beta2: float, eps: float
) -> None:
    """The step without momentum: coordinates without a gradient stay where they are."""
    assert parameter.grad is not None
    gradient = parameter.grad.coalesce()
    at, values = tuple(gradient.indices()), gradient.values()
    if beta2 < 1:
        squares.mul_(beta2)
    squares[at] += values * values
    parameter[at] -= alpha * values / (squares[at] + eps).sqrt()


class Adam(_SumOptimizer):
    """Adam with heavy-ball momentum and any of the four ways to correct its start.

    The defaults are the Adam that theorems 2 and 4 are about (`sonorant.optim.certificates`).
    lr: alpha; 0.001 is usual. betas: 0 <= beta1 < beta2 < 1.
    eps: added to the sum of squares; that of `torch.optim.Adam` is near sqrt((1 - beta2) eps) here.
    correct_first, correct_second: see `adam_step_size`; both are the original Adam.
    Sparse gradients: with beta1 = 0.
    Raises: ConfigError for empty groups, parameters other than float32 and float64, values out of
        range, and at `step` for gradients that are not finite.
    Source: arXiv 2003.02395, section 2.2.

    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimiser = Adam([weight], lr=0.1, betas=(0.0, 0.99))
    >>> (3 * weight).sum().backward()
    >>> optimiser.step()
    >>> round(weight.item(), 4)  # the first step is lr long, whatever the size of the gradient
    0.9
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        correct_first: bool = False,
        correct_second: bool = True,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "correct_first": correct_first,
                "correct_second": correct_second,
            },
        )

    def _betas(self, group: dict[str, Any]) -> tuple[float, float]:
        beta1, beta2 = group["betas"]
        if beta2 == 1:
            raise ConfigError("Adam needs beta2 below 1, got 1: with beta2 = 1 it is Adagrad")
        return beta1, beta2

    def _step_size(self, group: dict[str, Any], step: int) -> float:
        return adam_step_size(
            step,
            group["lr"],
            group["betas"],
            correct_first=group["correct_first"],
            correct_second=group["correct_second"],
        )


class Adagrad(_SumOptimizer):
    """Adagrad, with heavy-ball momentum if asked for: theorems 1 and 3.

    lr: alpha. momentum: beta1, in [0, 1). eps: added to the sum of squares, inside the root.
    Sparse gradients: with momentum 0; the cost is that of the coordinates they touch.
    Raises: as `Adam`.
    Source: arXiv 2003.02395, section 2.2.

    >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
    >>> optimiser = Adagrad([weight], lr=0.1)
    >>> for _ in range(2):
    ...     optimiser.zero_grad()
    ...     (3 * weight).sum().backward()
    ...     optimiser.step()
    >>> round(weight.item(), 4)  # 1 - 0.1 - 0.1 / sqrt(2)
    0.8293
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, momentum: float = 0.0, eps: float = 1e-8
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "eps": eps})

    def _betas(self, group: dict[str, Any]) -> tuple[float, float]:
        return group["momentum"], 1.0

    def _step_size(self, group: dict[str, Any], step: int) -> float:
        return group["lr"]
