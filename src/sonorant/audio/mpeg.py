"""How long an MP3 file is. libsndfile only guesses if the file does not say, and stops there.

Source: ISO/IEC 11172-3 and 13818-3 (frame header, 2.4.1.3), MPEG 2.5 extension; the Xing or
Info tag that encoders put into the first frame; ID3v2.3, section 3.1.
"""

from __future__ import annotations

import mmap
from pathlib import Path

MPEG_1_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MPEG_2_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MPEG_1_RATES = (44_100, 48_000, 32_000)  # Hz; half of it in MPEG 2, a quarter in MPEG 2.5
RATE_DIVISORS = {3: 1, 2: 2, 0: 4}  # by the version bits of the header
LAYER_3 = 1  # the layer bits
TAG_WITHIN = 4096  # bytes in which the first frame and its tag are found


def has_length(path: Path) -> bool:
    """Whether a Xing or Info tag tells the number of frames."""
    with path.open("rb") as file:
        file.seek(_id3_bytes(file.read(10)))
        start = file.read(TAG_WITHIN)
    return b"Xing" in start or b"Info" in start


def count_samples(path: Path) -> int:
    """Samples per channel in the frames from the start of the file on, up to the first damage."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        position = _id3_bytes(data[:10])
        samples = 0
        while (frame := _frame(data[position : position + 4])) is not None:
            position += frame[0]
            samples += frame[1]
        return samples


def _id3_bytes(head: bytes) -> int:
    """Size of the ID3 tag at the start of a file: four bytes of 7 bits, and the header itself."""
    if head[:3] != b"ID3":
        return 0
    size = 0
    for byte in head[6:]:
        size = size << 7 | byte
    return size + 10


def _frame(header: bytes) -> tuple[int, int] | None:
    """Bytes and samples of the frame that begins with these four bytes, None if none does."""
    if len(header) < 4 or header[0] != 0xFF or header[1] >> 5 != 7:
        return None
    divisor, layer = RATE_DIVISORS.get(header[1] >> 3 & 3), header[1] >> 1 & 3
    bitrate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    if divisor is None or layer != LAYER_3 or not 0 < bitrate < 15 or rate == 3:
        return None
    kbps = (MPEG_1_KBPS if divisor == 1 else MPEG_2_KBPS)[bitrate]
    samples = 1152 if divisor == 1 else 576
    return samples // 8 * 1000 * kbps // (MPEG_1_RATES[rate] // divisor) + padding, samples
