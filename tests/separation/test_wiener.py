import torch

from sonorant.separation.wiener import wiener, wiener_in_blocks


def scene(channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    magnitudes = torch.rand(7, 5, channels, 3, generator=generator)
    mix = torch.complex(
        torch.randn(7, 5, channels, generator=generator),
        torch.randn(7, 5, channels, generator=generator),
    )
    return magnitudes, mix


def test_without_iterations_the_phase_of_the_mixture_is_kept() -> None:
    magnitudes, mix = scene()
    mix[0, 0, 0] = 0
    estimates = wiener(magnitudes, mix, iterations=0)
    torch.testing.assert_close(estimates.abs(), magnitudes)
    torch.testing.assert_close(
        estimates[1:].angle(), mix[1:, ..., None].angle().expand_as(estimates[1:])
    )
    torch.testing.assert_close(estimates[0, 0, 0], magnitudes[0, 0, 0].to(estimates.dtype))


def test_a_softmask_and_a_residual_sum_to_the_mixture() -> None:
    magnitudes, mix = scene()
    torch.testing.assert_close(wiener(magnitudes, mix, 0, softmask=True).sum(-1), mix)
    torch.testing.assert_close(wiener(magnitudes, mix, 0, residual=True).sum(-1), mix)


def test_improved_estimates_sum_to_the_mixture_for_any_number_of_channels() -> None:
    for channels in (1, 2, 3):
        magnitudes, mix = scene(channels)
        estimates = wiener(magnitudes, mix, iterations=2)
        torch.testing.assert_close(estimates.sum(-1), mix, atol=2e-2, rtol=0)


def test_a_source_of_its_own_direction_is_found() -> None:
    """Two sources, left and right: the filter learns where they are and parts them."""
    left, right = (torch.randn(200, 1, dtype=torch.complex64) for _ in range(2))
    mix = torch.stack([left, right], dim=-1)
    magnitudes = torch.stack([torch.tensor([0.9, 0.4]), torch.tensor([0.4, 0.9])], dim=-1)
    estimates = wiener(magnitudes * mix.abs()[..., None], mix, iterations=10)
    wanted = torch.stack([mix * torch.tensor([1, 0]), mix * torch.tensor([0, 1])], dim=-1)
    error = (estimates - wanted).abs().square().mean() / wanted.abs().square().mean()
    assert float(error) < 0.05


def test_blocks_are_filtered_one_by_one_without_the_residual() -> None:
    magnitudes, mix = scene()
    inputs = magnitudes.permute(3, 2, 1, 0)[None], mix.permute(2, 1, 0)[None]
    result = wiener_in_blocks(*inputs, iterations=1, residual=True, block_frames=4)
    assert result.shape == (1, 3, 2, 5, 7)
    alone = wiener(magnitudes[4:], mix[4:], 1, residual=True)[..., :3]
    torch.testing.assert_close(result[0, ..., 4:], alone.permute(3, 2, 1, 0))
