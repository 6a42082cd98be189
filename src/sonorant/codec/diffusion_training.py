"""Training of Multi-Band Diffusion on a finished codec.

Source: arXiv 2308.02560, sections 3 and 4.1. Sound is split into as many bands as there are models,
equally wide in mels. Each model sees its band with noise of a random step and the codec's latents
of the whole sound, and learns to tell the noise. The models share nothing: one run may train all of
them, or one, and `join_bands` puts together what was trained apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from sonorant.audio import Audio
from sonorant.codec.diffusion_bands import match_bands
from sonorant.codec.encodec import EncodecCore
from sonorant.codec.multiband_diffusion import (
    BandConfig,
    DiffusionBand,
    MultiBandDiffusion,
    MultiBandDiffusionConfig,
)
from sonorant.data.dataset import ManifestSegments, SegmentConfig, SegmentDataset
from sonorant.dsp.filters import split_bands
from sonorant.errors import ConfigError
from sonorant.losses.relative_volume import relative_volume
from sonorant.training.task import Metrics, StepContext, Task, numbered_sounds

Count = Annotated[int, msgspec.Meta(ge=1)]
VALIDATION_SEED = 1


class DiffusionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The `settings` section of a recipe. The learning rate is the paper's (section 4.1).

    manifest: JSON Lines file of the audio, relative to the working folder.
    codec: name or path of the finished codec; it is not trained.
    bandwidth_kbps: of the tokens that the latents are made of.
    bands: the models of all bands, low to high. Their channels and condition_dimension are the
        codec's, whatever they say.
    only_band: train and export this one alone.
    calls: of each network where the whole model is evaluated.
    """

    manifest: str
    codec: str
    bandwidth_kbps: float
    bands: tuple[BandConfig, ...] = (BandConfig(),) * 4
    only_band: Annotated[int, msgspec.Meta(ge=0)] | None = None
    segments: SegmentConfig = SegmentConfig()
    train_items: Count = 10_000_000
    valid_items: Count = 16
    sounds: Annotated[int, msgspec.Meta(ge=0)] = 4
    calls: Count = 20
    learning_rate: float = 1e-4
    adam_betas: tuple[float, float] = (0.9, 0.999)


