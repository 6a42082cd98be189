"""The `.snr` container: tokens of one sound, packed into bits, with what decoding them needs.

The layout is our own; `docs/container.md` gives it byte by byte. A header names the model and the
sound it came from, blocks of packed tokens follow, an end block gives the lengths. Every part ends
in a checksum that also covers all parts before it, so a damaged, shortened, shuffled or continued
file is always refused. Writing and reading go block by block: memory does not grow with the sound.
"""

from __future__ import annotations

import os
import struct
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from sonorant.codec.bits import Tokens, pack_bits, unpack_bits
from sonorant.codec.encoded import Encoded
from sonorant.errors import FormatError, ShapeError

# As in PNG: a byte above 127 and line ends of both kinds give away files sent as text.
MAGIC = b"\x89SNR\r\n\x1a\n"
VERSION = 1
FIXED = struct.Struct("<8sBBBBIIIH16sB")
SEGMENTED, SCALED = 1, 2  # flags
CHECKSUM = struct.Struct("<I")
COUNT = struct.Struct("<H")
SCALE = struct.Struct("<f")
END = struct.Struct("<QQQ")
FINGERPRINT_BYTES = 16
LARGEST_CODEBOOK = 65_536
# Frames per block where the codec has no segments of its own: ten seconds at 75 frames a second,
# so that the 6 bytes around a block are nothing beside its tokens.
BLOCK_FRAMES = 750


