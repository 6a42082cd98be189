"""Training of EnCodec models: reconstruction, adversary, commitment.

Source: EnCodec (arXiv 2210.13438, sections 3.4 and 4). Every step draws one bandwidth for the
batch. The discriminators learn in a random share of the steps; then the codec is pulled by the
time, mel, adversarial and feature losses, of which the balancer fixes the shares of the gradient
at the waveform, and by the commitment penalty, which stands outside the balancer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from sonorant.audio import Audio
from sonorant.codec.encodec import Encodec, EncodecConfig
from sonorant.codec.independence_training import IndependencePromoter, IndependenceSettings
from sonorant.data.dataset import SegmentConfig, SegmentDataset
from sonorant.data.manifest import Item, Split, read_manifest
from sonorant.errors import ConfigError
from sonorant.losses.adversarial import (
    discriminator_loss,
    hinge_generator_loss,
    relative_feature_matching_loss,
)
from sonorant.losses.balancer import Balancer, BalancerConfig
from sonorant.losses.msstft_discriminator import MSSTFTDiscriminator, MSSTFTDiscriminatorConfig
from sonorant.losses.spectral import (
    MultiScaleMelConfig,
    MultiScaleMelLoss,
    l1_loss,
    si_snr_loss,
)
from sonorant.nn.quantizer import Codebook
from sonorant.nn.seanet_start import start_as_transform
from sonorant.training.task import Metrics, StepContext, Task

CODEBOOK_SEED = 2**31  # of the segments that start the codebooks, apart from those trained on
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class LossWeights(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Shares of the gradient at the waveform. Section 3.4: 0.1, 1, 3, 3 at 24 kHz."""

    time: float = 0.1
    mel: float = 1.0
    adversarial: float = 3.0
    features: float = 3.0


class AdversarySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The discriminators and when they learn.

    per_bandwidth: one set for each bandwidth (section 3.4); otherwise one for all.
    update_probability: share of the steps in which they learn (section 3.4: 2/3 at 24 kHz).
    learning_rate: theirs; the codec's when None.
    from_step: before this step the codec learns reconstruction only.
    """

    network: MSSTFTDiscriminatorConfig = MSSTFTDiscriminatorConfig()
    per_bandwidth: bool = True
    update_probability: Share = 2 / 3
    learning_rate: float | None = None
    from_step: Annotated[int, msgspec.Meta(ge=0)] = 0


class StartSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where training starts.

    model: a model to train on, by name or path; it must have the recipe's codec config. Its weight
        norm stays folded.
    transform: first weights that pass sound through (`sonorant.nn.seanet_start`).
    codebook_segments: training segments for the k-means start of the codebooks; 0 starts them from
        the first batch, as published.
    """

    model: str | None = None
    transform: bool = False
    codebook_segments: Annotated[int, msgspec.Meta(ge=0)] = 0


class CodecSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `settings` section of a codec recipe.

    manifest: JSON Lines file of the audio, relative to the working folder.
    train_items, valid_items: segments per epoch, and in the validation set.
    independence: train codebooks to be independent of each other; None does not.
    """

    manifest: str
    codec: EncodecConfig = EncodecConfig()
    segments: SegmentConfig = SegmentConfig()
    train_items: Annotated[int, msgspec.Meta(ge=1)] = 10_000_000
    valid_items: Annotated[int, msgspec.Meta(ge=1)] = 64
    sounds: Annotated[int, msgspec.Meta(ge=0)] = 4
    mel: MultiScaleMelConfig = MultiScaleMelConfig()
    weights: LossWeights = LossWeights()
    balancer: BalancerConfig = BalancerConfig()
    commitment_weight: float = 1.0
    independence: IndependenceSettings | None = None
    adversary: AdversarySettings = AdversarySettings()
    start: StartSettings = StartSettings()
    learning_rate: float = 3e-4
    adam_betas: tuple[float, float] = (0.5, 0.9)


class CodecTask(Task):
    """Trains an `Encodec`."""

    Settings: ClassVar[type[msgspec.Struct]] = CodecSettings
    averaged_modules: ClassVar[tuple[str, ...]] = ("codec",)
    settings: CodecSettings

    def __init__(self, settings: CodecSettings) -> None:
        super().__init__(settings)
        self.codec = first_codec(settings)
        self.bandwidths = settings.codec.target_bandwidths_kbps
        adversaries = len(self.bandwidths) if settings.adversary.per_bandwidth else 1
        self.discriminators = nn.ModuleList(
            MSSTFTDiscriminator(settings.adversary.network) for _ in range(adversaries)
        )
        self.mel = MultiScaleMelLoss(settings.codec.sample_rate, settings.mel)
        self._items: dict[Split, list[Item]] = {}
        self.balancer = Balancer(msgspec.structs.asdict(settings.weights), settings.balancer)
        self.independence = (
            None if settings.independence is None else IndependencePromoter(settings.independence)
        )

    def modules(self) -> dict[str, nn.Module]:
        return {"codec": self.codec, "discriminators": self.discriminators}

    def make_optimizers(self) -> dict[str, Optimizer]:
        rate, betas = self.settings.learning_rate, self.settings.adam_betas
        adversary_rate = self.settings.adversary.learning_rate or rate
        return {
            "codec": Adam(self.codec.parameters(), rate, betas, fused=True),
            "discriminators": Adam(
                self.discriminators.parameters(), adversary_rate, betas, fused=True
            ),
        }

    def training_data(self, seed: int) -> SegmentDataset:
        return self._data("train", self.settings.segments, seed, self.settings.train_items)

    def validation_data(self) -> SegmentDataset:
        """Always the same segments, neither mixed nor changed in level."""
        plain = msgspec.structs.replace(self.settings.segments, gain_db=None, mixing=None)
        return self._data("valid", plain, 0, self.settings.valid_items)

    def _data(self, split: Split, segments: SegmentConfig, seed: int, size: int) -> SegmentDataset:
        if split not in self._items:
            self._items[split] = read_manifest(self.settings.manifest, split)
        return SegmentDataset(self._items[split], segments, seed, size)

    # -- one step -----------------------------------------------------------------------------

    def step(self, batch: Tensor, context: StepContext) -> Metrics:
        """One step on sounds `[batch, channels, time]`.

        The discriminators learn before the codec's losses are taken, so the codec sees them
        updated.
        """
        if context.step == 0 and self.settings.start.codebook_segments:
            self._start_codebooks(batch)
        drawn = int(torch.randint(len(self.bandwidths), (), generator=context.generator))
        learns = float(torch.rand((), generator=context.generator))
        codebooks = self.codec.codebooks_for(self.bandwidths[drawn])
        reconstruction, _, penalty = self.codec(batch, codebooks)
        metrics: dict[str, Tensor | float] = {"commitment": penalty.detach()}
        losses = {
            "time": l1_loss(reconstruction, batch),
            "mel": self.mel(reconstruction, batch),
        }
        if context.step >= self.settings.adversary.from_step:
            discriminator = self.discriminators[drawn % len(self.discriminators)]
            if learns < self.settings.adversary.update_probability:
                metrics["discriminators"] = self._train_discriminator(
                    discriminator, batch, reconstruction.detach(), context
                )
            losses |= self._adversarial_losses(discriminator, batch, reconstruction, context)
        gradient = self.balancer.gradient(losses, reconstruction)
        penalty = penalty * self.settings.commitment_weight
        # One pass through the encoder serves both.
        torch.autograd.backward([reconstruction, penalty], [gradient, None])
        if self.independence is not None:
            metrics |= self.independence.backward(self.codec, batch)
        context.apply("codec")
        return metrics | {name: loss.detach() for name, loss in losses.items()}

    @torch.no_grad()
    def _start_codebooks(self, batch: Tensor) -> None:
        """Start the codebooks from more segments than one batch has."""
        count = self.settings.start.codebook_segments
        data = self._data("train", self.settings.segments, CODEBOOK_SEED, count)
        latents = torch.cat(
            [self.codec.encoder(data[index][None].to(batch.device)) for index in range(count)]
        )
        frames = self.codec.frames_of(batch.shape[-1])
        processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        self.codec.quantizer.initialize(latents, len(batch) * frames * processes)

    def _train_discriminator(
        self, discriminator: nn.Module, real: Tensor, fake: Tensor, context: StepContext
    ) -> Tensor:
        with context.autocast():
            real_logits, _ = discriminator(real)
            fake_logits, _ = discriminator(fake)
        loss = discriminator_loss(real_logits, fake_logits)
        loss.backward()
        context.apply("discriminators")
        return loss.detach()

    def _adversarial_losses(
        self, discriminator: nn.Module, real: Tensor, fake: Tensor, context: StepContext
    ) -> dict[str, Tensor]:
        with _frozen(discriminator), context.autocast():
            with torch.no_grad():
                _, real_features = discriminator(real)
            fake_logits, fake_features = discriminator(fake)
        return {
            "adversarial": hinge_generator_loss(fake_logits),
            "features": relative_feature_matching_loss(real_features, fake_features),
        }

    # -- evaluation ---------------------------------------------------------------------------

    def evaluate(self, batch: Tensor) -> Metrics:
        """SI-SNR in dB and mel distance at every bandwidth, and how many codewords are in use."""
        metrics: dict[str, Tensor | float] = {}
        target_mels = self.mel.mels(batch)
        for bandwidth, sound in self._reconstructions(batch):
            metrics[f"si_snr_{bandwidth:g}kbps"] = -si_snr_loss(sound, batch)
            metrics[f"mel_{bandwidth:g}kbps"] = self.mel.distance(self.mel.mels(sound), target_mels)
        for level, codebook in enumerate(self.codec.quantizer.layers):
            metrics[f"perplexity_{level}"] = _perplexity(cast(Codebook, codebook).usage)
        return metrics

    def samples(self) -> dict[str, Audio]:
        """The first validation sounds, as they are and at every bandwidth."""
        data = self.validation_data()
        count = min(self.settings.sounds, len(data))
        if count == 0:
            return {}
        device = next(self.codec.parameters()).device
        batch = torch.stack([data[index] for index in range(count)]).to(device)
        versions = [("original", batch)]
        versions += [(f"{kbps:g}kbps", sound) for kbps, sound in self._reconstructions(batch)]
        return {
            f"{index}_{name}": Audio(sounds[index].clamp(-1, 1).cpu(), self.codec.sample_rate)
            for name, sounds in versions
            for index in range(count)
        }

    def _reconstructions(self, batch: Tensor) -> Iterator[tuple[float, Tensor]]:
        tokens = self.codec.quantizer.encode(self.codec.encoder(batch))
        for bandwidth in self.bandwidths:
            kept = tokens[:, : self.codec.codebooks_for(bandwidth)]
            sound = self.codec.decoder(self.codec.quantizer.decode(kept))
            yield bandwidth, sound[..., : batch.shape[-1]]

    # -- state --------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        state = {"balancer": self.balancer.state_dict()}
        if self.independence is not None:
            state["independence"] = self.independence.state_dict()
        return state

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.balancer.load_state_dict(state["balancer"])
        if self.independence is not None:
            self.independence.load_state_dict(state["independence"])

    def export(self, folder: Path) -> None:
        self.codec.save_pretrained(folder)


def first_codec(settings: CodecSettings) -> Encodec:
    """The codec that training starts from.

    Raises: ConfigError if the model to train on has another config than the recipe.
    """
    if settings.start.model is not None:
        codec = Encodec.from_pretrained(settings.start.model)
        if codec.config != settings.codec:
            raise ConfigError(
                f"{settings.start.model} has another config than the recipe's codec section; "
                "copy the one from its config.json"
            )
        return codec.train()
    codec = Encodec(settings.codec)
    if settings.start.transform:
        start_as_transform(codec.encoder, codec.decoder, settings.codec.seanet)
    return codec


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradients for the weights of `module`, only through it."""
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def _perplexity(usage: Tensor) -> Tensor:
    """How many codewords are in use in effect: exp of the entropy of the moving usage."""
    shares = usage / usage.sum().clamp(min=1e-12)
    return torch.special.entr(shares).sum().exp()
