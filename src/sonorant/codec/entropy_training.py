"""Training of entropy models on the tokens of a codec that is already trained.

Source: EnCodec (arXiv 2210.13438, section 3.3): sequences of five seconds, one bandwidth drawn for
each batch, positions from a random offset on, cross-entropy. The optimiser is not published.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import torch
import torch.nn.functional as F
from accelerate import PartialState  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from sonorant.codec.codec import Codec
from sonorant.codec.entropy_coding import (
    EntropyConfig,
    EntropyCore,
    EntropyModel,
    previous_tokens,
)
from sonorant.codec.entropy_compact import CompactEntropyConfig, CompactEntropyModel
from sonorant.codec.files import load_codec
from sonorant.codec.token_cache import NOTHING, TokenDataset, cached_tokens
from sonorant.data.manifest import Split, read_manifest
from sonorant.errors import ConfigError
from sonorant.training.start import first_model
from sonorant.training.task import Metrics, StepContext, Task

# The slowest position wave of the published kind has a period of 2 pi 10000 frames: from offsets up
# to there the model has seen every phase that a long stream comes to.
LONGEST_PERIOD = 62_832


class EntropySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `settings` section of an entropy recipe.

    manifest: JSON Lines file of the audio, relative to the working folder.
    codec: name or path of the codec whose tokens are learned.
    tokens: folder in which they are kept.
    start: folder of an entropy model to train on, instead of fresh weights.
    published: train this model of the published kind instead of the compact `model`.
    largest_offset: positions begin at a random frame up to this one.
    train_items, valid_items: sequences per epoch, and in the validation set.
    """

    manifest: str
    codec: str = "sonorant/codec-24khz-small"
    tokens: str = "datasets/tokens"
    start: str | None = None
    model: CompactEntropyConfig = CompactEntropyConfig()
    published: EntropyConfig | None = None
    segment_seconds: float = 5.0
    largest_offset: Annotated[int, msgspec.Meta(ge=0)] = LONGEST_PERIOD
    train_items: Annotated[int, msgspec.Meta(ge=1)] = 10_000_000
    valid_items: Annotated[int, msgspec.Meta(ge=1)] = 128
    learning_rate: float = 1e-3
    adam_betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01


def _bandwidths_of(codec: Codec) -> tuple[float, ...]:
    """Those that a codec was trained for; of one that was trained for all, of every codebook."""
    stated: tuple[float, ...] = getattr(codec.config, "target_bandwidths_kbps", ())
    every = range(1, codec.config.quantizer.codebooks + 1)
    return stated or tuple(codec.bandwidth_of(codebooks) for codebooks in every)


class EntropyTask(Task):
    """Trains an entropy model for a codec."""

    Settings: ClassVar[type[msgspec.Struct]] = EntropySettings
    averaged_modules: ClassVar[tuple[str, ...]] = ("model",)
    settings: EntropySettings

    def __init__(self, settings: EntropySettings) -> None:
        super().__init__(settings)
        self.codec = load_codec(settings.codec)
        self.bandwidths = _bandwidths_of(self.codec)
        self.model: EntropyCore
        if settings.published is None:
            self.model = first_model(CompactEntropyModel, settings.model, settings.start)
        else:
            self.model = first_model(EntropyModel, settings.published, settings.start)
        quantizer, config = self.codec.config.quantizer, self.model.config
        if (quantizer.codebooks, quantizer.codebook_size) != (
            config.codebooks,
            config.codebook_size,
        ):
            raise ConfigError(
                f"the recipe's model is for {config.codebooks} codebooks of {config.codebook_size} "
                f"tokens, {settings.codec} has {quantizer.codebooks} of {quantizer.codebook_size}"
            )

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def make_optimizers(self) -> dict[str, Optimizer]:
        settings = self.settings
        return {
            "model": AdamW(
                self.model.parameters(),
                settings.learning_rate,
                settings.adam_betas,
                weight_decay=settings.weight_decay,
                fused=True,
            )
        }

    def training_data(self, seed: int) -> TokenDataset:
        return self._data("train", seed, self.settings.train_items)

    def validation_data(self) -> TokenDataset:
        return self._data("valid", 0, self.settings.valid_items)

    def _data(self, split: Split, seed: int, size: int) -> TokenDataset:
        items = read_manifest(self.settings.manifest, split)
        with PartialState().main_process_first():  # it computes the tokens, the others find them
            folder = cached_tokens(self.codec, items, Path(self.settings.tokens))
        frames = round(self.settings.segment_seconds * self.codec.frame_rate)
        return TokenDataset(folder, frames, seed, size)

    def step(self, batch: Tensor, context: StepContext) -> Metrics:
        """One step on tokens [batch, codebooks, frames]."""
        drawn = int(torch.randint(len(self.bandwidths), (), generator=context.generator))
        offsets = self.settings.largest_offset + 1
        offset = int(torch.randint(offsets, (), generator=context.generator))
        tokens = batch[:, : self.codec.codebooks_for(self.bandwidths[drawn])]
        with context.autocast():
            bits = self._bits_per_token(tokens, offset)
        bits.backward()
        context.apply("model")
        return {"bits_per_token": bits.detach()}

    def evaluate(self, batch: Tensor) -> Metrics:
        """Coded size in kb/s, and the share that it saves, at every bandwidth."""
        metrics: dict[str, Tensor | float] = {}
        packed_bits = math.log2(self.codec.config.quantizer.codebook_size)
        for bandwidth in self.bandwidths:
            codebooks = self.codec.codebooks_for(bandwidth)
            bits = self._bits_per_token(batch[:, :codebooks])
            rate = codebooks * self.codec.sample_rate / self.codec.hop_samples / 1000
            metrics[f"coded_kbps_{bandwidth:g}"] = bits * rate
            metrics[f"saved_{bandwidth:g}"] = 1 - bits / packed_bits
        return metrics

    def _bits_per_token(self, tokens: Tensor, offset: int = 0) -> Tensor:
        known = tokens.clamp(min=0)
        hidden = self.model.hidden(previous_tokens(known), first_position=offset)
        logits = self.model.logits(hidden, known)
        return F.cross_entropy(logits.float(), tokens, ignore_index=NOTHING) / math.log(2)

    def export(self, folder: Path) -> None:
        """Half the bytes in fp16; the coder's steps are no finer."""
        self.model.save_pretrained(folder, torch.float16)
