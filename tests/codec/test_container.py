"""The container: bits in and out, streaming, and refusal of everything that is not as written."""

import os
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonorant.codec import container
from sonorant.codec.container import STORED_BLOCK_FRAMES, ContainerReader, ContainerWriter
from sonorant.codec.container_layout import Header
from sonorant.codec.encoded import Encoded
from sonorant.errors import FormatError, ShapeError
from tests.codec.damage import check_cut_files_are_refused, check_flipped_bits_are_refused

HEADER = Header(
    model="tests/tiny",
    fingerprint=bytes(range(16)),
    sample_rate=24000,
    channels=1,
    codebooks=2,
    codebook_size=1024,
    source_sample_rate=48000,
    source_channels=2,
)
SEGMENTS = replace(HEADER, segmented=True, scaled=True)
HOP = 320


def tokens(frames: int, header: Header = HEADER, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(header.codebook_size, (1, header.codebooks, frames), generator=generator)


def write(path: Path, parts: list[Encoded], header: Header = HEADER) -> Path:
    samples = sum(part.samples for part in parts)
    with ContainerWriter(path, header) as writer:
        for part in parts:
            writer.write(part)
        writer.finish(samples * header.source_sample_rate // header.sample_rate)
    return path


def encoded(frames: int, header: Header = HEADER, seed: int = 0) -> Encoded:
    return Encoded(tokens(frames, header, seed), frames * HOP)


def segments(*frames: int) -> Encoded:
    scales = torch.rand(1, len(frames)) + 0.1
    return Encoded(tokens(sum(frames)), sum(frames) * HOP, scales, frames)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 2 * STORED_BLOCK_FRAMES + 3), min_size=1, max_size=5),
    size=st.integers(2, 65536),
    codebooks=st.integers(1, 9),
)
def test_any_chunking_reads_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], size: int, codebooks: int
) -> None:
    header = replace(HEADER, codebook_size=size, codebooks=codebooks)
    lengths[-1] = max(lengths[-1], 1)
    parts = [encoded(frames, header, seed) for seed, frames in enumerate(lengths)]
    reader = ContainerReader(write(tmp_path_factory.mktemp("c") / "a.snr", parts, header))
    assert reader.header == header
    assert reader.totals.frames == sum(lengths)
    assert reader.totals.samples == sum(lengths) * HOP
    assert reader.totals.source_samples == 2 * sum(lengths) * HOP
    read = torch.cat([block.tokens for block in reader.blocks()], dim=-1)
    assert torch.equal(read, torch.cat([part.tokens for part in parts], dim=-1))
    assert all(block.tokens.shape[-1] <= STORED_BLOCK_FRAMES for block in reader.blocks())


def test_segments_keep_their_lengths_and_volumes(tmp_path: Path) -> None:
    parts = [segments(5, 5), segments(), segments(5, 2, 1)]
    reader = ContainerReader(write(tmp_path / "a.snr", parts, SEGMENTS))
    blocks = list(reader.blocks())
    assert [block.tokens.shape[-1] for block in blocks] == [5, 5, 5, 2, 1]
    volumes = torch.cat([part.scales[0] for part in parts if part.scales is not None])
    assert [block.scale for block in blocks] == volumes.tolist()


def test_size_is_that_of_the_documented_layout(tmp_path: Path) -> None:
    path = write(tmp_path / "a.snr", [encoded(STORED_BLOCK_FRAMES + 10)])
    header = 43 + len("tests/tiny") + 4
    blocks = 2 + STORED_BLOCK_FRAMES * 20 // 8 + 4 + 2 + 10 * 20 // 8 + 4
    assert path.stat().st_size == header + blocks + 2 + 24 + 4


