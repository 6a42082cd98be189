"""Training of separators, whatever the network: extracts of stems, augmented, summed and separated.

Source: Demucs (arXiv 1911.13254, section 5), Hybrid Demucs (arXiv 2111.03600, section 4), Hybrid
Transformer Demucs (arXiv 2211.08553, section 3), and their package. Weights of few bits (DiffQ,
arXiv 2104.09987) are learned where the recipe has `quantization`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from sonorant.audio import Audio
from sonorant.data.songs import read_songs
from sonorant.errors import ConfigError
from sonorant.hub.table import known, resolve
from sonorant.model import load, refusing_config
from sonorant.optim.average import AverageBank
from sonorant.separation import remix
from sonorant.separation.apply import apply
from sonorant.separation.augment import Augmentation, augment
from sonorant.separation.blocks import center_trim
from sonorant.separation.hdemucs import HybridModel
from sonorant.separation.losses import (
    SeparationLoss,
    separation_loss,
    source_weights,
    weighted,
)
from sonorant.separation.mask_start import start_as_masks
from sonorant.separation.metrics import global_sdr
from sonorant.separation.repitch import Repitch
from sonorant.separation.separator import Separator
from sonorant.separation.settings import Settings
from sonorant.separation.stems import Extracts, StemExtracts, WholeSongs, whole_song
from sonorant.separation.weight_penalty import SingularValuePenalty, penalty
from sonorant.training.task import Metrics, StepContext, Task

Natural = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
PLAIN = "plain"
"""Name of the weights that are no average, among which the best are sought."""


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is trained: a system of `models.toml` with its config, or a model to train on.

    masks: first weights of HDemucs or HTDemucs that give every source a share of the mixture
        (`sonorant.separation.mask_start`).
    """

    system: str | None = None
    config: dict[str, Any] = {}
    masks: bool = False
    model: str | None = None

    def __post_init__(self) -> None:
        if (self.system is None) == (self.model is None):
            raise ConfigError("a network is either a `system` with its `config`, or a `model`")
        if self.masks and self.system is None:
            raise ConfigError("`masks` is a start for a `system`; a `model` has weights already")


class OptimizerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Adam, with numbers of its own for a transformer inside of the network.

    decoupled: weight decay as in AdamW.
    """

    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    decoupled: bool = False
    transformer_learning_rate: float | None = None
    transformer_weight_decay: float = 0.0


class Averages(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Averages of the weights, of which the best at any validation is what the run exports.

    The defaults are those of the published hybrid models. epoch_steps: steps of an epoch.
    """

    epoch_steps: Positive
    step_decays: tuple[float, ...] = (0.9995, 0.9999)
    epoch_decays: tuple[float, ...] = (0.9, 0.95)


class SeparationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `settings` section of a separation recipe.

    songs: manifest of songs, relative to the working folder.
    segment_seconds: of an extract as the network sees it, after what the augmentations cut away.
    stride_seconds: between the extracts of a song.
    to_valid_length: lengthen extracts until no layer leaves out a sample, as v1 and v2 need.
    overlap: of the segments that songs are separated in for validation.
    by_sdr: the best weights have the highest SDR there, not the lowest loss; sources weigh in
        either as they do in the loss.
    averages: None keeps the weights of the last step, or the engine's average of them.
    silenced: how remixed tracks without stems join the training; None for no such tracks.
    """

    songs: str
    network: Network
    segment_seconds: Annotated[float, msgspec.Meta(gt=0)]
    stride_seconds: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    to_valid_length: bool = False
    normalize: bool = True
    train_items: Positive = 10_000_000
    valid_songs: Positive | None = None
    overlap: float = 0.0
    by_sdr: bool = False
    augmentation: Augmentation = Augmentation()
    repitch: Repitch | None = None
    loss: SeparationLoss = SeparationLoss()
    weight_penalty: SingularValuePenalty | None = None
    optimizer: OptimizerSettings = OptimizerSettings()
    averages: Averages | None = None
    silenced: remix.SilencedTracks | None = None
    sounds: Natural = 1
    sounds_seconds: float = 10.0


class SeparationTask(Task):
    """Trains a `Separator`."""

    Settings: ClassVar[type[msgspec.Struct]] = SeparationSettings
    averaged_modules: ClassVar[tuple[str, ...]] = ("model",)
    settings: SeparationSettings

    def __init__(self, settings: SeparationSettings) -> None:
        super().__init__(settings)
        self.model = first_model(settings.network)
        weights = settings.loss.sources
        if weights is not None and len(weights) != len(self.model.sources):
            raise ConfigError(
                f"loss.sources has {len(weights)} weights for {', '.join(self.model.sources)}"
            )
        self.extracts = _extracts(settings, self.model)
        self.songs = {
            "train": read_songs(settings.songs, "train"),
            "valid": read_songs(settings.songs, "valid"),
        }
        self.songs["valid"] = self.songs["valid"][: settings.valid_songs]
        self.weakly: remix.SilencedExtracts | None = None
        if settings.silenced is not None:
            self.weakly = remix.SilencedExtracts(
                settings.silenced, self.extracts, settings.augmentation
            )
        self.bank: AverageBank | None = None
        if settings.averages is not None:
            averages = settings.averages
            self.bank = AverageBank(self.model, averages.step_decays, averages.epoch_decays)
        self.best = Best()

    @property
    def keeps_averages(self) -> bool:
        return self.bank is not None

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def make_optimizers(self) -> dict[str, Optimizer]:
        return {"model": make_optimizer(self.model, self.settings.optimizer)}

    def training_data(self, seed: int) -> StemExtracts:
        return StemExtracts(self.songs["train"], self.extracts, seed, self.settings.train_items)

    def validation_data(self) -> WholeSongs:
        return WholeSongs(self.songs["valid"])

    # -- one step -----------------------------------------------------------------------------

    def step(self, batch: Tensor, context: StepContext) -> Metrics:
        """One step on stems `[batch, sources, channels, time]`."""
        self._check_averages()
        stems = augment(batch, self.settings.augmentation)
        loss, metrics = self._loss(stems, context)
        if self.weakly is not None:
            weak = self.weakly.loss(self.model, stems, context)
            loss, metrics["weak"] = loss + weak, weak.detach()
        svd = self.settings.weight_penalty
        if svd is not None and float(torch.rand((), generator=context.generator)) < svd.probability:
            size = penalty(self.model, svd) / svd.probability
            loss, metrics["weight_penalty"] = loss + svd.weight * size, size.detach()
        loss.backward()
        context.apply("model")
        if self.bank is not None and self.settings.averages is not None and context.steps_now:
            self.bank.step()
            if (context.step + 1) % self.settings.averages.epoch_steps == 0:
                self.bank.epoch()
        return metrics | {"loss": loss.detach()}

    def _loss(self, stems: Tensor, context: StepContext) -> tuple[Tensor, dict[str, Any]]:
        with context.autocast():
            estimates = self.model(stems.sum(dim=1))
        stems = center_trim(stems, estimates.shape[-1])
        loss, metrics = separation_loss(estimates.float(), stems, self.settings.loss)
        return loss, dict(metrics)

    def _check_averages(self) -> None:
        if self.bank is not None and self.model.packing is not None:
            raise ConfigError(
                "averages are not kept of weights that learn to be few bits; "
                "use training.average_decay"
            )

    # -- validation and export ----------------------------------------------------------------

    def evaluate(self, batch: Tensor) -> Metrics:
        """Figures of whole songs, by number, for the plain weights and every average."""
        figures = [self._figures(int(number)) for number in batch]
        return {name: sum(each[name] for each in figures) / len(figures) for name in figures[0]}

    def _figures(self, number: int) -> dict[str, float]:
        mix, stems = whole_song(self.songs["valid"][number], self.extracts)
        found = self._figures_of(mix, stems, PLAIN)
        for name, average in (self.bank.ready if self.bank is not None else {}).items():
            with average.applied():
                found |= self._figures_of(mix, stems, name)
        return found

    def _figures_of(self, mix: Tensor, stems: Tensor, name: str) -> dict[str, float]:
        estimates = self._separated(mix)
        ratios, loss = global_sdr(stems, estimates), self.settings.loss
        found = {
            f"{name}/loss": float(separation_loss(estimates[None], stems[None], loss)[0]),
            f"{name}/sdr": float(weighted(ratios, source_weights(loss, len(ratios)))),
        }
        if name == PLAIN:
            gains = ratios - global_sdr(stems, mix.expand_as(stems))
            for source, ratio, gain in zip(self.model.sources, ratios, gains, strict=True):
                found |= {f"sdr/{source}": float(ratio), f"sdr_gain/{source}": float(gain)}
        return found

    def _separated(self, mix: Tensor) -> Tensor:
        """Stems `[sources, channels, time]` of a song, on the CPU."""
        device = next(self.model.parameters()).device
        settings = Settings(overlap=self.settings.overlap)
        return apply(self.model, mix[None].to(device), settings)[0].cpu()

    def validated(self, figures: Mapping[str, float]) -> None:
        """Keep the best weights that validation has seen, where averages are kept."""
        if self.bank is None:
            return
        kind = "sdr" if self.settings.by_sdr else "loss"
        for name in (PLAIN, *self.bank.ready):
            figure = figures[f"{name}/{kind}"]
            worse = -figure if self.settings.by_sdr else figure
            if worse < self.best.worse:
                average = self.bank.averages.get(name)
                self.best.take(self.model, average, worse, name)

    def samples(self) -> dict[str, Audio]:
        rate, sounds = self.model.sample_rate, {}
        length = round(self.settings.sounds_seconds * rate)
        for song in self.songs["valid"][: self.settings.sounds]:
            mix, _ = whole_song(song, self.extracts)
            for source, stem in zip(
                self.model.sources, self._separated(mix[:, :length]), strict=True
            ):
                # Mixtures have a deviation of 1, at which sounds would clip.
                sounds[f"{song.name}_{source}"] = Audio((stem * 0.1).clamp(-1, 1), rate)
        return sounds

    def export(self, folder: Path) -> None:
        with self.best.applied(self.model):
            self.model.save_pretrained(folder)

    def extra_state(self) -> dict[str, Any]:
        if self.bank is None:
            return {}
        return {"bank": self.bank.state_dict(), "best": self.best.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if self.bank is not None:
            self.bank.load_state_dict(state["bank"])
            self.best.load_state_dict(state["best"])


class Best:
    """The best weights so far, on the CPU. worse: the figure that the next best must fall below."""

    def __init__(self) -> None:
        self.worse = float("inf")
        self.name = ""
        self._weights: dict[str, Tensor] = {}

    def take(self, model: nn.Module, average: Any, worse: float, name: str) -> None:
        """Keep a model's weights, or those of an average of it."""
        with contextlib.nullcontext() if average is None else average.applied():
            self._weights = {
                key: tensor.detach().cpu().clone() for key, tensor in model.state_dict().items()
            }
        self.worse, self.name = worse, name

    @contextlib.contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model has the best weights inside the `with`, if there are any yet."""
        own = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        try:
            if self._weights:
                model.load_state_dict(self._weights)
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        return {"worse": self.worse, "name": self.name, "weights": self._weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.worse, self.name, self._weights = state["worse"], state["name"], state["weights"]


def first_model(network: Network) -> Separator:
    """The network that training starts with.

    Raises: ConfigError if it is no separator or its config is wrong; CheckpointError as `load`.
    """
    if network.model is not None:
        model: Any = load(network.model)
        model.name = None
    else:
        model_class = resolve(known().system(str(network.system)).class_)
        try:
            config = msgspec.convert(network.config, model_class.config_type)
        except msgspec.ValidationError as error:
            raise ConfigError(f"network.config: {error}") from error
        with refusing_config("network.config"):
            model = model_class(config)
        if network.masks:
            if not isinstance(model, HybridModel):
                raise ConfigError(f"network.masks: {network.system} has no masks to start with")
            start_as_masks(model)
    if not isinstance(model, Separator) or len(model.parts()) != 1:
        raise ConfigError(f"{network.model or network.system} is not one separating network")
    return model


def make_optimizer(model: nn.Module, config: OptimizerSettings) -> Optimizer:
    """Adam or AdamW; the parameters below `crosstransformer` are a group of their own."""
    inside = [
        each for name, each in model.named_parameters() if name.startswith("crosstransformer.")
    ]
    chosen = set(inside)
    groups: list[dict[str, Any]] = [
        {
            "params": [each for each in model.parameters() if each not in chosen],
            "weight_decay": config.weight_decay,
        }
    ]
    if inside:
        groups.append(
            {
                "params": inside,
                "lr": config.transformer_learning_rate or config.learning_rate,
                "weight_decay": config.transformer_weight_decay,
            }
        )
    kind = AdamW if config.decoupled else Adam
    return kind(groups, config.learning_rate, config.betas, fused=True)


def _extracts(settings: SeparationSettings, model: Separator) -> Extracts:
    """Extracts long enough that `segment_seconds` are left after augmentation."""
    samples = round(settings.segment_seconds * model.sample_rate)
    if settings.to_valid_length:
        samples = model.valid_length(samples)
    return Extracts(
        sources=model.sources,
        sample_rate=model.sample_rate,
        channels=model.audio_channels,
        samples=samples + settings.augmentation.shift_samples,
        stride_samples=max(1, round(settings.stride_seconds * model.sample_rate)),
        normalize=settings.normalize,
        repitch=settings.repitch,
    )
