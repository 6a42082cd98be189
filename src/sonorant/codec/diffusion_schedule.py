"""How sound turns into noise step by step, and how sampling goes back.

Source: denoising diffusion (arXiv 2006.11239, sections 2 and 3.2) with the noise schedule of
Multi-Band Diffusion (arXiv 2308.02560, sections 3.3 and 4.1): the share of noise that a step adds
follows a power law, with little noise for most of the way.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor

from sonorant.errors import ConfigError

Positive = Annotated[float, msgspec.Meta(gt=0)]
Denoiser = Callable[[Tensor, int], Tensor]
"""The noise `[batch, channels, time]` that is in a sound of that shape at that step."""
Draw = Callable[[], Tensor]
"""Fresh Gaussian noise of the sound's shape."""
Watch = Callable[[int, Tensor], None]
"""Called after every call of the denoiser with their count and the sound so far."""

PUBLISHED_CALLS = 20


class ScheduleConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The defaults are the published ones.

    first_beta, last_beta, power: step t adds a share of noise of beta_t, whose power-th root rises
        evenly from the first step to the last.
    clip: the sound stays within this range on its way back; None for no limit.
    rescale, noise_scale: the sound is divided by the one and the noise multiplied by the other.
    variance: of the noise that sampling through all steps adds again: the step's own (`beta`), or
        what the step before can have (`beta_tilde`; arXiv 2006.11239, section 3.2).
    """

    steps: Annotated[int, msgspec.Meta(ge=2)] = 1000
    first_beta: Positive = 1e-5
    last_beta: Positive = 2.9e-2
    power: Positive = 7.5
    clip: Positive | None = 5.0
    rescale: Positive = 1.0
    noise_scale: Positive = 1.0
    variance: Literal["beta", "beta_tilde"] = "beta"

    def __post_init__(self) -> None:
        if max(self.first_beta, self.last_beta) >= 1:
            raise ConfigError("a step cannot replace all sound by noise: betas lie below 1")


class NoiseSchedule:
    """The schedule in numbers: `betas` and `alpha_bar`, float32 `[steps]` on the CPU.

    alpha_bar: the share of the sound's energy that is left after each step.

    The published sampling works in float32, where 1 - alpha_bar of the first steps is off by up to
    a percent; the same is done here, in the same order.
    """

    def __init__(self, config: ScheduleConfig) -> None:
        self.config = config
        root = 1 / config.power
        first, last = config.first_beta**root, config.last_beta**root
        self.betas = torch.linspace(first, last, config.steps) ** config.power
        self.alpha_bar = (1 - self.betas).cumprod(0)

    def add_noise(self, x: Tensor, steps: Tensor | int, noise: Tensor) -> Tensor:
        """The sound `[batch, channels, time]` as it is at `steps`, an int or int64 `[batch]`."""
        told = torch.as_tensor(steps).expand(len(x)).to(x.device)
        left = self.alpha_bar.to(x.device)[told][:, None, None]
        signal = left.sqrt() / self.config.rescale * x
        return signal + (1 - left).sqrt() * (noise * self.config.noise_scale)

    def sample(
        self,
        denoise: Denoiser,
        initial: Tensor,
        draw: Draw,
        steps: Sequence[int] | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """From Gaussian noise `initial` to sound, by way of few steps.

        steps: falling; the denoiser is called at all but the last, where sampling lands. None for
            the published 999, 949, ..., 49, 0 (20 calls).
        Raises: ConfigError for steps that do not fall or that the schedule does not have.
        """
        path = spaced_steps(self.config.steps) if steps is None else list(steps)
        self._check(path)
        kept = self.alpha_bar[path]
        # The share of the noise added between each step of the path and the next.
        betas = (1 - kept[:-1] / kept[1:]).tolist()
        x = initial * self.config.noise_scale
        for index, (step, following) in enumerate(itertools.pairwise(path)):
            now = self._alpha_bar_at(step)
            variance = (1 - self._alpha_bar_at(following)) / (1 - now) * betas[index]
            if index == len(betas) - 1:
                variance = 0.0
            noise = denoise(x, step) * self.config.noise_scale
            x = self._step_back(noise, x, betas[index], now, variance, draw)
            if watch is not None:
                watch(index + 1, x)
        return x

    def sample_all(self, denoise: Denoiser, initial: Tensor, draw: Draw) -> Tensor:
        """From Gaussian noise `initial` to sound, through every step.

        As published, `noise_scale` here touches fresh noise only.
        """
        x = initial
        for step in reversed(range(self.config.steps)):
            beta, now = float(self.betas[step]), self._alpha_bar_at(step)
            variance = beta if step else 0.0
            if step and self.config.variance == "beta_tilde":
                variance *= (1 - self._alpha_bar_at(step - 1)) / (1 - now)
            x = self._step_back(denoise(x, step), x, beta, now, variance, draw)
        return x * self.config.rescale

    def _step_back(
        self,
        noise: Tensor,
        x: Tensor,
        beta: float,
        alpha_bar: float,
        variance: float,
        draw: Draw,
    ) -> Tensor:
        """Take a step's noise out, and put fresh noise of that variance in."""
        x = (x - beta / (1 - alpha_bar) ** 0.5 * noise) / (1 - beta) ** 0.5
        if variance > 0:
            x = x + variance**0.5 * (draw() * self.config.noise_scale)
        return x if self.config.clip is None else x.clamp(-self.config.clip, self.config.clip)

    def _alpha_bar_at(self, step: int) -> float:
        """Multiplied anew, as published; the running product rounds otherwise."""
        return float((1 - self.betas[: step + 1]).prod())

    def _check(self, path: list[int]) -> None:
        falls = all(step > following for step, following in itertools.pairwise(path))
        if len(path) < 2 or not falls or path[-1] < 0 or path[0] >= self.config.steps:
            raise ConfigError(
                f"sampling needs two or more falling steps from {self.config.steps - 1} to 0, "
                f"got {path}"
            )


def spaced_steps(steps: int, calls: int = PUBLISHED_CALLS) -> list[int]:
    """Steps for that many calls, evenly spaced from the last step, and 0 to land on.

    >>> spaced_steps(1000, calls=4)
    [999, 749, 499, 249, 0]
    """
    if not 1 <= calls < steps:
        raise ConfigError(f"{calls} calls do not fit in a schedule of {steps} steps")
    return [steps - 1 - index * steps // calls for index in range(calls)] + [0]
