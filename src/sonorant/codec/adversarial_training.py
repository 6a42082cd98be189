"""The training that all codecs share: reconstruction, adversary, commitment, balanced.

Source: EnCodec (arXiv 2210.13438, sections 3.4 and 4). The discriminators learn in a random share
of the steps; then the codec is pulled by the time, mel, adversarial and feature losses, of which
the balancer fixes the shares of the gradient at the waveform, and by penalties on what lies before
it, which stand outside the balancer. A loss of weight 0 is left out: without time and mel it is the
adversarial-only training of Mimi (arXiv 2410.00037, section 3.3.3).

What differs between codecs is one forward pass, `AdversarialTask.attempt`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from sonorant.audio import Audio
from sonorant.codec.codec import Codec
from sonorant.codec.independence_training import IndependencePromoter, IndependenceSettings
from sonorant.data.dataset import ManifestSegments, SegmentConfig, SegmentDataset
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
from sonorant.training.task import Metrics, StepContext, Task, numbered_sounds

CODEBOOK_SEED = 2**31  # of the segments that start the codebooks, apart from those trained on
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Natural = Annotated[int, msgspec.Meta(ge=0)]


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
    from_step: Natural = 0


class AdversarialSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the `settings` sections of all codec recipes have.

    manifest: JSON Lines file of the audio, relative to the working folder.
    train_items, valid_items: segments per epoch, and in the validation set.
    independence: train codebooks to be independent of each other; None does not.
    """

    manifest: str
    segments: SegmentConfig = SegmentConfig()
    train_items: Annotated[int, msgspec.Meta(ge=1)] = 10_000_000
    valid_items: Annotated[int, msgspec.Meta(ge=1)] = 64
    sounds: Natural = 4
    mel: MultiScaleMelConfig = MultiScaleMelConfig()
    weights: LossWeights = LossWeights()
    balancer: BalancerConfig = BalancerConfig()
    commitment_weight: float = 1.0
    adversary: AdversarySettings = AdversarySettings()
    independence: IndependenceSettings | None = None
    learning_rate: float = 3e-4
    adam_betas: tuple[float, float] = (0.5, 0.9)


@dataclass(frozen=True)
class Attempt:
    """One forward pass of a codec in training.

    reconstruction: `[batch, channels, time]`. penalty: a scalar on what lies before it, weighted,
        or None if nothing there learns.
    bandwidth: index of the one that was drawn, which chooses the discriminator.
    metrics: what to log, detached.
    """

    reconstruction: Tensor
    penalty: Tensor | None
    bandwidth: int
    metrics: dict[str, Tensor | float]


