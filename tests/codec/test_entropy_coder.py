"""Entropy-coded containers: tokens come back, files get smaller, and nothing false is believed."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonorant.codec import container
from sonorant.codec.container import MOST_CODED_FRAMES, ContainerReader, ContainerWriter
from sonorant.codec.container_layout import CODED_SIZE, Header
from sonorant.codec.encoded import Encoded
from sonorant.codec.entropy_coder import EntropyCoder
from sonorant.codec.entropy_coding import EntropyCore
from sonorant.codec.range_coder import CodingError, RangeDecoder
from sonorant.errors import FormatError
from tests.codec.damage import check_cut_files_are_refused, check_flipped_bits_are_refused
from tests.codec.test_container import HOP, end, forged
from tests.codec.test_entropy_exact import COMPACT, PUBLISHED, random_model, random_tokens

HEADER = Header(
    model="tests/tiny",
    fingerprint=bytes(range(16)),
    sample_rate=24000,
    channels=1,
    codebooks=3,
    codebook_size=16,
    source_sample_rate=24000,
    source_channels=1,
    entropy=bytes(range(16, 32)),
)
SEGMENTS = replace(HEADER, segmented=True, scaled=True)


def write(path: Path, parts: list[Encoded], header: Header = HEADER) -> Path:
    with ContainerWriter(path, header, EntropyCoder(random_model())) as writer:
        for part in parts:
            writer.write(part)
        writer.finish(sum(part.samples for part in parts))
    return path


def encoded(frames: int) -> Encoded:
    return Encoded(random_tokens(frames), frames * HOP)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    codebooks=st.integers(1, 4),
    published=st.booleans(),
)
def test_blocks_come_back_in_order(lengths: list[int], codebooks: int, published: bool) -> None:
    model = random_model(PUBLISHED if published else COMPACT)
    blocks = random_tokens(sum(lengths), codebooks)[0].t().numpy()
    writer, reader = EntropyCoder(model), EntropyCoder(model)
    for tokens in np.split(blocks, np.cumsum(lengths)[:-1]):
        coded = writer.encode(tokens)
        assert (reader.decode(coded, len(tokens), codebooks) == tokens).all()


def test_a_restarted_coder_begins_like_a_new_one() -> None:
    tokens = random_tokens(12)[0].t().numpy()
    coder = EntropyCoder(random_model())
    first = coder.encode(tokens)
    assert coder.encode(tokens) != first
    coder.restart()
    assert coder.encode(tokens) == first


def sampled(model: EntropyCore, frames: int) -> torch.Tensor:
    """Tokens as the model finds them likely: what random bits decode to."""
    generator = np.random.default_rng(0)
    coder, tokens = EntropyCoder(model), []
    decoder = RangeDecoder(lambda: generator.bytes(1))
    for _ in range(frames):
        hidden = coder._model.hidden(coder._previous(3), coder._state)
        coder._last = coder._model.ends.pull(hidden, 3, decoder)[None]
        tokens.append(coder._last[0])
    return torch.from_numpy(np.stack(tokens).T)[None]


def test_tokens_that_the_model_expects_take_fewer_bits() -> None:
    model = random_model()
    model.heads.bias.data *= 6
    tokens = sampled(model, 300)
    packed = tokens.numel() * 4 / 8
    coded = len(EntropyCoder(model).encode(tokens[0].t().numpy()))
    assert coded < 0.8 * packed


def test_a_container_gives_back_its_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "STORED_BLOCK_FRAMES", 4)
    path = write(tmp_path / "a.snr", [encoded(10)])
    reader = ContainerReader(path)
    assert reader.header == HEADER
    assert reader.coded
    blocks = list(reader.blocks(EntropyCoder(random_model())))
    assert [block.tokens.shape[-1] for block in blocks] == [4, 4, 2]
    assert torch.equal(torch.cat([block.tokens for block in blocks], -1), encoded(10).tokens)


def test_segments_stand_alone_and_keep_their_volumes(tmp_path: Path) -> None:
    scales = torch.tensor([[0.5, 0.25, 2.0]])
    tokens = random_tokens(5).repeat(1, 1, 2)
    part = Encoded(torch.cat([tokens, tokens[..., :2]], -1), 12 * HOP, scales, (5, 5, 2))
    reader = ContainerReader(write(tmp_path / "a.snr", [part], SEGMENTS))
    blocks = list(reader.blocks(EntropyCoder(random_model())))
    assert [block.scale for block in blocks] == [0.5, 0.25, 2.0]
    assert torch.equal(torch.cat([block.tokens for block in blocks], -1), part.tokens)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(container, "STORED_BLOCK_FRAMES", 4)
    return write(tmp_path / "a.snr", [encoded(6)])


def test_a_file_cut_short_anywhere_is_refused(small: Path) -> None:
    check_cut_files_are_refused(small, ContainerReader)


def test_a_flipped_bit_anywhere_is_refused(small: Path) -> None:
    check_flipped_bits_are_refused(small, ContainerReader)


def test_a_coded_length_beyond_the_file_allocates_nothing(tmp_path: Path) -> None:
    packed = HEADER.pack()
    checksum = zlib.crc32(packed).to_bytes(4, "little")
    block = b"\x04\0" + CODED_SIZE.pack(2**32 - 1, 0) + bytes(100)
    (tmp_path / "a.snr").write_bytes(packed + checksum + block)
    with pytest.raises(FormatError, match="4294967295 bytes should follow, 100 are left"):
        ContainerReader(tmp_path / "a.snr")


def test_a_few_bytes_cannot_claim_many_frames(tmp_path: Path) -> None:
    block = (MOST_CODED_FRAMES + 1).to_bytes(2, "little") + CODED_SIZE.pack(1, 0) + b"x"
    with pytest.raises(FormatError, match="too many"):
        ContainerReader(forged(tmp_path / "a.snr", HEADER, block, end(4097, 4097, 4097)))


def block_of(tokens: np.ndarray, coded: bytes) -> bytes:
    checksum = zlib.crc32(tokens.astype("<u2").tobytes())
    return len(tokens).to_bytes(2, "little") + CODED_SIZE.pack(len(coded), checksum) + coded


@pytest.mark.parametrize("change", ["more", "bits", "tokens"])
def test_coded_bytes_with_fitting_checksums_are_still_checked(tmp_path: Path, change: str) -> None:
    """A forger can make the file's checksums fit, but not the coder's end or the tokens'."""
    tokens = random_tokens(6)[0].t().numpy()
    coded = EntropyCoder(random_model()).encode(tokens)
    if change == "more":
        coded += b"\0"
    elif change == "bits":
        coded = bytes([coded[0] ^ 1]) + coded[1:]
    else:
        tokens = (tokens + 1) % 16
    path = forged(tmp_path / "a.snr", HEADER, block_of(tokens, coded), end(6, 6, 6))
    reader = ContainerReader(path)
    with pytest.raises(FormatError, match="do not come out as they went in"):
        list(reader.blocks(EntropyCoder(random_model())))


def test_another_model_is_told(tmp_path: Path) -> None:
    other = random_model()
    other.heads.bias.data += torch.linspace(0, 1, 16)
    tokens = random_tokens(12)[0].t().numpy()
    with pytest.raises(CodingError):
        EntropyCoder(other).decode(EntropyCoder(random_model()).encode(tokens), 12, 3)


def test_a_coder_goes_with_a_header_that_asks_for_it(tmp_path: Path, small: Path) -> None:
    with pytest.raises(FormatError, match="just when its header says so"):
        ContainerWriter(tmp_path / "b.snr", HEADER)
    with pytest.raises(FormatError, match="just when its header says so"):
        next(ContainerReader(small).blocks())
    with pytest.raises(FormatError, match="16 bytes"):
        replace(HEADER, entropy=b"short")


def test_a_segment_too_long_to_be_coded_is_refused(tmp_path: Path) -> None:
    part = Encoded(torch.zeros(1, 3, 4097, dtype=torch.long), 1, torch.ones(1, 1), (4097,))
    with pytest.raises(FormatError, match="too long to be entropy coded"):
        write(tmp_path / "a.snr", [part], SEGMENTS)
    assert list(tmp_path.iterdir()) == []
