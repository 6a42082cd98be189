"""`.ecdc` files, as the `encodec` command of the published package writes and reads them.

Source: the format of that package; `docs/entropy-coding.md` gives it byte by byte. A JSON header
says which model, how many samples and how many codebooks; then come the segments of the sound (one,
at 24 kHz), each with its volume where the model normalises, and its tokens, either packed or coded
with the entropy model. There are no checksums, and no lengths but that of the sound.

Coded with the entropy model, a file opens only where every probability comes out as it was written,
to the last bit (`entropy_published.py`); the reader notices when it did not.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Annotated, Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor

from sonorant.codec.bits import Tokens, pack_bits, unpack_bits
from sonorant.codec.bounded_file import BoundedFile
from sonorant.codec.codec import Codec
from sonorant.codec.container import Block
from sonorant.codec.encodec import EncodecCore
from sonorant.codec.encodec_segments import SegmentedEncodec
from sonorant.codec.encoded import Encoded
from sonorant.codec.entropy_coding import EntropyCore, EntropyModel
from sonorant.codec.entropy_published import PublishedProbabilities
from sonorant.codec.range_coder import (
    CodingError,
    RangeDecoder,
    RangeEncoder,
    published_counts,
    shares,
)
from sonorant.codec.whole_file import WholeFile, write_all
from sonorant.errors import CheckpointError, FormatError

SUFFIX = ".ecdc"
SAMPLE_RATES = {"encodec_24khz": 24_000, "encodec_48khz": 48_000}
"""In Hz, of the models that the format knows."""
MAGIC = b"ECDC"
FIXED = struct.Struct(">4sBI")
SCALE = struct.Struct(">f")
LONGEST_HEADER = 65_536  # bytes; real ones have about 60
READ_BLOCK_FRAMES = 800  # frames at once; packed tokens fill whole bytes at every multiple of 8


class EcdcHeader(msgspec.Struct, frozen=True):
    """What a file says of itself; `samples` at the codec's rate, per channel."""

    model: str = msgspec.field(name="m")
    samples: Annotated[int, msgspec.Meta(ge=1, le=2**53)] = msgspec.field(name="al")
    codebooks: Annotated[int, msgspec.Meta(ge=1)] = msgspec.field(name="nc")
    coded: bool = msgspec.field(name="lm")

    def pack(self) -> bytes:
        """The header as it stands in the file; spaces as Python's json puts them."""
        text = json.dumps(msgspec.to_builtins(self)).encode()
        return FIXED.pack(MAGIC, 0, len(text)) + text


class SegmentWriter(Protocol):
    """Turns the tokens of one segment into bytes, piece by piece."""

    def push(self, tokens: Tokens) -> bytes:
        """The bytes that these frames, int64 [frames, codebooks], complete."""

    def finish(self) -> bytes:
        """The bytes that are left."""


class PackedWriter:
    """Tokens of 10 bits (for 1024 codewords) one after the other, the lowest bit first."""

    def __init__(self, bits: int, codebooks: int) -> None:
        self._bits = bits
        self._pending = np.empty((0, codebooks), np.int64)

    def push(self, tokens: Tokens) -> bytes:
        joined = np.concatenate([self._pending, tokens])
        whole = len(joined) - len(joined) % 8
        self._pending = joined[whole:]
        return pack_bits(joined[:whole].reshape(-1), self._bits, first="little")

    def finish(self) -> bytes:
        return pack_bits(self._pending.reshape(-1), self._bits, first="little")


class CodedWriter:
    """Tokens coded with the published entropy model from a fresh start."""

    def __init__(self, model: EntropyModel, codebooks: int) -> None:
        self._probabilities = PublishedProbabilities(model)
        self._encoder = RangeEncoder()
        self._previous = torch.zeros(codebooks, dtype=torch.int64)

    def push(self, tokens: Tokens) -> bytes:
        for frame in tokens:
            counts = published_counts(self._probabilities.step(self._previous)).numpy()
            self._encoder.push(shares(counts, frame))
            self._previous = torch.from_numpy(frame) + 1
        return self._encoder.take()

    def finish(self) -> bytes:
        self._encoder.flush()
        return self._encoder.take()


