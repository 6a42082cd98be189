"""The demo: real clips through a codec at all of its bandwidths, from file to file, measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from sonorant.audio import info, read
from sonorant.codec.files import Codec, compress_file, decompress_file
from sonorant.codec.metrics import has_visqol, mel_distance, si_snr, visqol


@dataclass(frozen=True)
class Clip:
    """A sound to try a codec on. credit: who made it, and its licence."""

    name: str
    path: Path
    credit: str

    @property
    def wav_bytes(self) -> int:
        """Size of its samples as 16-bit PCM, as a WAV file holds them."""
        facts = info(self.path)
        return facts.frames * facts.channels * 2


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


def shipped_clips() -> list[Clip]:
    """The clips that ship with the package; `clips/LICENCES.md` says more about each."""
    folder = Path(str(resources.files("sonorant"))) / "clips"
    credits = {
        "speech": "Linda Johnson reads for LibriVox; LJ Speech by Keith Ito. Public domain.",
        "music": "“David02” by David Reeves (Destructavator), from the soundtrack of UFO: Alien "
        "Invasion, shortened. CC BY 3.0.",
        "sound": "A rooster, recorded by ra_gun (CC0 1.0); clip 2-81270-A of ESC-10 by Karol J. "
        "Piczak (CC BY 3.0).",
    }
    return [Clip(name, folder / f"{name}.flac", credit) for name, credit in credits.items()]


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
