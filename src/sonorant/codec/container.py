"""The `.snr` container: tokens of one sound, packed into bits, with what decoding them needs.

The layout is our own; `docs/container.md` gives it byte by byte. A header names the model and the
sound it came from, blocks of packed tokens follow, an end block gives the lengths. Every part ends
in a checksum that also covers all parts before it, so a damaged, shortened, shuffled or continued
file is always refused. Writing and reading go block by block: memory does not grow with the sound.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from sonorant.codec.bits import Tokens, pack_bits, unpack_bits
from sonorant.codec.bounded_file import BoundedFile
from sonorant.codec.container_layout import (
    CHECKSUM,
    CODED,
    CODED_SIZE,
    COUNT,
    END,
    FINGERPRINT_BYTES,
    FIXED,
    MAGIC,
    SCALE,
    SCALED,
    SEGMENTED,
    VERSION,
    Header,
    Totals,
)
from sonorant.codec.encoded import Encoded
from sonorant.codec.range_coder import CodingError
from sonorant.codec.whole_file import WholeFile
from sonorant.errors import FormatError, ShapeError

# Frames per block where the codec has no segments of its own: ten seconds at 75 frames a second,
# so that the 6 bytes around a block are nothing beside its tokens.
STORED_BLOCK_FRAMES = 750
# A few coded bytes may stand for many frames, so their own number must not decide about memory.
MOST_CODED_FRAMES = 4096


@dataclass(frozen=True)
class Block:
    """Tokens int64 `[1, codebooks, frames]` and, where the codec normalises, their volume."""

    tokens: Tensor
    scale: float | None


class TokenCoder(Protocol):
    """What turns the tokens of one stream into bytes and back, block by block."""

    def restart(self) -> None:
        """Begin a new stream."""

    def encode(self, tokens: Tokens) -> bytes:
        """Bytes of tokens [frames, codebooks]."""

    def decode(self, data: bytes, frames: int, codebooks: int) -> Tokens:
        """The tokens [frames, codebooks]. Raises: CodingError if these bytes are of no tokens."""


class ContainerWriter:
    """Write a container block by block.

    Use it in a `with` statement and end with `finish`; the file gets its name only then. Without
    it, or after an error, nothing is left.
    Raises: FormatError if the file cannot be written.
    """

    def __init__(self, path: str | Path, header: Header, coder: TokenCoder | None = None) -> None:
        if bool(header.entropy) != (coder is not None):
            raise FormatError("a container is coded by a coder just when its header says so")
        self.path, self.header, self._coder = Path(path), header, coder
        self._pending: Tokens = np.empty((0, header.codebooks), np.int64)  # [frames, codebooks]
        self._frames = self._samples = self._checksum = 0
        self._file = WholeFile(self.path)
        try:
            self._append(header.pack())
        except BaseException:
            self._file.discard()
            raise

    def __enter__(self) -> ContainerWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.discard()

    def write(self, encoded: Encoded) -> None:
        """Append the tokens of the next stretch of sound.

        Raises: ShapeError if they are not one row of the header's codebooks, or their segments and
        volumes are not what it announces; FormatError for a token outside the codebook.
        """
        self._check(encoded)
        tokens = encoded.tokens[0].t().cpu().numpy()
        self._samples += encoded.samples
        if not self.header.segmented:
            self._pending = np.concatenate([self._pending, tokens])
            while len(self._pending) >= STORED_BLOCK_FRAMES:
                self._append_block(self._pending[:STORED_BLOCK_FRAMES])
                self._pending = self._pending[STORED_BLOCK_FRAMES:]
            return
        scales = [None] * len(encoded.segment_frames)
        if encoded.scales is not None:
            scales = encoded.scales[0].tolist()
        start = 0
        for frames, scale in zip(encoded.segment_frames, scales, strict=True):
            self._append_block(tokens[start : start + frames], scale)
            start += frames

    def finish(self, source_samples: int) -> None:
        """Write the lengths, and give the file its name."""
        if len(self._pending):
            self._append_block(self._pending)
        totals = Totals(self._frames, self._samples, source_samples)
        if not totals.fit(self.header):
            raise FormatError(
                f"{totals.samples} samples at {self.header.sample_rate} Hz are not the sound of "
                f"{source_samples} samples at {self.header.source_sample_rate} Hz"
            )
        self._append(COUNT.pack(0) + END.pack(totals.frames, totals.samples, totals.source_samples))
        self._file.complete()

    def _check(self, encoded: Encoded) -> None:
        header = self.header
        if tuple(encoded.tokens.shape[:2]) != (1, header.codebooks):
            raise ShapeError(
                f"this container takes tokens [1, {header.codebooks}, frames], "
                f"got {list(encoded.tokens.shape)}"
            )
        segments = len(encoded.segment_frames)
        volumes = None if encoded.scales is None else tuple(encoded.scales.shape)
        expected = (1, segments) if header.scaled else None
        if (header.segmented != bool(segments) and encoded.frames) or volumes != expected:
            raise ShapeError("segments and volumes of the tokens differ from the header's promise")
        if (
            encoded.frames
            and not 0
            <= int(encoded.tokens.min())
            <= int(encoded.tokens.max())
            < header.codebook_size
        ):
            raise FormatError(f"a token is outside the codebook of {header.codebook_size}")

    def _append_block(self, tokens: Tokens, scale: float | None = None) -> None:
        volume = b"" if scale is None else SCALE.pack(scale)
        self._append(COUNT.pack(len(tokens)) + volume + self._packed(tokens))
        self._frames += len(tokens)

    def _packed(self, tokens: Tokens) -> bytes:
        if self._coder is None:
            return pack_bits(tokens.reshape(-1), self.header.token_bits)
        if len(tokens) > MOST_CODED_FRAMES:
            raise FormatError(
                f"a segment of {len(tokens)} frames is too long to be entropy coded; "
                f"the limit is {MOST_CODED_FRAMES}"
            )
        if self.header.segmented:
            self._coder.restart()
        coded = self._coder.encode(tokens)
        return CODED_SIZE.pack(len(coded), _token_checksum(tokens)) + coded

    def _append(self, data: bytes) -> None:
        self._checksum = zlib.crc32(data, self._checksum)
        self._file.write(data + CHECKSUM.pack(self._checksum))


class ContainerReader:
    """A container, checked from end to end when it is opened.

    header, totals: what it says. size_bytes: of the file.
    Raises: FormatError saying what is wrong with it; OSError if it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FormatError(f"{path} does not exist, or is not a file")
        self.size_bytes = self.path.stat().st_size
        with self.path.open("rb") as file:
            parts = _Parts(file, self.path)
            self.header = parts.header()
            for part in parts.blocks(self.header):
                if not self.header.entropy:
                    self._unpacked(part)
            self.totals = parts.totals

    def blocks(self, coder: TokenCoder | None = None) -> Iterator[Block]:
        """The tokens, block by block.

        coder: of the entropy model that the header asks for.
        Raises: FormatError if the coder makes other tokens of the bytes than were written.
        """
        if bool(self.header.entropy) != (coder is not None):
            raise FormatError(f"{self.path} is decoded by a coder just when its header says so")
        with self.path.open("rb") as file:
            parts = _Parts(file, self.path)
            for part in parts.blocks(parts.header()):
                tokens = self._unpacked(part) if coder is None else self._decoded(part, coder)
                frames = torch.from_numpy(np.ascontiguousarray(tokens.T))
                yield Block(frames[None], part.scale)

    def _unpacked(self, part: _CodedBlock) -> Tokens:
        header = self.header
        values = unpack_bits(part.data, part.frames * header.codebooks, header.token_bits)
        if values.max() >= header.codebook_size:
            raise FormatError(f"{self.path} holds a token outside its codebook")
        return values.reshape(part.frames, header.codebooks)

    def _decoded(self, part: _CodedBlock, coder: TokenCoder) -> Tokens:
        if self.header.segmented:
            coder.restart()
        try:
            tokens = coder.decode(part.data, part.frames, self.header.codebooks)
        except CodingError as error:
            raise FormatError(self._other_tokens(str(error))) from error
        if _token_checksum(tokens) != part.token_checksum:
            raise FormatError(self._other_tokens("their checksum does not fit"))
        return tokens

    def _other_tokens(self, reason: str) -> str:
        return (
            f"the tokens of {self.path} do not come out as they went in ({reason}), though its "
            "bytes are undamaged: a forgery, or a processor or library that does not add whole "
            "numbers exactly; try another machine"
        )

    @property
    def coded(self) -> bool:
        """Whether the tokens are coded with an entropy model."""
        return bool(self.header.entropy)

    @property
    def duration_seconds(self) -> float:
        return self.totals.source_samples / self.header.source_sample_rate


