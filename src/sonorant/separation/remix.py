"""Learning from tracks of which no stems exist, in whose extracts a source is silent.

Source: the first Demucs paper (arXiv 1909.01174). A detector finds extracts m without, say, bass;
a bass s of the training songs is added to one. Of the mixture m + s the bass is known, and the sum
of all others, not each of them: a weak example. Known from the paper is the scheme; the loss
|bass - s| + |sum of the others - m|, its weight, and the augmentations of m and s each for itself
are our own, since no code of it was published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from sonorant.audio import blocks, info
from sonorant.data.songs import MIXTURE, Song
from sonorant.errors import AudioError, ConfigError
from sonorant.separation.augment import Augmentation, augment
from sonorant.separation.blocks import center_trim
from sonorant.separation.silence_detector import SilenceDetector, extract_samples
from sonorant.separation.stems import Extracts, read_part
from sonorant.training.task import StepContext


class SilencedTracks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How tracks without stems join a separator's training.

    extracts: JSON Lines file of `SilentExtract`s. items: weak examples beside each batch.
    weight: of their loss, beside that of the batch's own.
    """

    extracts: str
    items: Annotated[int, msgspec.Meta(ge=1)] = 1
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class SilentExtract(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An extract of a track in which a source is silent, as far as the detector can tell.

    mean, std: of the track's mean over channels, by which it is normalised.
    """

    path: str
    source: str
    start_seconds: float
    seconds: float
    probability: float
    mean: float = 0.0
    std: float = 1.0


def find_silent(
    detector: SilenceDetector,
    tracks: Iterable[Path],
    seconds: float = 5.0,
    thresholds: dict[str, float] | None = None,
    leave_out: Callable[[AudioError], object] | None = None,
) -> Iterator[SilentExtract]:
    """Extracts, side by side, in which a source is silent with a probability of its threshold.

    thresholds: by source, 0.95 where it has none; `thresholds_of` finds those of a precision.
    leave_out: hears of tracks that cannot be read, which are then left out.
    Extracts that are silent altogether are left out.
    Raises: AudioError as `read`, without `leave_out`; ConfigError for an impossible length.
    """
    extract_samples(seconds, detector.config.sample_rate)
    for track in tracks:
        try:
            yield from _silent_in(track, detector, seconds, thresholds or {})
        except AudioError as error:
            if leave_out is None:
                raise
            leave_out(error)


def _silent_in(
    track: Path, detector: SilenceDetector, seconds: float, thresholds: dict[str, float]
) -> Iterator[SilentExtract]:
    config = detector.config
    frames = extract_samples(seconds, config.sample_rate)
    mean, std = _level(track, config.sample_rate, config.audio_channels)
    if std == 0:
        return
    sound = blocks(track, frames, 0, config.sample_rate, config.audio_channels)
    for number, block in enumerate(sound):
        extract = (block.samples - mean) / std
        if extract.shape[-1] < frames or float(extract.std()) < 0.1:  # 20 dB below the track
            continue
        for source, probability in _probabilities(detector, extract).items():
            if probability >= thresholds.get(source, 0.95):
                yield SilentExtract(
                    path=str(track.absolute()),
                    source=source,
                    start_seconds=number * frames / config.sample_rate,
                    seconds=seconds,
                    probability=round(probability, 4),
                    mean=mean,
                    std=std,
                )


@torch.no_grad()
def _probabilities(detector: SilenceDetector, extract: Tensor) -> dict[str, float]:
    probabilities = detector(extract[None])[0].sigmoid().tolist()
    return dict(zip(detector.config.sources, probabilities, strict=True))


def _level(track: Path, sample_rate: int, channels: int) -> tuple[float, float]:
    """Mean and standard deviation of a track's mean over channels."""
    total = squares = count = 0.0
    for block in blocks(track, 30 * sample_rate, 0, sample_rate, channels):
        mono = block.samples.mean(dim=0).double()
        total += float(mono.sum())
        squares += float(mono.square().sum())
        count += len(mono)
    mean = total / count
    return mean, max(0.0, squares / count - mean**2) ** 0.5


def write_extracts(path: Path, extracts: Iterable[SilentExtract]) -> int:
    """Write extracts as JSON Lines, whole or not at all; how many there were."""
    part, count = path.with_name(path.name + ".part"), 0
    try:
        with part.open("wb") as file:
            for extract in extracts:
                file.write(msgspec.json.encode(extract) + b"\n")
                count += 1
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count


def read_extracts(path: str | Path) -> list[SilentExtract]:
    """Extracts of a file. Raises: ConfigError if it is missing, damaged or empty."""
    try:
        lines = Path(path).read_bytes().splitlines()
        found = [msgspec.json.decode(line, type=SilentExtract) for line in lines]
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"cannot read the extracts {path}: {error}") from error
    if not found:
        raise ConfigError(f"{path} has no extracts")
    return found


