import pytest
import torch

from sonorant.separation.spectrogram import (
    FramePerHop,
    PlainSpectrogram,
    ShiftedFramePerHop,
    spectrogram,
    waveform,
)


@pytest.mark.parametrize("padding", [0, 1])
def test_waveform_undoes_spectrogram(padding: int) -> None:
    x = torch.randn(2, 300)
    z = spectrogram(x, 64, 16, padding)
    assert z.shape == (2, 32 * (1 + padding) + 1, 19)
    torch.testing.assert_close(waveform(z, 16, 300, padding), x)


def test_the_scale_keeps_the_energy_of_noise() -> None:
    x = torch.randn(1, 60_000, generator=torch.Generator().manual_seed(0))
    z = spectrogram(x, 256, 64)
    # a Hann window has a mean square of 3/8
    assert float(z.abs().square().mean()) == pytest.approx(3 / 8, rel=0.02)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 200])
def test_there_is_a_frame_per_hop_and_the_sound_comes_back(length: int) -> None:
    convention = FramePerHop(64)
    x = torch.randn(1, 2, length)
    z = convention.forward(x)
    assert z.shape == (1, 2, 32, -(-length // 16))
    back = convention.inverse(z, length)
    assert back.shape == x.shape
    if length == 200:  # away from the edges, which some frames left out see as well
        low = torch.sin(torch.arange(length) * 0.3).expand(1, 2, -1)
        again = convention.inverse(convention.forward(low), length)
        assert float((again - low)[..., 48:-48].abs().max()) < 1e-3


def test_the_shifted_inverse_comes_late_by_the_margin() -> None:
    x = torch.randn(1, 1, 640)
    z = FramePerHop(64).forward(x)
    usual, shifted = FramePerHop(64).inverse(z, 640), ShiftedFramePerHop(64).inverse(z, 640)
    torch.testing.assert_close(shifted[..., 24 + 64 : 500], usual[..., 64 : 500 - 24])


def test_the_shifted_convention_sees_zeros_around_the_sound() -> None:
    x = torch.ones(1, 1, 640)
    first = ShiftedFramePerHop(64).forward(x)[..., 0].abs()
    assert float(first.max()) < float(FramePerHop(64).forward(x)[..., 0].abs().max())


def test_the_plain_spectrogram_has_centred_frames() -> None:
    convention = PlainSpectrogram(64)
    x = torch.sin(torch.arange(160) * 0.5)[None]
    z = convention.forward(x)
    assert z.shape == (1, 32, 11)
    torch.testing.assert_close(convention.inverse(z, 160), x, atol=5e-3, rtol=0)