@dataclass(frozen=True)
class Header:
    """What a container says before its tokens.

    model: the name `sonorant.load` knows the codec by, or "". fingerprint: 16 bytes that tell it
        from other models of the same name.
    sample_rate, channels: of the codec; source_sample_rate, source_channels: of the sound that was
        compressed, and that decompressing gives back.
    segmented: each block is one segment; scaled: and begins with the volume of that segment.
    Raises: FormatError for a value that the container has no room for.
    """

    model: str
    fingerprint: bytes
    sample_rate: int
    channels: int
    codebooks: int
    codebook_size: int
    source_sample_rate: int
    source_channels: int
    segmented: bool = False
    scaled: bool = False

    def __post_init__(self) -> None:
        limits = {
            "model name length": (len(self.model.encode()), 0, 255),
            "fingerprint length": (len(self.fingerprint), FINGERPRINT_BYTES, FINGERPRINT_BYTES),
            "sample rate": (self.sample_rate, 1, 2**32 - 1),
            "channel count": (self.channels, 1, 255),
            "codebook count": (self.codebooks, 1, 255),
            "codebook size": (self.codebook_size, 2, LARGEST_CODEBOOK),
            "source sample rate": (self.source_sample_rate, 1, 2**32 - 1),
            "source channel count": (self.source_channels, 1, 65_535),
        }
        for name, (value, lowest, highest) in limits.items():
            if not lowest <= value <= highest:
                raise FormatError(f"a container cannot have a {name} of {value}")
        if self.scaled and not self.segmented:
            raise FormatError("a container has volumes only where it has segments")

    @property
    def token_bits(self) -> int:
        """Bits of one token: enough for the largest."""
        return (self.codebook_size - 1).bit_length()

    def payload_bytes(self, frames: int) -> int:
        """Bytes of a block's tokens, and volume where there is one."""
        packed = -(-frames * self.codebooks * self.token_bits // 8)
        return packed + (SCALE.size if self.scaled else 0)

    def pack(self) -> bytes:
        """The header as it stands in the file, without its checksum."""
        name = self.model.encode()
        flags = SEGMENTED * self.segmented | SCALED * self.scaled
        return (
            FIXED.pack(
                MAGIC,
                VERSION,
                flags,
                self.codebooks,
                self.channels,
                self.codebook_size,
                self.sample_rate,
                self.source_sample_rate,
                self.source_channels,
                self.fingerprint,
                len(name),
            )
            + name
        )


@dataclass(frozen=True)
class Totals:
    """What a container says at its end: token frames, samples at the codec's rate and the source's
    (per channel)."""

    frames: int
    samples: int
    source_samples: int

    def fit(self, header: Header) -> bool:
        """Whether both lengths can be the same sound: equal but for rounding."""
        ours = self.samples * header.source_sample_rate
        theirs = self.source_samples * header.sample_rate
        rounding = 2 * max(header.sample_rate, header.source_sample_rate)
        return min(self.samples, self.source_samples) > 0 and abs(ours - theirs) <= rounding


@dataclass(frozen=True)
class Block:
    """Tokens int64 `[1, codebooks, frames]` and, where the codec normalises, their volume."""

    tokens: Tensor
    scale: float | None


class ContainerWriter:
    """Write a container block by block.

    Use it in a `with` statement and end with `finish`; the file gets its name only then. Without
    it, or after an error, nothing is left.
    Raises: FormatError if the file cannot be written.
    """

    def __init__(self, path: str | Path, header: Header) -> None:
        self.path, self.header = Path(path), header
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise FormatError(f"cannot write {path}: it is a folder, or its folder does not exist")
        self._pending: Tokens = np.empty((0, header.codebooks), np.int64)  # [frames, codebooks]
        self._frames = self._samples = self._checksum = 0
        self._part = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.part")
        with self._explained():
            # Unbuffered, so that an error shows where it happens and not when it is cleaned up.
            self._file = self._part.open("wb", buffering=0)
        try:
            self._append(header.pack())
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> ContainerWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._discard()

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
            while len(self._pending) >= BLOCK_FRAMES:
                self._append_block(self._pending[:BLOCK_FRAMES])
                self._pending = self._pending[BLOCK_FRAMES:]
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
        self._file.close()
        with self._explained():
            os.replace(self._part, self.path)

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
        packed = pack_bits(tokens.reshape(-1), self.header.token_bits)
        self._append(COUNT.pack(len(tokens)) + volume + packed)
        self._frames += len(tokens)

    def _append(self, data: bytes) -> None:
        self._checksum = zlib.crc32(data, self._checksum)
        left = memoryview(data + CHECKSUM.pack(self._checksum))
        with self._explained():
            while left:
                left = left[self._file.write(left) :]

    def _discard(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FormatError(f"cannot write {self.path}: {error.strerror}") from error


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
            for _ in parts.blocks(self.header):
                pass
            self.totals = parts.totals

    def blocks(self) -> Iterator[Block]:
        """The tokens, block by block."""
        with self.path.open("rb") as file:
            parts = _Parts(file, self.path)
            yield from parts.blocks(parts.header())

    @property
    def duration_seconds(self) -> float:
        return self.totals.source_samples / self.header.source_sample_rate


class _Parts:
    """The parts of an open container, in order, none of them believed before its checksum."""

    totals: Totals

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self._path = file, path
        self._left = os.fstat(file.fileno()).st_size
        self._checksum = 0
        if not self._left:
            raise FormatError(f"{path} is empty")

    def header(self) -> Header:
        """The first part."""
        fixed = self._take(FIXED.size)
        magic, version, flags, codebooks, channels, size, *rest, name_bytes = FIXED.unpack(fixed)
        if magic != MAGIC:
            raise FormatError(f"{self._path} is not a Sonorant container")
        if version != VERSION:
            raise FormatError(
                f"{self._path} is a container of version {version}; this Sonorant reads version "
                f"{VERSION}: update it, or compress the sound again"
            )
        name = self._take(name_bytes)
        self._check(fixed + name)
        if flags & ~(SEGMENTED | SCALED):
            raise FormatError(f"{self._path} has the unknown flags {flags:#x}")
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
            )
        except (FormatError, UnicodeDecodeError) as error:
            raise FormatError(f"{self._path} has an impossible header: {error}") from error

    def blocks(self, header: Header) -> Iterator[Block]:
        """The parts after the header; sets `totals` once all are read."""
        frames = 0
        while count := self._count():
            yield self._block(header, count)
            frames += count
        end = self._take(END.size)
        self._check(COUNT.pack(0) + end)
        self.totals = Totals(*END.unpack(end))
        if self._left:
            raise FormatError(f"{self._path} goes on for {self._left} bytes after its end")
        if self.totals.frames != frames or not self.totals.fit(header):
            raise FormatError(f"{self._path} gives lengths that its content does not have")

    def _count(self) -> int:
        count: int = COUNT.unpack(self._take(COUNT.size))[0]
        return count

    def _block(self, header: Header, count: int) -> Block:
        payload = self._take(header.payload_bytes(count))
        self._check(COUNT.pack(count) + payload)
        scale = None
        if header.scaled:
            scale = SCALE.unpack_from(payload)[0]
            payload = payload[SCALE.size :]
            if not 0 < scale < float("inf"):
                raise FormatError(f"{self._path} gives a segment the volume {scale}")
        values = unpack_bits(payload, count * header.codebooks, header.token_bits)
        if values.max() >= header.codebook_size:
            raise FormatError(f"{self._path} holds a token outside its codebook")
        frames = np.ascontiguousarray(values.reshape(count, header.codebooks).T)
        return Block(torch.from_numpy(frames)[None], scale)

    def _take(self, count: int) -> bytes:
        """The next bytes, if there are as many: a lying length must not allocate anything."""
        data = self._file.read(count) if count <= self._left else b""
        if len(data) != count:
            raise FormatError(
                f"{self._path} is cut short or damaged: {count} bytes should follow, "
                f"{self._left} are left"
            )
        self._left -= count
        return data

    def _check(self, part: bytes) -> None:
        self._checksum = zlib.crc32(part, self._checksum)
        if CHECKSUM.unpack(self._take(CHECKSUM.size))[0] != self._checksum:
            raise FormatError(f"{self._path} is damaged: a checksum does not fit")
