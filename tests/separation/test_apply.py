from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sonorant.errors import AudioError, ConfigError, ShapeError
from sonorant.separation.apply import apply, delay_samples, separate_pieces
from sonorant.separation.settings import Settings
from tests.separation.toys import Gains, Ramps, ToyConfig


def mixture(samples: int, channels: int = 2) -> Tensor:
    return torch.randn(1, channels, samples, generator=torch.Generator().manual_seed(samples))


def pieces_of(mix: Tensor, lengths: list[int]) -> list[Tensor]:
    """The mixture in pieces; the last one takes the rest."""
    cut, start = [], 0
    for length in lengths:
        cut.append(mix[..., start : start + length])
        start += length
    return [*cut, mix[..., start:]]


@pytest.mark.parametrize("samples", [1, 17, 64, 65, 500])
@pytest.mark.parametrize("shifts", [0, 3])
@pytest.mark.parametrize("split", [True, False])
def test_a_separator_that_scales_gives_the_scaled_mixture(
    samples: int, shifts: int, split: bool
) -> None:
    mix = mixture(samples)
    stems = apply(Gains(), mix, Settings(shifts=shifts, split=split))
    torch.testing.assert_close(stems[:, 0], 0.25 * mix)
    torch.testing.assert_close(stems[:, 1], 0.75 * mix)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 400),
    lengths=st.lists(st.integers(0, 90), max_size=8),
    shifts=st.integers(0, 2),
    batch_size=st.integers(1, 4),
    surroundings=st.integers(0, 9),
)
def test_pieces_give_the_same_stems_as_the_whole(
    samples: int, lengths: list[int], shifts: int, batch_size: int, surroundings: int
) -> None:
    model = Ramps(ToyConfig(surroundings=surroundings))
    chosen = Settings(shifts=shifts, batch_size=batch_size, overlap=0.3)
    mix = mixture(samples)
    whole = apply(model, mix, Settings(shifts=shifts, overlap=0.3))
    pieces = list(separate_pieces(model, pieces_of(mix, lengths), chosen))
    torch.testing.assert_close(torch.cat(pieces, dim=-1), whole)


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 400),
    first=st.integers(0, 420),
    shifts=st.integers(0, 2),
    overlap=st.sampled_from([0.0, 0.25, 0.6]),
)
def test_one_can_go_on_where_one_stopped(
    samples: int, first: int, shifts: int, overlap: float
) -> None:
    model = Ramps(ToyConfig(surroundings=5))
    chosen = Settings(shifts=shifts, overlap=overlap)
    mix = mixture(samples)
    whole = apply(model, mix, chosen)
    rest = list(separate_pieces(model, [mix], chosen, first=first))
    joined = torch.cat([whole[..., :0], *rest], dim=-1)
    torch.testing.assert_close(joined, whole[..., first:])


def test_live_stems_are_as_late_as_stated() -> None:
    model = Ramps(ToyConfig(surroundings=4))
    delay = delay_samples(model)
    assert delay == 64 + 4
    mix = mixture(1000)
    taken = 0

    def one_by_one():
        nonlocal taken
        for sample in mix.split(1, dim=-1):
            taken += 1
            yield sample

    made, delays = 0, []
    for piece in separate_pieces(model, one_by_one()):
        delays.append(taken - made)
        made += piece.shape[-1]
    assert max(delays) == delay
    assert made == 1000


def test_memory_does_not_grow_with_the_sound() -> None:
    alive: list[int] = []

    def endless():
        for _ in range(200):
            yield torch.zeros(1, 2, 64)

    model = Gains()
    for piece in separate_pieces(model, endless(), Settings(shifts=2)):
        alive.append(piece.shape[-1])
        model.inputs.clear()
    assert sum(alive) == 200 * 64
    assert max(alive) <= 2 * 64


def test_seeds_draw_what_the_published_package_draws() -> None:
    model = Ramps()
    mix = mixture(300)
    stems = apply(model, mix, Settings(shifts=1, seed=7, split=False))
    random.seed(7)
    begin = 50 - random.randint(0, 50)
    assert model.inputs[-1].shape[-1] == 300 + begin
    padded = torch.nn.functional.pad(mix, (begin, 0))
    torch.testing.assert_close(stems, Ramps()(padded)[..., begin:])


def test_short_segments_are_filled_up_with_what_surrounds_them() -> None:
    model = Gains(ToyConfig(surroundings=8))
    mix = mixture(100)
    apply(model, mix, Settings(overlap=0.0))
    torch.testing.assert_close(model.inputs[1][..., :8], mix[..., 56:64])
    assert bool((model.inputs[1][..., -8:] == 0).all())


def test_batches_take_several_segments_at_once() -> None:
    model = Gains()
    apply(model, mixture(64 * 4), Settings(overlap=0.0, batch_size=3))
    assert [len(each) for each in model.inputs] == [3, 1]


def test_only_the_stems_asked_for_come_out() -> None:
    mix = mixture(100)
    stems = apply(Gains(), mix, stems=["source1"])
    torch.testing.assert_close(stems, 0.75 * mix[:, None])
    with pytest.raises(ConfigError, match="no stem flute; it has source0, source1"):
        apply(Gains(), mix, stems=["flute"])
    with pytest.raises(ConfigError, match="no stem"):
        apply(Gains(), mix, stems=[])


def test_several_mixtures_at_once() -> None:
    mixes = torch.cat([mixture(100), -mixture(100)])
    stems = apply(Gains(), mixes, Settings(batch_size=2))
    torch.testing.assert_close(stems[0], -stems[1])


def test_progress_ends_with_all_seconds_done() -> None:
    told: list[tuple[float, float]] = []
    apply(Gains(), mixture(500), progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (5.0, 5.0)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


@pytest.mark.parametrize(
    "wrong",
    [
        {"shifts": -1},
        {"overlap": 1.0},
        {"overlap": float("nan")},
        {"segment_seconds": 0},
        {"segment_seconds": float("inf")},
        {"transition_power": 0.5},
        {"batch_size": 0},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Settings(**wrong)


def test_segments_that_do_not_advance_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not advance"):
        apply(Gains(), mixture(100), Settings(segment_seconds=0.01, overlap=0.9))


def test_segments_longer_than_the_network_takes_are_refused() -> None:
    class Bounded(Gains):
        longest_samples = 64

    with pytest.raises(ConfigError, match=r"at most 0\.64 s, got 0\.8 s"):
        apply(Bounded(), mixture(100), Settings(segment_seconds=0.8))
    with pytest.raises(ConfigError, match=r"at most 0\.64 s, got 1 s"):
        apply(Bounded(), mixture(100), Settings(split=False))


@pytest.mark.parametrize("shape", [(2, 100), (1, 1, 100), (1, 2, 0)])
def test_mixtures_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="takes"):
        apply(Gains(), torch.zeros(shape))


def test_a_model_in_training_is_used_as_it_will_be() -> None:
    class Learning(Gains):
        def forward(self, mix: Tensor) -> Tensor:
            assert not self.training
            return super().forward(mix)

    model = Learning().train()
    apply(model, mixture(100))
    assert model.training


def test_a_model_of_doubles_separates() -> None:
    stems = apply(Gains().double(), mixture(100))
    assert stems.dtype == torch.float32
    torch.testing.assert_close(stems[:, 0], 0.25 * mixture(100))


def test_stems_that_are_not_finite_are_refused() -> None:
    model = Gains()
    with torch.no_grad():
        model.gains[1] = torch.nan
    assert apply(model, mixture(200), stems=["source0"]).isfinite().all()
    with pytest.raises(AudioError, match="not finite"):
        apply(model, mixture(200))
