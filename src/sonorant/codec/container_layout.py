"""How a `.snr` container is laid out: its header, the lengths at its end, the formats between.

`docs/container.md` gives the same byte by byte.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sonorant.errors import FormatError

# As in PNG: a byte above 127 and line ends of both kinds give away files sent as text.
MAGIC = b"\x89SNR\r\n\x1a\n"
VERSION = 1
FIXED = struct.Struct("<8sBBBBIIIH16sB")
SEGMENTED, SCALED, CODED = 1, 2, 4  # flags
CHECKSUM = struct.Struct("<I")
COUNT = struct.Struct("<H")
SCALE = struct.Struct("<f")
CODED_SIZE = struct.Struct("<II")  # bytes of entropy-coded tokens, checksum of the tokens
END = struct.Struct("<QQQ")
FINGERPRINT_BYTES = 16
LARGEST_CODEBOOK = 65_536


@dataclass(frozen=True)
class Header:
    """What a container says before its tokens.

    model: the name `sonorant.load` knows the codec by, or "". fingerprint: 16 bytes that tell it
        from other models of the same name.
    sample_rate, channels: of the codec; source_sample_rate, source_channels: of the sound that was
        compressed, and that decompressing gives back.
    segmented: each block is one segment; scaled: and begins with the volume of that segment.
    entropy: 16 bytes that tell the entropy model that the tokens are coded with from all others;
        b"" for tokens that are only packed.
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
    entropy: bytes = b""

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
        if len(self.entropy) not in (0, FINGERPRINT_BYTES):
            raise FormatError(f"a fingerprint has {FINGERPRINT_BYTES} bytes")
        if self.scaled and not self.segmented:
            raise FormatError("a container has volumes only where it has segments")

    @property
    def token_bits(self) -> int:
        """Bits of one token: enough for the largest."""
        return (self.codebook_size - 1).bit_length()

    def packed_bytes(self, frames: int) -> int:
        """Bytes of a block's tokens where they are packed."""
        return -(-frames * self.codebooks * self.token_bits // 8)

    def pack(self) -> bytes:
        """The header as it stands in the file, without its checksum."""
        name = self.model.encode()
        flags = SEGMENTED * self.segmented | SCALED * self.scaled | CODED * bool(self.entropy)
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
            + self.entropy
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
