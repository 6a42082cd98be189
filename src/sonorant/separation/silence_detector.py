"""A detector of sources that do not play, to find extracts of unlabelled tracks for `remix`.

Source: the first Demucs paper (arXiv 1909.01174) for the idea: a network like Demucs' encoder with
a recurrent layer says whether a source is silent, its volume 20 dB below the mixture's. No code of
it was published: sizes, and the training on stems silenced at random, are our own.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam, Optimizer

from sonorant.data.songs import read_songs
from sonorant.errors import ConfigError
from sonorant.model import Model
from sonorant.separation.augment import Augmentation, augment
from sonorant.separation.blocks import rescale_convolutions
from sonorant.separation.stems import Extracts, StemExtracts
from sonorant.training.task import Metrics, StepContext, Task

SILENT_DB = -20.0
"""A source whose power is this far below the mixture's counts as silent (arXiv 1909.01174)."""
Positive = Annotated[int, msgspec.Meta(ge=1)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class DetectorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Layers as in Demucs' encoder: each one keeps every `stride`th step, with more channels."""

    sources: tuple[str, ...] = ("drums", "bass", "other", "vocals")
    sample_rate: int = 44_100
    audio_channels: int = 2
    channels: Positive = 16
    most_channels: Positive = 128
    depth: Positive = 6
    kernel_size: Positive = 8
    stride: Positive = 4
    lstm_layers: Positive = 1


class SilenceDetector(Model):
    """Says of each source whether it is silent in an extract.

    Shape: mix [batch, channels, time] -> logits [batch, sources], above 0 for silent.
    Raises: ConfigError for a config whose layers leave nothing.
    """

    system: ClassVar[str] = "silence_detector"
    config_type: ClassVar[type[msgspec.Struct]] = DetectorConfig
    config: DetectorConfig

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__(config)
        if config.kernel_size < config.stride:
            raise ConfigError("a kernel smaller than its stride would skip samples")
        layers: list[nn.Module] = []
        before = config.audio_channels
        for depth in range(config.depth):
            width = min(config.channels * 2**depth, config.most_channels)
            layers += [
                nn.Conv1d(before, width, config.kernel_size, config.stride),
                nn.ReLU(),
                nn.Conv1d(width, 2 * width, 1),
                nn.GLU(dim=1),
            ]
            before = width
        self.encoder = nn.Sequential(*layers)
        self.lstm = nn.LSTM(
            before, before, config.lstm_layers, batch_first=True, bidirectional=True
        )
        self.head = nn.Linear(2 * before, len(config.sources))
        rescale_convolutions(self, 0.1)  # as Demucs begins (arXiv 1911.13254, section 4.2)

    def forward(self, mix: Tensor) -> Tensor:
        level = mix.std(dim=(1, 2), keepdim=True)
        steps, _ = self.lstm(self.encoder(mix / (1e-5 + level)).transpose(1, 2))
        logits: Tensor = self.head(steps).mean(dim=1)
        return logits


def is_silent(stems: Tensor) -> Tensor:
    """Which stems `[batch, sources, channels, time]` are silent in their mixture, bool
    `[batch, sources]`."""
    powers = stems.square().mean(dim=(2, 3))
    mixture = stems.sum(dim=1).square().mean(dim=(1, 2))
    return powers <= mixture[:, None] * 10 ** (SILENT_DB / 10)


def threshold_for(probabilities: Tensor, silent: Tensor, precision: float) -> float:
    """The lowest probability from which on `precision` of what is called silent is so.

    probabilities [items], silent bool [items]. Raises: ConfigError if no threshold does it.
    """
    order = probabilities.argsort(descending=True)
    right = silent[order].double().cumsum(0) / torch.arange(1, len(order) + 1)
    enough = (right >= precision).nonzero()
    if not len(enough):
        raise ConfigError(f"no threshold reaches a precision of {precision}")
    return float(probabilities[order[int(enough[-1])]])


@torch.no_grad()
def thresholds_of(
    detector: SilenceDetector,
    songs: str | Path,
    precision: float,
    seconds: float = 5.0,
    extracts: int = 512,
) -> dict[str, float]:
    """By source, the threshold from which on what is called silent is so with a precision.

    Measured on extracts of a manifest's validation songs, half of whose stems are silenced.
    Raises: ConfigError if a source reaches that precision with no threshold.
    """
    dataset = detector_extracts(detector.config, songs, "valid", seconds, extracts)
    probabilities, silent = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for number in range(extracts):
            stems = silence_some(dataset[number][None], 0.5)
            probabilities.append(detector(stems.sum(dim=1)).sigmoid())
            silent.append(is_silent(stems))
    found, true = torch.cat(probabilities), torch.cat(silent)
    return {
        source: threshold_for(found[:, index], true[:, index], precision)
        for index, source in enumerate(detector.config.sources)
    }


def extract_samples(seconds: float, sample_rate: int) -> int:
    """Samples of an extract. Raises: ConfigError for an impossible length."""
    if not 0 < seconds < math.inf or round(seconds * sample_rate) < 1:
        raise ConfigError(f"an extract cannot have a length of {seconds} s")
    return round(seconds * sample_rate)


def detector_extracts(
    config: DetectorConfig, songs: str | Path, split: Any, seconds: float, size: int, seed: int = 0
) -> StemExtracts:
    """So many extracts of a manifest's songs, as a detector hears them."""
    extracts = Extracts(
        sources=config.sources,
        sample_rate=config.sample_rate,
        channels=config.audio_channels,
        samples=extract_samples(seconds, config.sample_rate),
        stride_samples=config.sample_rate,
    )
    return StemExtracts(read_songs(songs, split), extracts, seed, size)


class DetectorSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `settings` section of a detector's recipe.

    silenced: share of the stems that are made at least 20 dB quieter or taken out, since silence
        is rare in songs.
    """

    songs: str
    detector: DetectorConfig = DetectorConfig()
    segment_seconds: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    silenced: Share = 0.5
    augmentation: Augmentation = Augmentation(shift_samples=0)
    train_items: Positive = 10_000_000
    valid_items: Positive = 256
    learning_rate: float = 3e-4


class DetectorTask(Task):
    """Trains a `SilenceDetector` by binary cross-entropy."""

    Settings: ClassVar[type[msgspec.Struct]] = DetectorSettings
    averaged_modules: ClassVar[tuple[str, ...]] = ("detector",)
    settings: DetectorSettings

    def __init__(self, settings: DetectorSettings) -> None:
        super().__init__(settings)
        self.detector = SilenceDetector(settings.detector)

    def modules(self) -> dict[str, nn.Module]:
        return {"detector": self.detector}

    def make_optimizers(self) -> dict[str, Optimizer]:
        return {"detector": Adam(self.detector.parameters(), self.settings.learning_rate)}

    def training_data(self, seed: int) -> StemExtracts:
        return self._extracts("train", seed, self.settings.train_items)

    def validation_data(self) -> StemExtracts:
        return self._extracts("valid", 0, self.settings.valid_items)

    def step(self, batch: Tensor, context: StepContext) -> Metrics:
        stems = silence_some(augment(batch, self.settings.augmentation), self.settings.silenced)
        with context.autocast():
            logits = self.detector(stems.sum(dim=1)).float()
        silent = is_silent(stems)
        loss = functional.binary_cross_entropy_with_logits(logits, silent.float())
        loss.backward()
        context.apply("detector")
        return {"loss": loss.detach(), "accuracy": ((logits > 0) == silent).double().mean()}

    def evaluate(self, batch: Tensor) -> Metrics:
        """Figures on songs as they are, with their own share of silence."""
        logits, silent = self.detector(batch.sum(dim=1)), is_silent(batch)
        loss = functional.binary_cross_entropy_with_logits(logits, silent.float())
        right = ((logits > 0) == silent).double().mean()
        return {"loss": loss, "accuracy": right, "silent": silent.double().mean()}

    def export(self, folder: Path) -> None:
        self.detector.save_pretrained(folder)

    def _extracts(self, split: Any, seed: int, size: int) -> StemExtracts:
        settings, config = self.settings, self.settings.detector
        shift = settings.augmentation.shift_samples / config.sample_rate
        seconds = settings.segment_seconds + shift
        return detector_extracts(config, settings.songs, split, seconds, size, seed)


def silence_some(stems: Tensor, share: float) -> Tensor:
    """Stems of which a random share is taken out, or made 20 to 60 dB quieter."""
    draws = torch.rand(3, *stems.shape[:2], 1, 1)
    quieter = 10 ** (-(20 + 40 * draws[1]) / 20) * (draws[2] < 0.5)
    gains = torch.where(draws[0] < share, quieter, torch.ones(()))
    return stems * gains.to(stems.device)