class EcdcWriter:
    """Write an `.ecdc` file piece by piece.

    entropy: the model to code with; None packs the tokens.
    Use it in a `with` statement and end with `finish`; the file gets its name only then.
    Raises: CheckpointError for a codec or entropy model that the format does not know; FormatError
    if the file cannot be written.
    """

    def __init__(
        self, path: str | Path, codec: Codec, codebooks: int, entropy: EntropyCore | None
    ) -> None:
        self._codec, self._codebooks = _published(codec), codebooks
        self._entropy = None if entropy is None else _published_entropy(entropy)
        self._samples = self._frames = 0
        self._segment: SegmentWriter | None = None
        self._file = WholeFile(Path(path))
        # The header needs the length, which only the end of the sound tells.
        try:
            # Unbuffered, as the file itself.
            self._body = tempfile.TemporaryFile(dir=Path(path).parent, buffering=0)  # noqa: SIM115
        except OSError as error:
            self._file.discard()
            raise FormatError(f"cannot write {path}: {error.strerror}") from error

    def __enter__(self) -> EcdcWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._body.close()
        self._file.discard()

    def write(self, encoded: Encoded) -> None:
        """Append the tokens of the next stretch of sound."""
        tokens = encoded.tokens[0].t().cpu().numpy()
        self._samples += encoded.samples
        self._frames += len(tokens)
        if not self._codec.segmented:
            self._segment = self._segment or self._new_segment()
            self._append(self._segment.push(tokens))
            return
        scales = None if encoded.scales is None else encoded.scales[0].tolist()
        start = 0
        for index, frames in enumerate(encoded.segment_frames):
            segment = self._new_segment()
            volume = b"" if scales is None else SCALE.pack(scales[index])
            self._append(volume + segment.push(tokens[start : start + frames]) + segment.finish())
            start += frames

    def finish(self) -> None:
        """Give the file its name. The format has no room for the length of the original."""
        if self._segment is not None:
            self._append(self._segment.finish())
        expected = sum(segment_frames(self._codec, self._samples))
        if self._samples < 1 or self._frames != expected:
            raise FormatError(
                f"{self._frames} frames are not the {expected} that an .ecdc file has for "
                f"{self._samples} samples"
            )
        name, coded = str(self._codec.name), self._entropy is not None
        self._file.write(EcdcHeader(name, self._samples, self._codebooks, coded).pack())
        self._body.seek(0)
        shutil.copyfileobj(self._body, self._file)
        self._file.complete()

    def _new_segment(self) -> SegmentWriter:
        if self._entropy is not None:
            return CodedWriter(self._entropy, self._codebooks)
        return PackedWriter(token_bits(self._codec), self._codebooks)

    def _append(self, data: bytes) -> None:
        try:
            write_all(self._body, data)
        except OSError as error:
            raise FormatError(f"cannot write {self._file.path}: {error.strerror}") from error


