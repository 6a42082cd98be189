from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonorant.errors import AudioError, ConfigError, ShapeError
from sonorant.separation.live import LiveSeparator
from tests.separation.toys import Gains, ToyConfig


def live(**times: float) -> LiveSeparator:
    model = Gains(ToyConfig(gains=(1.0,)))  # the mean of a sound comes with every stem
    return LiveSeparator(model, **{"hop_seconds": 0.1, "lookahead_seconds": 0.05} | times)


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 150), max_size=8))
def test_stems_are_those_of_the_sound_for_any_chunking(lengths: list[int]) -> None:
    separator = live()
    sound = torch.randn(2, sum(lengths), generator=torch.Generator().manual_seed(1))
    chunks = sound.split(lengths, dim=1) if lengths else []
    pieces = [separator.push(chunk) for chunk in chunks]
    stems = torch.cat([*pieces, separator.flush()], dim=-1)
    torch.testing.assert_close(stems[0], sound)


def test_no_sample_waits_longer_than_stated() -> None:
    separator = live()
    assert separator.latency_samples == 15
    waits, given_out = [], 0
    for taken in range(1, 301):
        given_out += separator.push(torch.zeros(2, 1)).shape[-1]
        waits.append(taken - given_out)
    assert max(waits) == 15 - 1


def test_the_network_sees_no_more_than_its_window() -> None:
    model = Gains(ToyConfig(segment_samples=40))
    separator = LiveSeparator(model, hop_seconds=0.1, lookahead_seconds=0)
    for _ in range(30):
        separator.push(torch.zeros(2, 10))
    assert max(each.shape[-1] for each in model.inputs) == 40


def test_steps_are_faded_over() -> None:
    class Counting(Gains):
        def forward(self, mix: torch.Tensor) -> torch.Tensor:
            self.inputs.append(mix)
            return torch.full((1, 2, 2, mix.shape[-1]), float(len(self.inputs)))

    separator = LiveSeparator(Counting(), hop_seconds=0.1, lookahead_seconds=0.05)
    sound = torch.randn(2, 100)
    stems = separator.push(sound)[0, 0]
    assert len(stems) == 95
    steps = stems.diff().abs()
    assert float(steps.max()) < 1


@pytest.mark.parametrize("times", [{"hop_seconds": 0}, {"hop_seconds": 0.7}])
def test_times_that_do_not_fit_are_refused(times: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="do not fit into the window"):
        live(**times)


def test_sound_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\[2, time\]"):
        live().push(torch.zeros(1, 10))


def test_sound_that_is_not_finite_is_refused_and_spoils_nothing() -> None:
    separator, sound = live(), torch.randn(2, 60)
    wrong = torch.zeros(2, 5)
    wrong[1, 3] = torch.nan
    pieces = [separator.push(sound[:, :32])]
    with pytest.raises(AudioError, match="not finite at sample 35"):
        separator.push(wrong)
    pieces += [separator.push(sound[:, 32:]), separator.flush()]
    torch.testing.assert_close(torch.cat(pieces, dim=-1)[0], sound)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_times_that_are_none_are_refused(seconds: float) -> None:
    for name in ("hop_seconds", "lookahead_seconds"):
        with pytest.raises(ConfigError, match="is none to separate live with"):
            live(**{name: seconds})


def test_nothing_comes_of_nothing() -> None:
    assert live().flush().shape == (1, 2, 0)
