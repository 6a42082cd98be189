"""Training image classifiers on CIFAR, for the image tables of DiffQ.

Source: DiffQ (arXiv 2104.09987, section 5 and appendix): SGD with Nesterov momentum, whose learning
rate drops in steps; images are cropped and flipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import Dataset, TensorDataset

from sonorant.errors import ConfigError
from sonorant.studies.cifar import Cifar, TrainingImages, read_cifar
from sonorant.studies.resnet import ResNet, ResNetConfig
from sonorant.training.start import first_model
from sonorant.training.task import Metrics, StepContext, Task

Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Images = list[Tensor]
"""A batch: pixels uint8 [batch, 3, 32, 32], classes [batch]."""


class ImageSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `settings` section of a recipe.

    data: `cifar-10-binary.tar.gz` or `cifar-100-binary.tar.gz`, relative to the working folder.
    start: folder of a model to train on, instead of fresh weights.
    weight_decay: of all weights.
    """

    data: str
    model: ResNetConfig = ResNetConfig()
    start: str | None = None
    learning_rate: Positive = 0.1
    momentum: Positive = 0.9
    weight_decay: NotNegative = 5e-4


class ImageTask(Task):
    """Trains a residual network to name what is on an image."""

    Settings: ClassVar[type[msgspec.Struct]] = ImageSettings
    averaged_modules: ClassVar[tuple[str, ...]] = ("model",)
    settings: ImageSettings

    def __init__(self, settings: ImageSettings) -> None:
        super().__init__(settings)
        self.model = first_model(ResNet, settings.model, settings.start)

    @cached_property
    def data(self) -> Cifar:
        """Raises: ConfigError if the model is for another number of classes; as `read_cifar`."""
        data, classes = read_cifar(self.settings.data), self.settings.model.classes
        if data.class_count != classes:
            raise ConfigError(
                f"{self.settings.data} has {data.class_count} classes and the recipe's model "
                f"{classes}; set settings.model.classes={data.class_count}"
            )
        return data

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def make_optimizers(self) -> dict[str, Optimizer]:
        settings = self.settings
        return {
            "model": SGD(
                self.model.parameters(),
                settings.learning_rate,
                settings.momentum,
                weight_decay=settings.weight_decay,
                nesterov=True,
            )
        }

    def training_data(self, seed: int) -> TrainingImages:
        return TrainingImages(self.data.train, seed)

    def validation_data(self) -> Dataset[tuple[Tensor, ...]]:
        """The test images, as in the paper; nothing is chosen by them."""
        return TensorDataset(self.data.test.pixels, self.data.test.classes)

    def step(self, batch: Images, context: StepContext) -> Metrics:
        pixels, classes = batch
        with context.autocast():
            logits = self.model(pixels.float() / 255)
        loss = F.cross_entropy(logits.float(), classes)
        loss.backward()
        context.apply("model")
        return {"loss": loss.detach()}

    def evaluate(self, batch: Images) -> Metrics:
        pixels, classes = batch
        logits = self.model(pixels.float() / 255)
        return {
            "images": float(len(classes)),
            "hits": (logits.argmax(1) == classes).sum(),
            "losses": F.cross_entropy(logits, classes, reduction="sum"),
        }

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """The share of images whose class is found, and the mean loss."""
        images = means["images"]
        return {"accuracy": means["hits"] / images, "loss": means["losses"] / images}

    def export(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
