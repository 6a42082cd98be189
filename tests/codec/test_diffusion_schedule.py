from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sonorant.codec.diffusion_schedule import NoiseSchedule, ScheduleConfig, spaced_steps
from sonorant.errors import ConfigError

SHORT = ScheduleConfig(steps=200, first_beta=1e-4, last_beta=0.1, power=2.0, clip=None)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_the_published_schedule_ends_in_noise_and_begins_in_sound() -> None:
    schedule = NoiseSchedule(ScheduleConfig())
    assert schedule.betas[[0, -1]].tolist() == pytest.approx([1e-5, 2.9e-2], rel=1e-4)
    assert schedule.alpha_bar[0] == pytest.approx(1, abs=2e-5)
    assert schedule.alpha_bar[-1] < 0.06


def test_noisy_sound_keeps_the_share_of_energy_that_the_schedule_says() -> None:
    schedule = NoiseSchedule(SHORT)
    x = noise(3, 1, 20_000)
    steps = torch.tensor([0, 100, 199])
    noisy = schedule.add_noise(x, steps, torch.randn(3, 1, 20_000))
    share = (noisy * x).mean(dim=(1, 2)) / x.square().mean(dim=(1, 2))
    torch.testing.assert_close(share.square(), schedule.alpha_bar[steps], rtol=0.1, atol=0.02)
    torch.testing.assert_close(noisy.std(dim=(1, 2)), torch.ones(3), rtol=0.05, atol=0)


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
@pytest.mark.parametrize(("calls", "tolerance"), [(50, 0.12), (None, 0.06)])
def test_sampling_with_perfect_knowledge_gives_the_distribution_back(
    variance: str, calls: int | None, tolerance: float
) -> None:
    """For Gaussian sound of deviation 0.3 the best guess of the noise is known in closed form."""
    config = ScheduleConfig(
        steps=SHORT.steps,
        first_beta=SHORT.first_beta,
        last_beta=SHORT.last_beta,
        power=SHORT.power,
        clip=None,
        variance=variance,  # type: ignore[arg-type]
    )
    schedule = NoiseSchedule(config)
    deviation = 0.3

    def denoise(x: Tensor, step: int) -> Tensor:
        kept = float(schedule.alpha_bar[step])
        return x * (1 - kept) ** 0.5 / (1 - kept + kept * deviation**2)

    torch.manual_seed(0)
    shape = (1, 1, 10_000)
    if calls is None:
        made = schedule.sample_all(denoise, torch.randn(shape), lambda: torch.randn(shape))
    else:
        path = spaced_steps(config.steps, calls)
        made = schedule.sample(denoise, torch.randn(shape), lambda: torch.randn(shape), path)
    assert float(made.std()) == pytest.approx(deviation, rel=tolerance)


def test_the_denoiser_is_called_at_every_step_of_the_path_but_the_last() -> None:
    asked, watched = [], []

    def denoise(x: Tensor, step: int) -> Tensor:
        asked.append(step)
        return x

    NoiseSchedule(SHORT).sample(
        denoise,
        noise(1, 1, 8),
        lambda: noise(1, 1, 8),
        [199, 90, 0],
        lambda count, _: watched.append(count),
    )
    assert asked == [199, 90]
    assert watched == [1, 2]


def test_published_paths() -> None:
    assert spaced_steps(1000) == [*range(999, 0, -50), 0]
    with pytest.raises(ConfigError, match="0 calls"):
        spaced_steps(1000, 0)


@pytest.mark.parametrize("path", [[5], [5, 5, 0], [0, 5], [200, 0], [5, -1]])
def test_impossible_paths_are_refused(path: list[int]) -> None:
    with pytest.raises(ConfigError, match="falling steps from 199 to 0"):
        NoiseSchedule(SHORT).sample(lambda x, _: x, noise(1, 1, 8), lambda: noise(1, 1, 8), path)
