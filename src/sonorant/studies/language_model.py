"""Training a language model on a text of words, for the language table of DiffQ.

Source: DiffQ (arXiv 2104.09987, section 5.2), which trains the model of arXiv 1809.10853 as that
paper does: SGD with Nesterov momentum, pieces of the text that ignore its sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from sonorant.errors import ConfigError
from sonorant.studies.word_transformer import WordTransformer, WordTransformerConfig
from sonorant.studies.words import TrainingPieces, ValidationPieces, Vocabulary
from sonorant.training.start import first_model
from sonorant.training.task import Metrics, StepContext, Task

Positive = Annotated[int, msgspec.Meta(ge=1)]
Batch = list[Tensor]
"""Words that are read and words that follow, int64 [batch, words] each."""


class LanguageSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `settings` section of a recipe.

    train, valid: texts in UTF-8, words between spaces; paths relative to the working folder.
    least_count: words that the training text has less often become one.
    start: folder of a model to train on, instead of fresh weights.
    piece_words: length of what the model reads at once.
    valid_context: from at least so many words each one is predicted in validation, where there are.
    """

    train: str
    valid: str
    least_count: Positive = 1
    model: WordTransformerConfig = WordTransformerConfig()
    start: str | None = None
    piece_words: Positive = 3072
    valid_context: Annotated[int, msgspec.Meta(ge=0)] = 0
    learning_rate: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    momentum: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.99

    def __post_init__(self) -> None:
        if self.valid_context >= self.piece_words:
            raise ConfigError(
                f"valid_context = {self.valid_context} leaves nothing to predict of pieces of "
                f"{self.piece_words} words"
            )


class LanguageTask(Task):
    """Trains a transformer to predict the next word of a text."""

    Settings: ClassVar[type[msgspec.Struct]] = LanguageSettings
    averaged_modules: ClassVar[tuple[str, ...]] = ("model",)
    settings: LanguageSettings

    def __init__(self, settings: LanguageSettings) -> None:
        super().__init__(settings)
        self.model = first_model(WordTransformer, settings.model, settings.start)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Raises: ConfigError if the model is for another number of words; as `Vocabulary`."""
        found = Vocabulary.of_text(self.settings.train, self.settings.least_count)
        words = self.settings.model.vocabulary
        if len(found) != words:
            raise ConfigError(
                f"{self.settings.train} has {len(found)} different words and the recipe's model is "
                f"for {words}; set settings.model.vocabulary={len(found)}"
            )
        return found

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def make_optimizers(self) -> dict[str, Optimizer]:
        rate, momentum = self.settings.learning_rate, self.settings.momentum
        return {"model": SGD(self.model.parameters(), rate, momentum, nesterov=True)}

    def training_data(self, seed: int) -> TrainingPieces:
        numbers = self.vocabulary.numbers(self.settings.train)
        return TrainingPieces(numbers, self.settings.piece_words, seed)

    def validation_data(self) -> ValidationPieces:
        settings = self.settings
        numbers = self.vocabulary.numbers(settings.valid)
        return ValidationPieces(numbers, settings.piece_words, settings.valid_context)

    def step(self, batch: Batch, context: StepContext) -> Metrics:
        words, following = batch
        with context.autocast():
            hidden = self.model.hidden(words)
        loss = self.model.nats(hidden, following).mean()
        loss.backward()
        context.apply("model")
        return {"loss": loss.detach()}

    def evaluate(self, batch: Batch) -> Metrics:
        words, following = batch
        nats = self.model.nats(self.model.hidden(words), following)
        return {"words": float(len(nats)), "nats": nats.sum()}

    def summary(self, means: Mapping[str, float]) -> dict[str, float]:
        """The perplexity per word, ends of lines included, and its logarithm, the loss."""
        loss = means["nats"] / means["words"]
        return {"perplexity": float(torch.tensor(loss, dtype=torch.float64).exp()), "loss": loss}

    def export(self, folder: Path) -> None:
        """The model, and its words by number in `vocabulary.txt`."""
        self.model.save_pretrained(folder)
        self.vocabulary.save(folder / "vocabulary.txt")
