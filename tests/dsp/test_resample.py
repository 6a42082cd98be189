import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonorant.dsp.resample import Resampler, ResamplerStream, resample, resampling_kernel
from sonorant.errors import ConfigError, ShapeError

RATIOS = [(2, 1), (1, 2), (3, 1), (4, 5), (147, 80), (441, 160), (48_000, 44_100), (101, 97)]


def by_definition(x: torch.Tensor, old: int, new: int, zeros: int, rolloff: float) -> torch.Tensor:
    """The sum of the definition, output by output, in float64."""
    ratio = Fraction(old, new)
    bandwidth = min(1.0, 1 / ratio) * rolloff
    reach = math.ceil(zeros / bandwidth) + 1
    outputs = []
    for i in range(int(len(x) / ratio)):
        centre = i * ratio
        inputs = torch.arange(int(centre) - reach, int(centre) + reach + 1)
        t = (inputs.double() - float(centre)) * bandwidth
        weights = torch.sinc(t) * torch.cos(math.pi * t / 2 / zeros) ** 2 * (t.abs() < zeros)
        outputs.append((x[inputs.clamp(0, len(x) - 1)] * weights).sum() / weights.sum())
    return torch.stack(outputs)


@pytest.mark.parametrize(("old", "new"), RATIOS)
@pytest.mark.parametrize(("zeros", "rolloff"), [(24, 0.945), (6, 0.8)])
def test_equals_the_definition(old: int, new: int, zeros: int, rolloff: float) -> None:
    x = torch.randn(300, dtype=torch.float64)
    actual = resample(x, old, new, zeros, rolloff)
    torch.testing.assert_close(actual, by_definition(x, old, new, zeros, rolloff))


@pytest.mark.parametrize(("old", "new"), RATIOS)
def test_a_tone_keeps_its_pitch_and_level(old: int, new: int) -> None:
    cycles_per_sample = 0.05 * min(1.0, new / old)
    samples = 3000
    x = torch.cos(2 * math.pi * cycles_per_sample * torch.arange(samples).double())
    y = resample(x, old, new)
    time = torch.arange(len(y)).double() * old / new
    expected = torch.cos(2 * math.pi * cycles_per_sample * time)
    edge = 100 * max(1, new // old)
    assert (y - expected)[edge:-edge].abs().max() < 1e-3


def test_a_constant_stays_constant_to_the_very_ends() -> None:
    y = resample(torch.full((2, 3, 10), 0.7), 44_100, 16_000, full=True)
    torch.testing.assert_close(y, torch.full((2, 3, 4), 0.7))


def test_rows_do_not_mix() -> None:
    x = torch.randn(3, 2, 1000)
    together = resample(x, 2, 3)
    assert together.shape == (3, 2, 1500)
    for item in range(3):
        for channel in range(2):
            alone = resample(x[item, channel], 2, 3)
            torch.testing.assert_close(together[item, channel], alone, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(old=st.integers(1, 500), new=st.integers(1, 500), samples=st.integers(1, 2000))
def test_lengths_are_exact(old: int, new: int, samples: int) -> None:
    x = torch.ones(samples)
    assert resample(x, old, new, zeros=2).shape[-1] == samples * new // old
    longest = math.ceil(Fraction(samples * new, old))
    assert resample(x, old, new, zeros=2, full=True).shape[-1] == longest
    y = resample(x, old, new, zeros=2, output_length=longest)
    torch.testing.assert_close(y, torch.ones(longest))
    with pytest.raises(ShapeError, match="output_length"):
        resample(x, old, new, zeros=2, output_length=longest + 1)


@settings(deadline=None, max_examples=50)
@given(
    ratio=st.sampled_from([*RATIOS, (5, 5), (1001, 2001)]),
    samples=st.integers(1, 1500),
    full=st.booleans(),
    cuts=st.lists(st.integers(0, 1500), max_size=6),
)
def test_streaming_equals_offline_for_any_chunking(
    ratio: tuple[int, int], samples: int, full: bool, cuts: list[int]
) -> None:
    x = torch.randn(2, 1, samples, generator=torch.Generator().manual_seed(samples))
    stream = ResamplerStream(*ratio, zeros=8)
    edges = sorted(min(cut, samples) for cut in [0, *cuts, samples])
    pieces = []
    for start, stop in pairwise(edges):
        pieces.append(stream.push(x[..., start:stop]))
        due = (stop - stream.latency) * ratio[1] / ratio[0]
        assert sum(piece.shape[-1] for piece in pieces) >= due
    pieces.append(stream.flush(full))
    expected = resample(x, *ratio, zeros=8, full=full)
    torch.testing.assert_close(torch.cat(pieces, dim=-1), expected, rtol=0, atol=1e-5)


def test_a_flushed_stream_begins_anew() -> None:
    stream = Resampler(3, 2).stream()
    first = torch.cat([stream.push(torch.ones(1, 300)), stream.flush()], dim=-1)
    second = torch.cat([stream.push(torch.zeros(1, 300)), stream.flush()], dim=-1)
    assert (first.shape, second.abs().max()) == ((1, 200), 0)
    assert stream.flush().numel() == 0


def test_a_long_stream_keeps_little() -> None:
    stream = ResamplerStream(147, 80)
    for _ in range(50):
        stream.push(torch.zeros(1, 1000))
    assert stream._waiting is not None
    assert stream._waiting.shape[-1] < 3 * 147 + 2 * stream.latency


def test_gradients_flow_after_a_call_in_inference_mode() -> None:
    with torch.inference_mode():
        resample(torch.zeros(1, 100), 7, 5, zeros=3)
    x = torch.randn(2, 60, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resample(x, 7, 5, zeros=3), x)
    single = torch.randn(2, 60, requires_grad=True)
    resample(single, 7, 5, zeros=3).sum().backward()
    assert single.grad is not None
    assert single.grad.abs().min() > 0


def test_half_precision_is_as_good_as_its_samples() -> None:
    x = torch.randn(1, 2000)
    y = resample(x.bfloat16(), 3, 2)
    assert y.dtype == torch.bfloat16
    assert (y.float() - resample(x, 3, 2)).abs().max() < 0.05


@pytest.mark.parametrize(("old", "new"), [(20_001, 30_001), (768_000, 767_999)])
def test_rates_without_a_common_divisor_need_little(old: int, new: int) -> None:
    x = torch.randn(100, dtype=torch.float64)
    torch.testing.assert_close(
        resample(x, old, new), by_definition(x, old, new, 24, 0.945), rtol=0, atol=1e-6
    )


def test_the_kernel_has_unit_gain_in_every_phase() -> None:
    kernel = resampling_kernel(48_000, 44_100)
    assert kernel.shape[0] == 147
    torch.testing.assert_close(kernel.sum(dim=1), torch.ones(147))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (0, 1, "cannot resample"),
        (44_100.0, 16_000, "whole numbers"),
        (2_000_003, 2_000_001, "too odd or too far"),
        (768_000, 1, "too odd or too far"),
    ],
)
def test_impossible_rates_are_refused(old: int, new: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resample(torch.zeros(10), old, new)
    with pytest.raises(ConfigError, match=message):
        Resampler(old, new)


def test_an_empty_signal_is_refused() -> None:
    with pytest.raises(ShapeError, match="empty"):
        resample(torch.zeros(1, 0), 2, 1)