class DiffusionTask(Task):
    """Trains a `MultiBandDiffusion`, all its bands at every step."""

    Settings: ClassVar[type[msgspec.Struct]] = DiffusionSettings
    averaged_modules: ClassVar[tuple[str, ...]] = ("diffusion",)
    settings: DiffusionSettings

    def __init__(self, settings: DiffusionSettings) -> None:
        super().__init__(settings)
        codec = EncodecCore.from_pretrained(settings.codec)
        # Not among the modules: it is finished, so it is neither trained nor saved.
        self.codec = codec.requires_grad_(False)
        self.diffusion = first_diffusion(settings, codec)
        self.data = ManifestSegments(settings.manifest, settings.segments)

    def modules(self) -> dict[str, nn.Module]:
        return {"diffusion": self.diffusion}

    def make_optimizers(self) -> dict[str, Optimizer]:
        self.codec.to(next(self.diffusion.parameters()).device)
        rate, betas = self.settings.learning_rate, self.settings.adam_betas
        return {
            self.band_name(index): Adam(band.parameters(), rate, betas, fused=True)
            for index, band in enumerate(self.diffusion.bands)
        }

    def training_data(self, seed: int) -> SegmentDataset:
        return self.data.training(seed, self.settings.train_items)

    def validation_data(self) -> SegmentDataset:
        return self.data.validation(self.settings.valid_items)

    def band_name(self, index: int) -> str:
        """Of a band's optimiser and figures: its place among all bands."""
        only = self.settings.only_band
        return f"band_{index if only is None else only}"

    # -- one step -----------------------------------------------------------------------------

    def step(self, batch: Tensor, context: StepContext) -> Metrics:
        """One step on sounds `[batch, channels, time]`; each sound gets a diffusion step drawn."""
        condition = self.latents(batch)
        metrics = {}
        for index, (band, target) in enumerate(self._bands_of(batch)):
            if band.equalizer is not None:
                band.equalizer.observe(target)
                context.broadcast(band.equalizer)  # processes hear different sounds
            steps = torch.randint(band.config.schedule.steps, (len(batch),), device=batch.device)
            with context.autocast():
                loss = noise_loss(band, target, condition, steps, torch.randn_like(batch))
            loss.backward()
            name = self.band_name(index)
            context.apply(name)
            metrics[f"loss_{name}"] = loss.detach()
        return metrics

    @torch.no_grad()
    def latents(self, batch: Tensor) -> Tensor:
        """What the codec makes of sounds: `[batch, dimension, frames]`."""
        tokens = self.codec.encode_batch(batch, self.settings.bandwidth_kbps).tokens
        return self.codec.quantizer.decode(tokens)

    def _bands_of(self, batch: Tensor) -> list[tuple[DiffusionBand, Tensor]]:
        """The models in training, each with its band of the sounds."""
        only = self.settings.only_band
        parts = split_bands(batch, self.codec.sample_rate, n_bands=len(self.settings.bands))
        chosen = list(parts) if only is None else [parts[only]]
        bands: list[DiffusionBand] = list(self.diffusion.bands)  # type: ignore[arg-type]
        return list(zip(bands, chosen, strict=True))

    # -- evaluation ---------------------------------------------------------------------------

    def evaluate(self, batch: Tensor) -> Metrics:
        """Loss per band with fixed noise and steps; the error's volume of the whole sound in dB.

        The latter, `relative_volume`, is the mean over mel bands (lower is better), beside that of
        the codec's own decoder; only for a run of all bands.
        """
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        noise = torch.randn(batch.shape, generator=generator).to(batch)
        condition = self.latents(batch)
        metrics: dict[str, Tensor | float] = {}
        for index, (band, target) in enumerate(self._bands_of(batch)):
            count = band.config.schedule.steps
            steps = torch.randint(count, (len(batch),), generator=generator).to(batch.device)
            loss = noise_loss(band, target, condition, steps, noise)
            metrics[f"loss_{self.band_name(index)}"] = loss
        if self.settings.only_band is None:
            rate = self.codec.sample_rate
            for name, sound in self._decoded(batch).items():
                metrics[f"relative_volume_{name}"] = relative_volume(sound, batch, rate).mean
        return metrics

    def samples(self) -> dict[str, Audio]:
        """The first validation sounds: as they are, from the codec, and from diffusion."""
        data = self.validation_data()
        count = min(self.settings.sounds, len(data))
        if count == 0:
            return {}
        device = next(self.diffusion.parameters()).device
        batch = torch.stack([data[index] for index in range(count)]).to(device)
        versions = {"original": batch, **self._decoded(batch)}
        return numbered_sounds(versions, self.codec.sample_rate)

    def _decoded(self, batch: Tensor) -> dict[str, Tensor]:
        """Sounds through the codec and back, by its own decoder and by diffusion.

        A run of one band gives both in that band.
        """
        encoded = self.codec.encode_batch(batch, self.settings.bandwidth_kbps)
        plain = self.codec.decode_batch(encoded)
        if self.settings.only_band is not None:
            ((_, plain),) = self._bands_of(plain)
        latents = self.codec.quantizer.decode(encoded.tokens)
        samples = encoded.frames * self.codec.hop_samples
        made = self.diffusion.generate(latents, samples, calls=self.settings.calls)
        made = match_bands(made[..., : encoded.samples], plain, self.codec.sample_rate)
        return {"codec": plain, "diffusion": made}

    def export(self, folder: Path) -> None:
        self.diffusion.save_pretrained(folder)


def noise_loss(
    band: DiffusionBand, target: Tensor, condition: Tensor, steps: Tensor, noise: Tensor
) -> Tensor:
    """Mean square error of the noise that the network tells in a band of sound."""
    noisy = band.schedule.add_noise(band.to_diffusion(target), steps, noise)
    return F.mse_loss(band.unet(noisy, steps, condition).float(), noise)


def first_diffusion(settings: DiffusionSettings, codec: EncodecCore) -> MultiBandDiffusion:
    """The untrained model for a codec. Raises: ConfigError for a codec or band that cannot be."""
    only = settings.only_band
    if only is not None and only >= len(settings.bands):
        raise ConfigError(f"only_band {only} is none of the {len(settings.bands)} bands, from 0 on")
    if settings.segments.sample_rate != codec.sample_rate:
        raise ConfigError(
            f"segments come at {settings.segments.sample_rate} Hz, but {settings.codec} works at "
            f"{codec.sample_rate}; set segments.sample_rate"
        )
    bands = settings.bands if only is None else settings.bands[only : only + 1]
    fitted = {
        "channels": codec.channels,
        "condition_dimension": codec.config.quantizer.dimension,
    }
    config = MultiBandDiffusionConfig(
        codec=codec.name or settings.codec,
        codebooks=codec.codebooks_for(settings.bandwidth_kbps),
        sample_rate=codec.sample_rate,
        bands=tuple(
            msgspec.structs.replace(band, unet=msgspec.structs.replace(band.unet, **fitted))
            for band in bands
        ),
    )
    model = MultiBandDiffusion(config)
    model.check_codec(codec)
    return model
