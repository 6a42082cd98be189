"""Training of Mimi: the training of all codecs, with a first codebook that learns meaning.

Source: Mimi (arXiv 2410.00037, section 3.3). The output of the semantic part of the quantizer, seen
through a linear layer that only training has, shall point where the features of a teacher point.
Every step draws how many acoustic codebooks are in use, and for every sound whether it is quantised
at all. Weights of transformers decay, others do not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from sonorant.codec.adversarial_training import (
    AdversarialSettings,
    AdversarialTask,
    AdversarySettings,
    Attempt,
    Natural,
    Share,
)
from sonorant.codec.decoder_training import DecoderOnly, attempt_decoder, decoder_optimizer
from sonorant.codec.mimi import Mimi, MimiConfig
from sonorant.codec.mimi_start import VocoderSettings, fit_projections, start_mimi
from sonorant.codec.semantic_teachers import Teacher, TeacherSettings, WavLMSettings, make_teacher
from sonorant.errors import ConfigError
from sonorant.training.start import first_model
from sonorant.training.task import Metrics, StepContext


class SemanticSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Distillation of meaning into the semantic codebooks.

    teacher: None distils nothing. weight: of the cosine distance, outside the balancer; the paper
        gives none.
    """

    teacher: TeacherSettings | None = WavLMSettings()
    weight: float = 1.0


