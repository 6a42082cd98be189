import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonorant.dsp.overlap_add import OverlapAdder, overlap_add, triangular_weights
from sonorant.errors import ShapeError


def by_definition(frames: list[torch.Tensor], stride: int) -> torch.Tensor:
    total = max(index * stride + frame.shape[-1] for index, frame in enumerate(frames))
    weights = triangular_weights(frames[0].shape[-1], torch.float64)
    summed = torch.zeros(*frames[0].shape[:-1], total, dtype=torch.float64)
    summed_weights = torch.zeros(total, dtype=torch.float64)
    for index, frame in enumerate(frames):
        part = slice(index * stride, index * stride + frame.shape[-1])
        summed[..., part] += frame * weights[: frame.shape[-1]]
        summed_weights[part] += weights[: frame.shape[-1]]
    return summed / summed_weights


@settings(deadline=None, max_examples=60)
@given(length=st.integers(1, 50), count=st.integers(1, 6), data=st.data())
def test_equals_the_definition(length: int, count: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, length))
    last = data.draw(st.integers(1, length))
    lengths = [length] * (count - 1) + [last if count > 1 else length]
    frames = [torch.randn(2, 1, samples, dtype=torch.float64) for samples in lengths]
    torch.testing.assert_close(overlap_add(frames, stride), by_definition(frames, stride))


@pytest.mark.parametrize("samples", [48_000, 60_001])
def test_pieces_of_a_signal_join_to_the_signal(samples: int) -> None:
    x = torch.randn(1, 2, samples)
    frames = [x[..., start : start + 48_000] for start in range(0, samples, 47_520)]
    torch.testing.assert_close(overlap_add(frames, 47_520), x)


def test_each_piece_makes_one_stride_final_and_little_is_kept() -> None:
    adder = OverlapAdder(stride=7)
    frames = [torch.randn(3, 10) for _ in range(20)]
    sizes = [adder.push(frame).shape[-1] for frame in frames]
    assert sizes == [0] + [7] * 19
    assert adder._sum.shape == (3, 10)
    assert adder.flush().shape == (3, 10)
    assert adder.push(frames[0][:, :5]).shape == (3, 0)
    torch.testing.assert_close(adder.flush(), frames[0][:, :5])


def test_gradients_flow() -> None:
    frames = [torch.randn(1, 6, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda *pieces: overlap_add(pieces, 4), frames)


def test_pieces_that_cannot_be_joined_are_refused() -> None:
    with pytest.raises(ShapeError, match="no piece"):
        overlap_add([], 3)
    with pytest.raises(ShapeError, match="only shorter ones"):
        overlap_add([torch.zeros(1, 4), torch.zeros(1, 5)], 3)
    with pytest.raises(ShapeError, match="gap"):
        overlap_add([torch.zeros(1, 4), torch.zeros(1, 4)], 5)
    with pytest.raises(ShapeError, match="stride=0"):
        OverlapAdder(0)