@dataclass(frozen=True)
class _CodedBlock:
    """A block as it stands in the file; `token_checksum` of entropy-coded ones only."""

    frames: int
    scale: float | None
    data: bytes
    token_checksum: int = 0


class _Parts:
    """The parts of an open container, in order, none of them believed before its checksum."""

    totals: Totals

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = BoundedFile(file, path), path
        self._checksum = 0
        if not self._file.left:
            raise FormatError(f"{path} is empty")

    def header(self) -> Header:
        """The first part."""
        fixed = self._file.take(FIXED.size)
        magic, version, flags, codebooks, channels, size, *rest, name_bytes = FIXED.unpack(fixed)
        if magic != MAGIC:
            raise FormatError(f"{self._path} is not a Sonorant container")
        if version != VERSION:
            raise FormatError(
                f"{self._path} is a container of version {version}; this Sonorant reads version "
                f"{VERSION}: update it, or compress the sound again"
            )
        if flags & ~(SEGMENTED | SCALED | CODED):
            raise FormatError(f"{self._path} is damaged, or has the unknown flags {flags:#x}")
        name = self._file.take(name_bytes)
        entropy = self._file.take(FINGERPRINT_BYTES if flags & CODED else 0)
        self._check(fixed + name + entropy)
        sample_rate, source_rate, source_channels, fingerprint = rest
        try:
            return Header(
                name.decode(),
                fingerprint,
                sample_rate,
                channels,
                codebooks,
                size,
                source_rate,
                source_channels,
                bool(flags & SEGMENTED),
                bool(flags & SCALED),
                entropy,
            )
        except (FormatError, UnicodeDecodeError) as error:
            raise FormatError(f"{self._path} has an impossible header: {error}") from error

    def blocks(self, header: Header) -> Iterator[_CodedBlock]:
        """The parts after the header; sets `totals` once all are read."""
        frames = 0
        while count := self._count():
            yield self._block(header, count)
            frames += count
        end = self._file.take(END.size)
        self._check(COUNT.pack(0) + end)
        self.totals = Totals(*END.unpack(end))
        self._file.check_end()
        if self.totals.frames != frames or not self.totals.fit(header):
            raise FormatError(f"{self._path} gives lengths that its content does not have")

    def _count(self) -> int:
        count: int = COUNT.unpack(self._file.take(COUNT.size))[0]
        return count

    def _block(self, header: Header, count: int) -> _CodedBlock:
        volume = self._file.take(SCALE.size if header.scaled else 0)
        size, token_checksum, sizes = header.packed_bytes(count), 0, b""
        if header.entropy:
            sizes = self._file.take(CODED_SIZE.size)
            size, token_checksum = CODED_SIZE.unpack(sizes)
        data = self._file.take(size)
        self._check(COUNT.pack(count) + volume + sizes + data)
        if header.entropy and count > MOST_CODED_FRAMES:
            raise FormatError(f"{self._path} has a coded block of {count} frames: too many")
        scale = SCALE.unpack(volume)[0] if header.scaled else None
        if scale is not None and not 0 < scale < float("inf"):
            raise FormatError(f"{self._path} gives a segment the volume {scale}")
        return _CodedBlock(count, scale, data, token_checksum)

    def _check(self, part: bytes) -> None:
        self._checksum = zlib.crc32(part, self._checksum)
        if CHECKSUM.unpack(self._file.take(CHECKSUM.size))[0] != self._checksum:
            raise FormatError(f"{self._path} is damaged: a checksum does not fit")


def _token_checksum(tokens: Tokens) -> int:
    """CRC-32 of tokens as 16-bit little-endian numbers, frame by frame."""
    return zlib.crc32(tokens.astype("<u2").tobytes())
