import math

import pytest
import torch

from sonorant.dsp.loudness import (
    PUBLISHED,
    STANDARD,
    Biquad,
    Weighting,
    biquad,
    block_loudness,
    k_weighted,
    loudness,
    standard_filters,
)
from sonorant.errors import ShapeError


def tone(seconds: float, rate: int = 48_000, frequency: float = 997) -> torch.Tensor:
    time = torch.arange(round(seconds * rate)).double() / rate
    return torch.sin(2 * math.pi * frequency * time)


@pytest.mark.parametrize("weighting", [PUBLISHED, STANDARD])
@pytest.mark.parametrize("rate", [8000, 44_100])
def test_filters_follow_their_recursion(weighting: Weighting, rate: int) -> None:
    x = torch.randn(2000, dtype=torch.float64)
    for coefficients in weighting.filters(rate):
        y = [0.0, 0.0]
        past = [0.0, 0.0, *x.tolist()]
        for n in range(2000):
            forced = sum(b * past[n + 2 - k] for k, b in enumerate(coefficients.b))
            y.append(forced - coefficients.a[0] * y[-1] - coefficients.a[1] * y[-2])
        expected = torch.tensor(y[2:], dtype=torch.float64)
        torch.testing.assert_close(biquad(x, coefficients), expected, rtol=0, atol=1e-8)
        single = biquad(x.float(), coefficients)
        torch.testing.assert_close(single.double(), expected, rtol=0, atol=3e-6)


def test_a_filter_without_memory_is_a_gain() -> None:
    x = torch.randn(3, 10)
    torch.testing.assert_close(biquad(x, Biquad((0.5, 0.0, 0.0), (0.0, 0.0))), x / 2)


def test_the_clamp_cuts_after_each_filter() -> None:
    x = 3 * tone(0.1)
    assert k_weighted(x, 48_000, PUBLISHED).abs().max() == 1
    assert k_weighted(x, 48_000, STANDARD).abs().max() > 3


@pytest.mark.parametrize("rate", [44_100, 48_000, 96_000])
def test_a_full_scale_tone_has_the_loudness_of_the_standard(rate: int) -> None:
    x = tone(2, rate)[None]
    assert loudness(x, rate, STANDARD) == pytest.approx(-3.01, abs=0.01)
    assert loudness(x.expand(2, -1), rate, STANDARD) == pytest.approx(0, abs=0.01)
    assert loudness(x / 10, rate, STANDARD) == pytest.approx(-23.01, abs=0.01)


def test_filters_at_48_khz_are_those_of_the_standard() -> None:
    shelf, highpass = standard_filters(48_000)
    assert shelf.b == pytest.approx((1.53512485958697, -2.69169618940638, 1.19839281085285))
    assert highpass.a == pytest.approx((-1.99004745483398, 0.99007225036621))


def test_surround_channels_weigh_more() -> None:
    silence = torch.zeros(4, 24_000, dtype=torch.float64)
    front = torch.cat([tone(0.5)[None], silence])
    back = torch.cat([silence, tone(0.5)[None]])
    ratio = loudness(back, 48_000, STANDARD) - loudness(front, 48_000, STANDARD)
    assert ratio == pytest.approx(10 * math.log10(1.41), abs=1e-6)


def test_gates_leave_out_silence_and_quiet_parts() -> None:
    loud, quiet = tone(2)[None], tone(4)[None]
    alone = loudness(loud, 48_000, STANDARD)
    for gain in (0.0, 0.01):  # below -70 LKFS; 40 dB below the rest
        mixed = torch.cat([loud, quiet * gain], dim=-1)
        assert loudness(mixed, 48_000, STANDARD) == pytest.approx(float(alone), abs=0.6)
    mixed = torch.cat([loud, quiet * 0.5], dim=-1)
    assert loudness(mixed, 48_000, STANDARD) < alone - 2


def test_silence_has_no_loudness() -> None:
    x = torch.cat([torch.zeros(1, 1, 8000), torch.randn(1, 1, 8000) * 0.1])
    silent, loud = loudness(x, 16_000)
    assert silent.isnan()
    assert loud.isfinite()
    assert block_loudness(x[:1], 16_000)[0, 0] == pytest.approx(-69.93, abs=0.05)


def test_gradients_flow_after_a_call_in_inference_mode() -> None:
    with torch.inference_mode():
        loudness(torch.randn(1, 5000), 12_000)
    x = torch.randn(1, 5000, requires_grad=True)
    loudness(x * 0.1, 12_000).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0


def test_short_or_many_channelled_sounds_are_refused() -> None:
    with pytest.raises(ShapeError, match="at least 6400 samples"):
        loudness(torch.zeros(1, 6399), 16_000)
    with pytest.raises(ShapeError, match="up to 5 channels"):
        loudness(torch.zeros(6, 6400), 16_000)