class SilencedExtracts:
    """Draws extracts without a source, and takes the weak loss of a network on remixes of them.

    Raises: ConfigError for an extract without a source that is separated, or that is too short.
    """

    def __init__(
        self, settings: SilencedTracks, extracts: Extracts, augmentation: Augmentation
    ) -> None:
        self.settings = settings
        self.extracts = extracts
        # Each extract is a piece of its own: nothing to remix it with, and shifts begin it later.
        self.augmentation = msgspec.structs.replace(augmentation, remix_group=0)
        self.found = read_extracts(settings.extracts)
        self._songs = {each.path: _as_song(each) for each in self.found}
        needed = extracts.samples / extracts.sample_rate
        for each in self.found:
            if each.source not in extracts.sources:
                raise ConfigError(f"{settings.extracts}: no source {each.source!r} is separated")
            if each.seconds < needed:
                raise ConfigError(
                    f"{settings.extracts}: extracts of {each.seconds} s are shorter than those "
                    f"trained on, {needed:.1f} s with what augmentation cuts away"
                )

    def loss(self, model: nn.Module, stems: Tensor, context: StepContext) -> Tensor:
        """The weighted loss, [], with added sources from a batch of augmented `stems`
        `[batch, sources, channels, time]`."""
        numbers = torch.randint(len(self.found), (self.settings.items,)).tolist()
        chosen = [self.found[number] for number in numbers]
        rests = augment(self._read(chosen).to(stems.device)[:, None], self.augmentation)[:, 0]
        rows = torch.randint(len(stems), (len(chosen),)).tolist()
        silent = [self.extracts.sources.index(each.source) for each in chosen]
        added = torch.stack([stems[row, source] for row, source in zip(rows, silent, strict=True)])
        with context.autocast():
            estimates = model(rests + added)
        return self.settings.weight * weak_loss(estimates.float(), added, rests, silent)

    def _read(self, chosen: list[SilentExtract]) -> Tensor:
        """A random part of each extract, `[items, channels, samples]`, at its track's level."""
        wanted = self.extracts.samples
        parts = []
        for each in chosen:
            spare = each.seconds - wanted / self.extracts.sample_rate
            start = each.start_seconds + spare * float(torch.rand(()))
            song = self._songs[each.path]
            parts.append(read_part(song, [MIXTURE], start, wanted, self.extracts)[0])
        return torch.from_numpy(np.stack(parts))


def _as_song(extract: SilentExtract) -> Song:
    """A track as a song of which only the mixture is there."""
    found = info(extract.path)
    return Song(
        name=extract.path,
        split="train",
        files={MIXTURE: extract.path},
        sample_rate=found.sample_rate,
        samples=found.frames,
        mean=extract.mean,
        std=extract.std,
    )


def weak_loss(estimates: Tensor, added: Tensor, rests: Tensor, silent: list[int]) -> Tensor:
    """Mean absolute difference of the added source, and of the sum of all others, [].

    estimates [items, sources, channels, time]; added, rests [items, channels, time], of which the
    middle counts where estimates are shorter; silent: the number of each item's added source.
    """
    items = torch.arange(len(silent))
    known = estimates[items, torch.tensor(silent)]
    others = estimates.sum(dim=1) - known
    length = estimates.shape[-1]
    wrong_source = (known - center_trim(added, length)).abs().mean()
    wrong_rest = (others - center_trim(rests, length)).abs().mean()
    return wrong_source + wrong_rest