class EcdcReader:
    """An `.ecdc` file. Its header is checked when it is opened, its tokens when they are read.

    Raises: FormatError saying what is wrong with it; OSError if it cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FormatError(f"{path} does not exist, or is not a file")
        with self.path.open("rb") as file:
            self.header = _read_header(BoundedFile(file, self.path), self.path)

    @property
    def coded(self) -> bool:
        """Whether the tokens are coded with an entropy model."""
        return self.header.coded

    @property
    def duration_seconds(self) -> float:
        return self.header.samples / SAMPLE_RATES[self.header.model]

    def blocks(self, model: Codec, entropy: EntropyCore | None = None) -> Iterator[Block]:
        """The tokens, block by block; a segment is one block where the codec has segments.

        entropy: the model they are coded with; None where they are packed.
        Raises: FormatError where the file is damaged, goes on after its end, is of another codec,
        or was coded with other probabilities; CheckpointError if there is no entropy model.
        """
        codec = self._checked(model)
        coding = None
        if self.coded:
            if entropy is None:
                raise CheckpointError(f"{self.path} is coded with an entropy model; give it")
            coding = _published_entropy(entropy)
        with self.path.open("rb") as file:
            data = BoundedFile(file, self.path)
            _read_header(data, self.path)
            for frames in segment_frames(codec, self.header.samples):
                scale = _read_scale(data, self.path) if codec.scaled else None
                if coding is None:
                    blocks = self._packed(data, codec, frames)
                else:
                    blocks = self._coded(data, coding, frames)
                if codec.segmented:
                    yield Block(torch.cat(list(blocks), dim=-1), scale)
                else:
                    yield from (Block(tokens, None) for tokens in blocks)
            data.check_end()

    def _checked(self, model: Codec) -> EncodecCore:
        if model.name != self.header.model:
            raise FormatError(
                f"{self.path} was made by {self.header.model}, not by {model.name or 'this model'}"
            )
        codec = _published(model)
        most = codec.config.quantizer.codebooks
        if self.header.codebooks > most:
            raise FormatError(
                f"{self.path} says it has {self.header.codebooks} codebooks; its model has {most}"
            )
        return codec

    def _packed(self, data: BoundedFile, codec: EncodecCore, frames: int) -> Iterator[Tensor]:
        bits, codebooks = token_bits(codec), self.header.codebooks
        for first in range(0, frames, READ_BLOCK_FRAMES):
            count = min(READ_BLOCK_FRAMES, frames - first) * codebooks
            packed = data.take(-(-count * bits // 8))
            values = unpack_bits(packed, count, bits, first="little")
            if int.from_bytes(packed, "little") >> count * bits:
                raise FormatError(f"{self.path} is damaged: bits after the end of a segment")
            if values.max() >= codec.config.quantizer.codebook_size:
                raise FormatError(f"{self.path} holds a token outside its codebook")
            yield torch.from_numpy(values.reshape(-1, codebooks).T.copy())[None]

    def _coded(self, data: BoundedFile, entropy: EntropyModel, frames: int) -> Iterator[Tensor]:
        probabilities = PublishedProbabilities(entropy)
        decoder = RangeDecoder(data.byte)
        previous = torch.zeros(self.header.codebooks, dtype=torch.int64)
        block = []
        try:
            for frame in range(frames):
                counts = published_counts(probabilities.step(previous)).numpy()
                previous = torch.tensor([decoder.pull(row) for row in counts]) + 1
                block.append(previous - 1)
                if len(block) == READ_BLOCK_FRAMES or frame == frames - 1:
                    yield torch.stack(block, dim=-1)[None]
                    block = []
            decoder.finish()
        except CodingError as error:
            raise FormatError(
                f"{self.path} cannot be decoded ({error}): it is cut short or damaged, or was "
                "coded with other rounding than this machine's. Such files open only with the "
                "processor type, torch version and number of threads (OMP_NUM_THREADS) that wrote "
                "them; .snr files have no such limit"
            ) from error


def _read_header(file: BoundedFile, path: Path) -> EcdcHeader:
    magic, version, size = FIXED.unpack(file.take(FIXED.size))
    if magic != MAGIC:
        raise FormatError(f"{path} is not an .ecdc file")
    if version != 0:
        raise FormatError(f"{path} is an .ecdc file of version {version}, not 0")
    if size > LONGEST_HEADER:
        raise FormatError(f"{path} says it has a header of {size} bytes: damaged")
    try:
        header = msgspec.json.decode(file.take(size), type=EcdcHeader)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise FormatError(f"{path} has an impossible header: {error}") from error
    if header.model not in SAMPLE_RATES:
        raise FormatError(
            f"{path} was made by a model {header.model!r:.60}; .ecdc files are of "
            f"{' or '.join(SAMPLE_RATES)}"
        )
    return header


def _read_scale(file: BoundedFile, path: Path) -> float:
    scale: float = SCALE.unpack(file.take(SCALE.size))[0]
    if not 0 < scale < math.inf:
        raise FormatError(f"{path} gives a segment the volume {scale}: damaged")
    return scale


def _published(codec: Codec) -> EncodecCore:
    """Raises: CheckpointError for a codec that the format does not know."""
    if codec.name not in SAMPLE_RATES or not isinstance(codec, EncodecCore):
        raise CheckpointError(
            f"an .ecdc file is made by {' or '.join(SAMPLE_RATES)}, not by "
            f"{codec.name or 'this codec'}; choose one of them (--model), or the ending .snr"
        )
    return codec


def _published_entropy(model: EntropyCore) -> EntropyModel:
    """Raises: CheckpointError for an entropy model of another kind."""
    if not isinstance(model, EntropyModel):
        raise CheckpointError(
            f"an .ecdc file is coded with the published entropy model, not {model.system!r}"
        )
    return model


def token_bits(codec: EncodecCore) -> int:
    """Bits of a packed token."""
    return (codec.config.quantizer.codebook_size - 1).bit_length()


def segment_frames(codec: EncodecCore, samples: int) -> Iterator[int]:
    """How many frames the format has for each segment of a sound; one by one, as there may be many.

    The formula of the package as it is now; release 0.1.1 rounded otherwise and could not read some
    of its own files (lengths such as 53 760 samples).
    """
    segment = stride = samples
    if isinstance(codec, SegmentedEncodec) and codec.segment_samples and codec.stride_samples:
        segment, stride = codec.segment_samples, codec.stride_samples
    for offset in range(0, samples, stride):
        length = min(samples - offset, segment)
        yield math.ceil(length * codec.frame_rate / codec.sample_rate)
