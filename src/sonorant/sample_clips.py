"""The sample clips that ship with the package: real recordings for demos, examples and tests."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from sonorant.audio import info


@dataclass(frozen=True)
class Clip:
    """A sound to try things on. credit: who made it, and its licence."""

    name: str
    path: Path
    credit: str

    @property
    def wav_bytes(self) -> int:
        """Size of its samples as 16-bit PCM, as a WAV file holds them."""
        facts = info(self.path)
        return facts.frames * facts.channels * 2


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
