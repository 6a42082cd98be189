"""Training of EnCodec models.

Source: EnCodec (arXiv 2210.13438, sections 3.4 and 4). Every step draws one bandwidth for the
batch; the rest is the training that all codecs share.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
from torch import Tensor
from torch.optim import Optimizer

from sonorant.codec.adversarial_training import AdversarialSettings, AdversarialTask, Attempt
from sonorant.codec.decoder_training import DecoderOnly, attempt_decoder, decoder_optimizer
from sonorant.codec.encodec import Encodec, EncodecConfig
from sonorant.errors import ConfigError
from sonorant.nn.seanet_start import start_as_transform
from sonorant.training.start import first_model
from sonorant.training.task import StepContext


class StartSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where training starts.

    model: a model to train on, by name or path; it must have the recipe's codec config. Its weight
        norm stays folded.
    transform: first weights that pass sound through (`sonorant.nn.seanet_start`).
    noise_bands: dimensions of the latent that then carry levels of noise at high frequencies.
    codebook_segments: training segments for the k-means start of the codebooks; 0 starts them from
        the first batch, as published.
    """

    model: str | None = None
    transform: bool = False
    noise_bands: Annotated[int, msgspec.Meta(ge=0)] = 0
    codebook_segments: Annotated[int, msgspec.Meta(ge=0)] = 0


class CodecSettings(AdversarialSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `settings` section of a codec recipe; the rest of it in `AdversarialSettings`.

    decoder_only: leave the encoder and the codebooks as they start; None trains all.

    Raises: ConfigError for `decoder_only` with independence, or with codebooks that have no start.
    """

    codec: EncodecConfig = EncodecConfig()
    start: StartSettings = StartSettings()
    decoder_only: DecoderOnly | None = None

    def __post_init__(self) -> None:
        if self.decoder_only is None:
            return
        if self.independence is not None:
            raise ConfigError("with decoder_only codebooks do not learn; take out independence")
        if self.start.model is None and not self.start.codebook_segments:
            raise ConfigError(
                "with decoder_only codebooks do not learn; give start.codebook_segments or "
                "start.model, so that they have codewords"
            )


class CodecTask(AdversarialTask):
    """Trains an `Encodec`."""

    Settings: ClassVar[type[msgspec.Struct]] = CodecSettings
    settings: CodecSettings
    codec: Encodec

    def __init__(self, settings: CodecSettings) -> None:
        codec = first_codec(settings)
        super().__init__(settings, codec, settings.codec.target_bandwidths_kbps)

    def attempt(self, batch: Tensor, context: StepContext) -> Attempt:
        if context.step == 0 and self.settings.start.codebook_segments:
            self.start_codebooks(batch, self.settings.start.codebook_segments)
        drawn = self.draw_bandwidth(context)
        codebooks = self.codec.codebooks_for(self.bandwidths[drawn])
        if self.settings.decoder_only is not None:
            return attempt_decoder(self.codec, batch, codebooks, drawn)
        reconstruction, _, penalty = self.codec(batch, codebooks)
        metrics: dict[str, Tensor | float] = {"commitment": penalty.detach()}
        metrics |= self.promote_independence(batch)
        return Attempt(reconstruction, penalty * self.settings.commitment_weight, drawn, metrics)

    def codec_optimizer(self, rate: float, betas: tuple[float, float]) -> Optimizer:
        if self.settings.decoder_only is None:
            return super().codec_optimizer(rate, betas)
        return decoder_optimizer(self.codec.decoder, [], self.settings.decoder_only, rate, betas)


def first_codec(settings: CodecSettings) -> Encodec:
    """The codec that training starts from; raises as `first_model`."""
    if settings.start.model is not None:
        return first_model(Encodec, settings.codec, settings.start.model)
    codec = Encodec(settings.codec)
    if settings.start.transform:
        bands = settings.start.noise_bands
        seanet, rate = settings.codec.seanet, settings.codec.sample_rate
        start_as_transform(codec.encoder, codec.decoder, seanet, rate, bands)
    return codec
