"""Packing into bits: nothing lost, nothing wasted, the documented order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sonorant.codec.bits import pack_bits, unpack_bits


@given(bits=st.integers(1, 16), data=st.data())
def test_bits_come_back_as_packed(bits: int, data: st.DataObject) -> None:
    values = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=1)), np.int64)
    packed = pack_bits(values, bits)
    assert len(packed) == -(-len(values) * bits // 8)
    assert unpack_bits(packed, len(values), bits).tolist() == values.tolist()


def test_bits_lie_most_significant_first() -> None:
    assert pack_bits(np.array([0b1011, 0b0001, 0b1]), 4) == bytes([0b10110001, 0b00010000])
