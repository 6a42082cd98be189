import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sonorant.dsp.filters import bandpass, highpass, lowpass, lowpass_bank, split_bands
from sonorant.errors import ConfigError, ShapeError


def gain_db(function: Callable[[Tensor], Tensor], frequency: float) -> float:
    """Gain at a frequency, a fraction of the sample rate, away from the ends."""
    x = torch.cos(2 * math.pi * frequency * torch.arange(8000).double())
    y = function(x)[2000:-2000]
    return 10 * math.log10(float(y.square().mean() / x[2000:-2000].square().mean()))


@pytest.mark.parametrize("cutoff", [0.01, 0.2])  # through the FFT, and directly
def test_lowpass_has_half_the_amplitude_at_its_cutoff(cutoff: float) -> None:
    def low(x: Tensor) -> Tensor:
        return lowpass(x, cutoff)

    assert gain_db(low, cutoff * 0.3) == pytest.approx(0, abs=0.05)
    assert gain_db(low, cutoff * 0.9) == pytest.approx(-1.41, abs=0.1)
    assert gain_db(low, cutoff) == pytest.approx(-6.02, abs=0.1)
    assert gain_db(low, cutoff * 1.1) == pytest.approx(-16.4, abs=0.3)
    assert gain_db(low, cutoff * 2) < -50


def test_highpass_is_what_lowpass_leaves() -> None:
    assert gain_db(lambda x: highpass(x, 0.1), 0.02) < -50
    assert gain_db(lambda x: highpass(x, 0.1), 0.3) == pytest.approx(0, abs=0.05)
    x = torch.randn(2, 3, 500)
    torch.testing.assert_close(highpass(x, 0.1) + lowpass(x, 0.1), x)


def test_bandpass_keeps_what_is_between() -> None:
    def band(x: Tensor) -> Tensor:
        return bandpass(x, 0.1, 0.2)

    assert gain_db(band, 0.15) == pytest.approx(0, abs=0.1)
    assert gain_db(band, 0.05) < -50
    assert gain_db(band, 0.3) < -50


def test_a_cutoff_of_zero_gives_silence() -> None:
    silent, low = lowpass_bank(torch.randn(1, 300), [0, 0.25])
    assert silent.abs().max() == 0
    assert low.abs().max() > 0


@pytest.mark.parametrize("function", [lowpass, highpass])
@pytest.mark.parametrize("cutoff", [0.3, 0.05])
@pytest.mark.parametrize("stride", [1, 3])
def test_unpadded_outputs_are_the_inner_ones(
    function: Callable[..., Tensor], cutoff: float, stride: int
) -> None:
    x = torch.randn(2, 400, dtype=torch.float64)
    half = int(8 / cutoff / 2)
    inner = function(x, cutoff)[:, half : 400 - half : stride]
    torch.testing.assert_close(function(x, cutoff, stride=stride, pad=False), inner)


@pytest.mark.parametrize("samples", [1, 5, 700])
def test_bands_sum_to_the_signal(samples: int) -> None:
    x = torch.randn(2, 1, samples, dtype=torch.float64)
    bands = split_bands(x, 24_000, n_bands=6)
    assert bands.shape == (6, 2, 1, samples)
    torch.testing.assert_close(bands.sum(0), x)
    assert torch.equal(split_bands(x, 24_000, n_bands=1)[0], x)


def test_a_tone_is_in_its_band() -> None:
    x = torch.cos(2 * math.pi * 1000 / 8000 * torch.arange(4000))
    energy = split_bands(x, 8000, cutoffs_hz=[500, 2000]).square().sum(-1)
    assert energy[1] > 0.99 * energy.sum()


def test_what_cannot_be_filtered_is_refused() -> None:
    x = torch.zeros(1, 30)
    for cutoffs in ([], [0.0], [-0.1], [0.6]):
        with pytest.raises(ConfigError, match="cut-offs are fractions"):
            lowpass_bank(x, cutoffs)
    with pytest.raises(ConfigError, match="swap"):
        bandpass(x, 0.3, 0.1)
    with pytest.raises(ConfigError, match="either"):
        split_bands(x, 8000)
    with pytest.raises(ConfigError, match="rise"):
        split_bands(x, 8000, cutoffs_hz=[900, 300])
    with pytest.raises(ShapeError, match="too short for a filter of 41"):
        lowpass(x, 0.2, pad=False)
    with pytest.raises(ShapeError, match="signal of 0 samples"):
        lowpass(x[:, :0], 0.2)


def test_gradients_flow_after_a_call_in_inference_mode() -> None:
    with torch.inference_mode():
        lowpass(torch.zeros(1, 50), 0.33)
    x = torch.randn(1, 50, requires_grad=True)
    lowpass(x, 0.33).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