class AdversarialTask(Task):
    """Trains a codec against discriminators. Subclasses give the codec and `attempt`."""

    averaged_modules: ClassVar[tuple[str, ...]] = ("codec",)
    settings: AdversarialSettings

    def __init__(
        self, settings: AdversarialSettings, codec: Codec, bandwidths: tuple[float, ...]
    ) -> None:
        """bandwidths: in kb/s, at which the codec is evaluated; one is drawn at each step."""
        super().__init__(settings)
        weights = settings.weights
        if settings.adversary.from_step and not weights.time + weights.mel > 0:
            raise ConfigError(
                "before adversary.from_step the codec learns by the time and mel losses; give one "
                "of them a weight, or begin with the adversary at step 0"
            )
        self.codec = codec
        self.bandwidths = bandwidths
        adversaries = len(bandwidths) if settings.adversary.per_bandwidth else 1
        self.discriminators = nn.ModuleList(
            MSSTFTDiscriminator(settings.adversary.network) for _ in range(adversaries)
        )
        self.mel = MultiScaleMelLoss(codec.sample_rate, settings.mel)
        self.data = ManifestSegments(settings.manifest, settings.segments)
        self.balancer = Balancer(msgspec.structs.asdict(weights), settings.balancer)
        self.independence: IndependencePromoter | None = None
        if settings.independence is not None:
            self.independence = IndependencePromoter(settings.independence)

    @abstractmethod
    def attempt(self, batch: Tensor, context: StepContext) -> Attempt:
        """One forward pass on sounds `[batch, channels, time]`."""

    def modules(self) -> dict[str, nn.Module]:
        return {"codec": self.codec, "discriminators": self.discriminators}

    def make_optimizers(self) -> dict[str, Optimizer]:
        rate, betas = self.settings.learning_rate, self.settings.adam_betas
        adversary_rate = self.settings.adversary.learning_rate or rate
        return {
            "codec": self.codec_optimizer(rate, betas),
            "discriminators": Adam(
                self.discriminators.parameters(), adversary_rate, betas, fused=True
            ),
        }

    def codec_optimizer(self, rate: float, betas: tuple[float, float]) -> Optimizer:
        return Adam(self.codec.parameters(), rate, betas, fused=True)

    def training_data(self, seed: int) -> SegmentDataset:
        return self.data.training(seed, self.settings.train_items)

    def validation_data(self) -> SegmentDataset:
        return self.data.validation(self.settings.valid_items)

    # -- one step -----------------------------------------------------------------------------

    def step(self, batch: Tensor, context: StepContext) -> Metrics:
        """One step on sounds `[batch, channels, time]`.

        The discriminators learn before the codec's losses are taken, so the codec sees them
        updated.
        """
        learns = float(torch.rand((), generator=context.generator))
        attempt = self.attempt(batch, context)
        reconstruction, metrics = attempt.reconstruction, dict(attempt.metrics)
        losses = self._reconstruction_losses(reconstruction, batch)
        if context.step >= self.settings.adversary.from_step:
            discriminator = self.discriminators[attempt.bandwidth % len(self.discriminators)]
            if learns < self.settings.adversary.update_probability:
                metrics["discriminators"] = self._train_discriminator(
                    discriminator, batch, reconstruction.detach(), context
                )
            losses |= self._adversarial_losses(discriminator, batch, reconstruction, context)
        gradient = self.balancer.gradient(losses, reconstruction)
        if attempt.penalty is None:
            reconstruction.backward(gradient)
        else:  # one pass through the encoder serves both
            torch.autograd.backward([reconstruction, attempt.penalty], [gradient, None])
        context.apply("codec")
        return metrics | {name: loss.detach() for name, loss in losses.items()}

    def promote_independence(self, batch: Tensor) -> dict[str, Tensor]:
        """The gradient of the independence loss, if it is asked for; what there is to log."""
        return {} if self.independence is None else self.independence.backward(self.codec, batch)

    def _reconstruction_losses(self, reconstruction: Tensor, batch: Tensor) -> dict[str, Tensor]:
        losses = {}
        if self.settings.weights.time:
            losses["time"] = l1_loss(reconstruction, batch)
        if self.settings.weights.mel:
            losses["mel"] = self.mel(reconstruction, batch)
        return losses

    def draw_bandwidth(self, context: StepContext) -> int:
        """Index of the bandwidth of this step, the same for all processes."""
        return int(torch.randint(len(self.bandwidths), (), generator=context.generator))

    @torch.no_grad()
    def start_codebooks(self, batch: Tensor, segments: int) -> None:
        """Start the codebooks from more segments than one batch has."""
        data = self.data.training(CODEBOOK_SEED, segments)

        def sounds() -> Iterator[Tensor]:
            return (data[index][None].to(batch.device) for index in range(segments))

        latents = torch.cat([self.codec.to_latent(sound) for sound in sounds()])
        self.before_codebooks(sounds(), latents)
        frames = self.codec.frames_of(batch.shape[-1])
        processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        self.codec.quantizer.initialize(latents, len(batch) * frames * processes)

    def before_codebooks(self, sounds: Iterable[Tensor], latents: Tensor) -> None:
        """Called once, before k-means, with the sounds `[1, channels, time]` that the codebooks
        start from and their latents; for tasks that choose what is quantised."""

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
        codebooks = [module for module in self.codec.modules() if isinstance(module, Codebook)]
        for level, codebook in enumerate(codebooks):
            metrics[f"perplexity_{level}"] = _perplexity(codebook.usage)
        return metrics

    def samples(self) -> dict[str, Audio]:
        """The first validation sounds, as they are and at every bandwidth."""
        data = self.validation_data()
        count = min(self.settings.sounds, len(data))
        if count == 0:
            return {}
        device = next(self.codec.parameters()).device
        batch = torch.stack([data[index] for index in range(count)]).to(device)
        coded = {f"{kbps:g}kbps": sound for kbps, sound in self._reconstructions(batch)}
        return numbered_sounds({"original": batch, **coded}, self.codec.sample_rate)

    def _reconstructions(self, batch: Tensor) -> Iterator[tuple[float, Tensor]]:
        tokens = self.codec.quantizer.encode(self.codec.to_latent(batch))
        for bandwidth in self.bandwidths:
            kept = tokens[:, : self.codec.codebooks_for(bandwidth)]
            sound = self.codec.from_latent(self.codec.quantizer.decode(kept))
            yield bandwidth, sound[..., : batch.shape[-1]]

    # -- state --------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"balancer": self.balancer.state_dict()}
        if self.independence is not None:
            state["independence"] = self.independence.state_dict()
        return state

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.balancer.load_state_dict(state["balancer"])
        if self.independence is not None:
            self.independence.load_state_dict(state["independence"])

    def export(self, folder: Path) -> None:
        self.codec.save_pretrained(folder)


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