class MimiSettings(AdversarialSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `settings` section of a Mimi recipe; the rest of it in `AdversarialSettings`.

    model: a model to train on, by name or path; it must have the recipe's codec config.
    vocoder: first weights that pass sound through, and what the quantizer sees of it
        (`sonorant.codec.mimi_start`); with `codebook_segments`, from which the latter is found.
    decoder_only: leave the encoder and the codebooks as they start; None trains all.
    codebook_segments: training segments for the k-means start of the codebooks; 0 starts them from
        the first batch, as published.
    codebook_dropout: draw how many acoustic codebooks are in use; otherwise all are.
    bypass: share of the sounds that the decoder gets without quantisation (section 3.3.2: 1/2).
    transformer_decay: AdamW's decay of the transformers' weights.
    evaluated_codebooks: numbers of codebooks at which validation listens.
    """

    codec: MimiConfig = MimiConfig()
    model: str | None = None
    vocoder: VocoderSettings | None = None
    decoder_only: DecoderOnly | None = None
    codebook_segments: Natural = 0
    semantic: SemanticSettings = SemanticSettings()
    codebook_dropout: bool = True
    bypass: Share = 0.5
    transformer_decay: float = 5e-2
    evaluated_codebooks: tuple[Annotated[int, msgspec.Meta(ge=1)], ...] = (8,)
    adversary: AdversarySettings = AdversarySettings(per_bandwidth=False, update_probability=1.0)
    learning_rate: float = 8e-4

    def __post_init__(self) -> None:
        if self.adversary.per_bandwidth:
            raise ConfigError("Mimi has one set of discriminators; set adversary.per_bandwidth off")
        most = self.codec.quantizer.codebooks
        if not self.evaluated_codebooks or max(self.evaluated_codebooks) > most:
            raise ConfigError(
                f"evaluated_codebooks must name some of this codec's 1 to {most}, "
                f"got {list(self.evaluated_codebooks)}"
            )
        if self.vocoder is not None and (
            not self.codebook_segments or self.semantic.teacher is None or self.model is not None
        ):
            raise ConfigError(
                "the vocoder start finds the codebooks' spaces from codebook_segments and a "
                "semantic.teacher; give both, and no model"
            )
        if self.decoder_only is not None and self.independence is not None:
            raise ConfigError("with decoder_only codebooks do not learn; take out independence")
        if self.decoder_only is not None and not (self.model or self.codebook_segments):
            raise ConfigError(
                "with decoder_only codebooks do not learn; give codebook_segments or model, so "
                "that they have codewords"
            )


class MimiTask(AdversarialTask):
    """Trains a `Mimi`. `teacher` may be any module in the place of the one that the recipe names.

    The teacher stays as it is, and is not kept in checkpoints.
    """

    Settings: ClassVar[type[msgspec.Struct]] = MimiSettings
    settings: MimiSettings
    codec: Mimi

    def __init__(self, settings: MimiSettings, teacher: Teacher | None = None) -> None:
        codec = first_mimi(settings)
        counts = settings.evaluated_codebooks
        super().__init__(settings, codec, tuple(codec.bandwidth_of(count) for count in counts))
        chosen = settings.semantic.teacher
        if teacher is None and chosen is not None:
            teacher = make_teacher(chosen, codec.sample_rate, codec.hop_samples)
        self.teacher = teacher
        self.student: nn.Linear | None = None
        if teacher is not None and settings.decoder_only is None:
            self.student = nn.Linear(settings.codec.seanet.dimension, teacher.dimensions)

    def modules(self) -> dict[str, nn.Module]:
        student = {} if self.student is None else {"student": self.student}
        return super().modules() | student

    def codec_optimizer(self, rate: float, betas: tuple[float, float]) -> Optimizer:
        codec = self.codec
        if self.settings.decoder_only is not None:
            before = [codec.decoder_transformer]
            return decoder_optimizer(codec.decoder, before, self.settings.decoder_only, rate, betas)
        transformers = nn.ModuleList([codec.encoder_transformer, codec.decoder_transformer])
        decaying = list(transformers.parameters())
        known = {id(parameter) for parameter in decaying}
        others = [each for each in codec.parameters() if id(each) not in known]
        if self.student is not None:
            others += self.student.parameters()
        groups = [
            {"params": decaying, "weight_decay": self.settings.transformer_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return AdamW(groups, rate, betas, fused=True)

    def attempt(self, batch: Tensor, context: StepContext) -> Attempt:
        settings = self.settings
        if context.step == 0 and settings.codebook_segments:
            self.start_codebooks(batch, settings.codebook_segments)
        if settings.decoder_only is not None:
            return attempt_decoder(self.codec, batch, self._draw_codebooks(context), 0)
        bypass = torch.rand(len(batch), device=batch.device) < settings.bypass
        reconstruction, semantic, commitment = self.codec(
            batch, self._draw_codebooks(context), bypass
        )
        penalty = commitment * settings.commitment_weight
        metrics: dict[str, Tensor | float] = {"commitment": commitment.detach()}
        metrics |= self.promote_independence(batch)
        if self.student is not None:
            distance = self._semantic_distance(semantic, batch)
            penalty = penalty + distance * settings.semantic.weight
            metrics["semantic"] = distance.detach()
        return Attempt(reconstruction, penalty, 0, metrics)

    def before_codebooks(self, sounds: Iterable[Tensor], latents: Tensor) -> None:
        """Find what the codebooks quantise, if the codec starts as a vocoder."""
        if self.settings.vocoder is None:
            return
        assert self.teacher is not None
        features = torch.cat([self.teacher(sound) for sound in sounds])
        fit_projections(self.codec, latents, features, self.settings.vocoder)

    def _draw_codebooks(self, context: StepContext) -> int:
        """At least one acoustic codebook beside the semantic ones."""
        config = self.codec.config
        acoustic = config.quantizer.codebooks - config.semantic_codebooks
        if self.settings.codebook_dropout:
            acoustic = 1 + int(torch.randint(acoustic, (), generator=context.generator))
        return config.semantic_codebooks + acoustic

    def _semantic_distance(self, semantic: Tensor, batch: Tensor) -> Tensor:
        """Mean cosine distance between the student's view of `[batch, width, frames]` and the
        teacher's of the sound."""
        assert self.student is not None
        assert self.teacher is not None
        if isinstance(self.teacher, nn.Module):
            self.teacher.to(batch.device)
        with torch.no_grad():
            target = self.teacher(batch)
        seen = self.student(semantic.transpose(1, 2))
        return 1 - F.cosine_similarity(seen, target, dim=-1).mean()

    def evaluate(self, batch: Tensor) -> Metrics:
        """The figures of all codecs, and how far the semantic codebooks are from the teacher."""
        metrics = dict(super().evaluate(batch))
        if self.student is not None:
            count = self.codec.config.semantic_codebooks
            tokens = self.codec.quantizer.encode(self.codec.to_latent(batch), count)
            semantic = self.codec.quantizer.decode(tokens)
            metrics["semantic"] = self._semantic_distance(semantic, batch)
        return metrics


def first_mimi(settings: MimiSettings) -> Mimi:
    """The codec that training starts from; raises as `first_model`."""
    if settings.model is None:
        codec = Mimi(settings.codec)
        if settings.vocoder is not None:
            start_mimi(codec, settings.vocoder)
        return codec
    return first_model(Mimi, settings.codec, settings.model)
