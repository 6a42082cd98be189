"""The range coder: what goes in comes out, in as many bits as it should, and damage shows."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonorant.codec.range_coder import (
    ONE,
    CodingError,
    Counts,
    RangeDecoder,
    RangeEncoder,
    published_counts,
    shares,
)


def random_counts(symbols: int, size: int, sharpness: float, seed: int) -> tuple[Counts, Counts]:
    generator = torch.Generator().manual_seed(seed)
    probabilities = (sharpness * torch.randn(symbols, size, generator=generator)).softmax(-1)
    drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    return published_counts(probabilities).numpy(), drawn.numpy()


def coded(counts: Counts, symbols: Counts) -> bytes:
    encoder = RangeEncoder()
    encoder.push(shares(counts, symbols))
    encoder.flush()
    return encoder.take()


def decoded(data: bytes, counts: Counts) -> list[int]:
    stream = io.BytesIO(data)
    decoder = RangeDecoder(lambda: stream.read(1))
    symbols = [decoder.pull(row) for row in counts]
    decoder.finish()
    assert stream.read() == b""
    return symbols


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(0, 60),
    size=st.integers(2, 300),
    sharpness=st.floats(0, 12),
    seed=st.integers(0, 1000),
)
def test_what_goes_in_comes_out_and_no_byte_more_is_read(
    count: int, size: int, sharpness: float, seed: int
) -> None:
    counts, symbols = random_counts(count, size, sharpness, seed)
    assert decoded(coded(counts, symbols), counts) == symbols.tolist()


def test_size_is_the_information_content() -> None:
    counts, symbols = random_counts(4000, 50, 2.0, 0)
    widths = np.array([end - start for start, end in shares(counts, symbols)])
    information = -np.log2(widths / ONE).sum()
    assert information / 8 <= len(coded(counts, symbols)) <= information / 8 + 10


def test_any_pieces_give_the_same_bytes() -> None:
    counts, symbols = random_counts(50, 40, 3.0, 1)
    encoder, data = RangeEncoder(), b""
    pairs = shares(counts, symbols)
    for start, end in pairwise([0, 1, 1, 20, 50]):
        encoder.push(pairs[start:end])
        data += encoder.take()
    encoder.flush()
    assert data + encoder.take() == coded(counts, symbols)


def test_one_encoder_writes_streams_one_after_the_other() -> None:
    counts, symbols = random_counts(20, 40, 3.0, 2)
    encoder = RangeEncoder()
    for _ in range(2):
        encoder.push(shares(counts, symbols))
        encoder.flush()
        assert encoder.take() == coded(counts, symbols)


def test_bits_that_end_early_are_told_at_every_length() -> None:
    counts, symbols = random_counts(30, 100, 1.0, 3)
    data = coded(counts, symbols)
    for length in range(len(data)):
        with pytest.raises(CodingError, match="end too early"):
            decoded(data[:length], counts)


def test_every_flipped_bit_is_told() -> None:
    """The decoder may get through, but then it does not end where the encoder did."""
    counts, symbols = random_counts(30, 100, 1.0, 4)
    data = coded(counts, symbols)
    for position in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(CodingError):
            decoded(bytes(damaged), counts)


def test_other_probabilities_are_told() -> None:
    """A difference of one part in 2^24 early on is enough to lose the thread."""
    counts, symbols = random_counts(50, 100, 1.0, 5)
    other = counts.copy()
    other[0, :-1] += 1
    with pytest.raises(CodingError):
        decoded(coded(counts, symbols), other)


def test_an_interval_across_a_power_of_two_is_not_followed_for_ever() -> None:
    """Shares that keep the middle: no bit becomes final, in either direction."""
    middle = (ONE // 2 - 1, ONE // 2 + 1)
    with pytest.raises(CodingError, match="no bit of them becomes final"):
        RangeEncoder().push([middle] * 100)
    counts = np.array([middle[0], middle[1], ONE])
    stream = io.BytesIO(bytes([254]) + bytes([255]) * 1000)  # 0.0111..., just below the middle
    decoder = RangeDecoder(lambda: stream.read(1))
    with pytest.raises(CodingError, match="never become final"):
        [decoder.pull(row) for row in [counts] * 100]


def test_every_symbol_has_a_share_even_without_probability() -> None:
    counts = published_counts(torch.tensor([0.0, 1.0, 0.0])).tolist()
    assert counts == [2, ONE - 2, ONE]