@pytest.fixture
def two_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A container with blocks of four frames, small enough to be damaged everywhere."""
    monkeypatch.setattr(container, "STORED_BLOCK_FRAMES", 4)
    return write(tmp_path / "a.snr", [encoded(10)])


def test_a_file_cut_short_anywhere_is_refused(two_blocks: Path) -> None:
    check_cut_files_are_refused(two_blocks, ContainerReader)


def test_a_flipped_bit_anywhere_is_refused(two_blocks: Path) -> None:
    check_flipped_bits_are_refused(two_blocks, ContainerReader)


def test_more_after_the_end_is_refused(two_blocks: Path) -> None:
    two_blocks.write_bytes(two_blocks.read_bytes() * 2)
    with pytest.raises(FormatError, match="after its end"):
        ContainerReader(two_blocks)


def test_a_removed_or_repeated_block_is_refused(two_blocks: Path) -> None:
    whole = two_blocks.read_bytes()
    start = 43 + len("tests/tiny") + 4
    block = 2 + 4 * 20 // 8 + 4
    first, second = whole[start : start + block], whole[start + block : start + 2 * block]
    head, tail = whole[:start], whole[start + 2 * block :]
    for blocks in (second, second + first, first + first + second, first + second + second):
        two_blocks.write_bytes(head + blocks + tail)
        with pytest.raises(FormatError):
            ContainerReader(two_blocks)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"RIFF" + bytes(100), "not a Sonorant container"),
        (container.MAGIC + bytes([2]) + bytes(100), "of version 2"),
        (container.MAGIC, "is cut short"),
    ],
)
def test_other_files_are_refused_with_the_reason(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "a.snr").write_bytes(content)
    with pytest.raises(FormatError, match=reason):
        ContainerReader(tmp_path / "a.snr")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="does not exist"):
        ContainerReader(tmp_path / "a.snr")


def test_a_length_beyond_the_file_allocates_nothing(tmp_path: Path) -> None:
    """A checksummed header of the widest tokens, then a block that says it has 65 535 frames."""
    header = replace(HEADER, codebooks=255, codebook_size=65536)
    path = tmp_path / "a.snr"
    packed = header.pack()
    checksum = container.zlib.crc32(packed).to_bytes(4, "little")
    path.write_bytes(packed + checksum + b"\xff\xff" + bytes(1000))
    with pytest.raises(FormatError, match="33422850 bytes should follow, 1000 are left"):
        ContainerReader(path)


def forged(path: Path, header: Header, *parts: bytes) -> Path:
    """A file whose checksums all fit, as only a forger writes it."""
    checksum, data = 0, b""
    for part in (header.pack(), *parts):
        checksum = container.zlib.crc32(part, checksum)
        data += part + checksum.to_bytes(4, "little")
    path.write_bytes(data)
    return path


def end(frames: int, samples: int, source_samples: int) -> bytes:
    return b"\0\0" + container.END.pack(frames, samples, source_samples)


@pytest.mark.parametrize(
    "lengths",
    [(4, 100, 200), (3, 100, 205), (3, 100, 2**63), (3, 2**63, 200), (3, 0, 0), (2**63, 100, 200)],
)
def test_lengths_that_the_content_does_not_have_are_refused(
    tmp_path: Path, lengths: tuple[int, int, int]
) -> None:
    header = replace(HEADER, codebooks=1, codebook_size=256)
    forged(tmp_path / "good.snr", header, b"\3\0abc", end(3, 100, 200))
    assert ContainerReader(tmp_path / "good.snr").totals.frames == 3
    with pytest.raises(FormatError, match="lengths"):
        ContainerReader(forged(tmp_path / "a.snr", header, b"\3\0abc", end(*lengths)))


def test_a_token_outside_the_codebook_is_refused(tmp_path: Path) -> None:
    header = replace(HEADER, codebooks=1, codebook_size=200)
    path = forged(tmp_path / "a.snr", header, b"\1\0\xff", end(1, 100, 200))
    with pytest.raises(FormatError, match="outside its codebook"):
        ContainerReader(path)


@pytest.mark.parametrize("volume", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_volume_that_is_none_is_refused(tmp_path: Path, volume: float) -> None:
    header = replace(SEGMENTS, codebooks=1, codebook_size=256)
    block = b"\1\0" + container.SCALE.pack(volume) + b"a"
    with pytest.raises(FormatError, match="volume"):
        ContainerReader(forged(tmp_path / "a.snr", header, block, end(1, 100, 200)))


@pytest.mark.parametrize(
    "change",
    [
        {"codebooks": 256},
        {"codebook_size": 1},
        {"codebook_size": 65537},
        {"source_sample_rate": 0},
        {"source_channels": 0},
        {"fingerprint": b""},
        {"model": "x" * 256},
        {"scaled": True},
    ],
)
def test_a_header_has_limits(change: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        replace(HEADER, **change)  # type: ignore[arg-type]


def test_what_does_not_suit_the_header_is_not_written(tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "a.snr", HEADER) as writer:
        with pytest.raises(ShapeError, match="takes tokens"):
            writer.write(Encoded(tokens(3)[:, :1], 3))
        with pytest.raises(ShapeError, match="segments"):
            writer.write(segments(3))
        with pytest.raises(FormatError, match="outside the codebook"):
            writer.write(Encoded(tokens(3) + 1024, 3))
        with pytest.raises(FormatError, match="outside the codebook"):
            writer.write(Encoded(tokens(3) - 1024, 3))


def break_off(path: Path, source_samples: int | None) -> None:
    """Write a container that is interrupted, or ends with this length."""
    with ContainerWriter(path, HEADER) as writer:
        writer.write(encoded(3))
        if source_samples is None:
            raise KeyboardInterrupt
        writer.finish(source_samples)


def test_nothing_is_left_without_finish_or_after_an_error(tmp_path: Path) -> None:
    with ContainerWriter(tmp_path / "a.snr", HEADER) as writer:
        writer.write(encoded(3))
    with pytest.raises(KeyboardInterrupt):
        break_off(tmp_path / "a.snr", None)
    with pytest.raises(FormatError, match="are not the sound"):
        break_off(tmp_path / "a.snr", 5)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("room", [10, 1000])
def test_a_full_disk_is_an_error_that_leaves_nothing(tmp_path: Path, room: int) -> None:
    """The limit on a file's size stands in for the disk's: the write fails the same way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(FormatError, match=r"cannot write .*a\.snr: File too large"):
            write(tmp_path / "a.snr", [encoded(STORED_BLOCK_FRAMES)] * 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


def test_a_target_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "a.snr"):
        with pytest.raises(FormatError, match="cannot write"):
            ContainerWriter(path, HEADER)
