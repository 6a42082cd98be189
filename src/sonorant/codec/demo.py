"""The demo: real clips through a codec at all of its bandwidths, from file to file, measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sonorant.audio import read
from sonorant.codec.files import Codec, compress_file, decompress_file
from sonorant.codec.metrics import has_visqol, mel_distance, si_snr, visqol
from sonorant.sample_clips import Clip


@dataclass(frozen=True)
class Trial:
    """One clip at one bandwidth: the two files it became, and how good it still is.

    kbps: of the whole container. si_snr, mel_distance: in dB; visqol: None without visqol-python.
    """

    clip: Clip
    bandwidth_kbps: float
    container: Path
    decoded: Path
    kbps: float
    si_snr: float
    mel_distance: float
    visqol: float | None

    @property
    def size_bytes(self) -> int:
        return self.container.stat().st_size

    @property
    def times_smaller(self) -> float:
        """Than 16-bit PCM."""
        return self.clip.wav_bytes / self.size_bytes


def run_trials(clips: Sequence[Clip], codec: Codec, folder: Path) -> Iterator[Trial]:
    """Every clip at every bandwidth; the files go into `folder`.

    Raises: AudioError if a clip cannot be used.
    """
    judge = has_visqol()
    for clip in clips:
        original = read(clip.path).to(codec.sample_rate, codec.channels)
        for bandwidth in codec.config.target_bandwidths_kbps:
            container = folder / f"{clip.name}-{bandwidth:g}kbps.snr"
            decoded = container.with_suffix(".flac")
            compress_file(clip.path, container, codec, bandwidth)
            decompress_file(container, decoded, codec)
            back = read(decoded).to(codec.sample_rate, codec.channels)
            yield Trial(
                clip,
                bandwidth,
                container,
                decoded,
                kbps=container.stat().st_size * 8 / original.duration_seconds / 1000,
                si_snr=si_snr(original, back),
                mel_distance=mel_distance(original, back),
                visqol=visqol(original, back) if judge else None,
            )
