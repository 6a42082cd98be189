"""Multichannel Wiener filter: estimated magnitudes and the mixture's spectrogram to spectrograms.

Each source is taken for a Gaussian at every time and frequency, of a power v(t, f) times a spatial
covariance R(f) between the channels; expectation-maximisation improves both from the estimates.
Source: Nugraha, Liutkus and Vincent, "Multichannel audio source separation with deep neural
networks" (IEEE/ACM TASLP 24(9), 2016), with the constants of openunmix 1.3.0.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-10
LARGEST = 10.0  # magnitude to which a louder mixture is scaled down, for fp32 to be enough


def wiener(
    magnitudes: Tensor,
    mix: Tensor,
    iterations: int = 1,
    softmask: bool = False,
    residual: bool = False,
) -> Tensor:
    """Complex estimates [..., frames, bins, channels, sources] of the sources of `mix`.

    magnitudes: of the sources, [..., frames, bins, channels, sources]; with no iterations the
        estimates have these and the phases of the mixture.
    mix: complex [..., frames, bins, channels].
    softmask: begin with the mixture divided in proportion to the magnitudes.
    residual: one source more, last: what the first estimates leave of the mixture.

    Where the mixture is silent the estimates are real at first, and become silent with the first
    iteration; the published package takes such a mixture for 1 there, and so adds sound.
    """
    if softmask:
        total = EPSILON + magnitudes.sum(dim=-1, keepdim=True)
        estimates = mix[..., None] * (magnitudes / total)
    else:
        phase = torch.where(mix == 0, torch.ones_like(mix), torch.sgn(mix))
        estimates = magnitudes * phase[..., None]
    if residual:
        rest = mix - estimates.sum(dim=-1)
        estimates = torch.cat([estimates, rest[..., None]], dim=-1)
    if iterations == 0:
        return estimates
    loudest = mix.abs().amax(dim=(-3, -2, -1), keepdim=True) / LARGEST
    scale = loudest.clamp(min=1)
    scaled_mix, estimates = mix / scale, estimates / scale[..., None]
    for _ in range(iterations):
        estimates = wiener_iteration(estimates, scaled_mix)
    return estimates * scale[..., None]


def wiener_in_blocks(
    magnitudes: Tensor, mix: Tensor, iterations: int, residual: bool, block_frames: int = 300
) -> Tensor:
    """`wiener` on blocks of frames, each with spatial covariances of its own; without the residual.

    Shape: magnitudes [batch, sources, channels, bins, frames], mix complex [batch, channels, bins,
    frames] -> complex like magnitudes.
    block_frames: as in the published package (demucs 4.1.0).
    """
    magnitudes, mix = magnitudes.permute(0, 4, 3, 2, 1), mix.permute(0, 3, 2, 1)
    blocks = zip(magnitudes.split(block_frames, 1), mix.split(block_frames, 1), strict=True)
    parts = [wiener(*block, iterations, residual=residual) for block in blocks]
    return torch.cat(parts, dim=1)[..., : magnitudes.shape[-1]].permute(0, 4, 3, 2, 1)


def wiener_iteration(estimates: Tensor, mix: Tensor) -> Tensor:
    """One iteration. Shapes as in `wiener`."""
    power = estimates.abs().square().mean(dim=-2)  # [..., frames, bins, sources]
    covariance = torch.einsum("...tfcj,...tfdj->...fjcd", estimates, estimates.conj())
    covariance = covariance / (EPSILON + power.sum(dim=-3))[..., None, None]
    complex_power = power.to(covariance.dtype)
    mixed = torch.einsum("...tfj,...fjcd->...tfcd", complex_power, covariance)
    channels = mix.shape[-1]
    noise = EPSILON**0.5 * torch.eye(channels, dtype=mixed.dtype, device=mixed.device)
    whitened = (inverse_of(mixed + noise) @ mix[..., None])[..., 0]
    images = torch.einsum("...fjcd,...tfd->...tfcj", covariance, whitened)
    return images * complex_power[..., None, :]


def inverse_of(matrices: Tensor) -> Tensor:
    """Inverses of complex matrices [..., n, n]; in closed form for 1 and 2 channels."""
    if matrices.shape[-1] == 1:
        return matrices.reciprocal()
    if matrices.shape[-1] > 2:
        return torch.linalg.inv(matrices)
    a, b, c, d = matrices.flatten(-2).unbind(-1)
    adjugate = torch.stack([d, -b, -c, a], dim=-1) / (a * d - b * c)[..., None]
    return adjugate.unflatten(-1, (2, 2))
