"""Multi-Band Diffusion: a decoder that makes sound from a codec's latents by taking noise away.

Source: "From Discrete Tokens to High-Fidelity Audio Using Multi-Band Diffusion" (arXiv 2308.02560).
One diffusion model for every frequency band starts from noise and is told the latents of a codec
at each step; the bands are summed. It replaces the codec's own decoder: more natural at low
bandwidths, and much slower, as every band runs its network 20 times.

Diffusion draws levels anew, so `decode` brings the bands of the result to the levels that the
codec's decoder gives them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar

import msgspec
import torch
from torch import Tensor, nn

from sonorant.audio import Audio
from sonorant.codec.codec import Codec
from sonorant.codec.diffusion_bands import BandEqualizer, EqualizerConfig, match_bands
from sonorant.codec.diffusion_schedule import NoiseSchedule, ScheduleConfig, spaced_steps
from sonorant.codec.diffusion_unet import DiffusionUNet, UNetConfig
from sonorant.codec.encodec import EncodecCore
from sonorant.codec.encoded import Encoded
from sonorant.errors import ConfigError
from sonorant.model import Model

Calls = Callable[[], None]
"""Called after every call of a network."""


class BandConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The diffusion model of one band. equalizer: None for a band that is left as it is."""

    unet: UNetConfig = UNetConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    equalizer: EqualizerConfig | None = None

    def __post_init__(self) -> None:
        if self.unet.steps != self.schedule.steps:
            raise ConfigError(
                f"the network knows {self.unet.steps} steps, the schedule has {self.schedule.steps}"
            )


class MultiBandDiffusionConfig(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True
):
    """One set of bands and the codec that they were trained with.

    codec: the codec's name, for readers; whether a codec fits is told by its numbers.
    codebooks: how many of the codec's codebooks make the latents.
    """

    codec: str
    codebooks: Annotated[int, msgspec.Meta(ge=1)]
    sample_rate: Annotated[int, msgspec.Meta(ge=1)] = 24_000
    bands: tuple[BandConfig, ...]

    def __post_init__(self) -> None:
        shapes = {(band.unet.channels, band.unet.condition_dimension) for band in self.bands}
        if len(shapes) != 1:
            raise ConfigError(
                "all bands need the same channels and condition_dimension, and there must be one "
                f"band at least; got {sorted(shapes, key=str)}"
            )


class DiffusionBand(nn.Module):
    """Network, schedule and equaliser of one band."""

    def __init__(self, config: BandConfig, sample_rate: int) -> None:
        super().__init__()
        self.config = config
        self.unet = DiffusionUNet(config.unet)
        self.schedule = NoiseSchedule(config.schedule)
        self.equalizer: BandEqualizer | None = None
        if config.equalizer is not None:
            self.equalizer = BandEqualizer(config.equalizer, sample_rate)

    def to_diffusion(self, x: Tensor) -> Tensor:
        """A band of sound `[batch, channels, time]` as the network knows it."""
        return x if self.equalizer is None else self.equalizer.to_diffusion(x)

    def to_sound(self, x: Tensor) -> Tensor:
        """The inverse."""
        return x if self.equalizer is None else self.equalizer.to_sound(x)

    def generate(
        self,
        condition: Tensor,
        samples: int,
        generator: torch.Generator,
        steps: Sequence[int] | None = None,
        called: Calls | None = None,
    ) -> Tensor:
        """A band of sound `[batch, channels, samples]` for latents `[batch, dimension, frames]`."""
        shape = (len(condition), self.config.unet.channels, samples)

        def draw() -> Tensor:
            # On the generator's device, so that a seed gives the same noise everywhere.
            noise = torch.randn(shape, generator=generator, device=generator.device)
            return noise.to(condition)

        def denoise(x: Tensor, step: int) -> Tensor:
            noise: Tensor = self.unet(x, step, condition)
            if called is not None:
                called()
            return noise

        return self.to_sound(self.schedule.sample(denoise, draw(), draw, steps))


class MultiBandDiffusion(Model):
    """Diffusion models of all bands; each is independent of the others."""

    system: ClassVar[str] = "multiband_diffusion"
    config_type: ClassVar[type[msgspec.Struct]] = MultiBandDiffusionConfig
    config: MultiBandDiffusionConfig

    def __init__(self, config: MultiBandDiffusionConfig) -> None:
        super().__init__(config)
        self.sample_rate = config.sample_rate
        self.bands = nn.ModuleList(DiffusionBand(band, config.sample_rate) for band in config.bands)

    def decode(
        self, encoded: Encoded, codec: Codec, seed: int = 0, calls: int | None = None
    ) -> Audio:
        """The sound of the first row of tokens, in place of `codec.decode(encoded)`.

        seed: of the noise; another seed gives another, equally likely sound. calls: of each band's
        network, 20 when None; fewer are faster and worse.
        Raises: ConfigError if the codec, or the number of codebooks, is not what it was trained on.
        """
        return Audio(self.decode_batch(encoded, codec, seed, calls)[0], self.sample_rate)

    @torch.no_grad()
    def decode_batch(
        self,
        encoded: Encoded,
        codec: Codec,
        seed: int = 0,
        calls: int | None = None,
        called: Calls | None = None,
    ) -> Tensor:
        """Sounds `[batch, channels, encoded.samples]` of tokens. `called`: after every call."""
        tokens = self.tokens_for(encoded, codec)
        samples = encoded.frames * codec.hop_samples
        plain = codec.decode_batch(Encoded(tokens, samples))
        made = self.generate(codec.quantizer.decode(tokens), samples, seed, calls, called)
        return match_bands(made, plain, self.sample_rate)[..., : encoded.samples]

    def regenerate(
        self, audio: Audio, codec: Codec, seed: int = 0, calls: int | None = None
    ) -> Audio:
        """A sound through the codec and back by diffusion, at its own rate, length and channels.

        Channels go one by one where the codec has fewer. Raises: as `decode`, and as `encode`.
        """
        mono = [Audio(channel[None], audio.sample_rate) for channel in audio.samples]
        parts = mono if codec.channels == 1 else [audio]
        made = [self._regenerated(part, codec, seed, calls) for part in parts]
        return Audio(torch.cat(made), audio.sample_rate)

    def _regenerated(self, audio: Audio, codec: Codec, seed: int, calls: int | None) -> Tensor:
        encoded = codec.encode(audio)
        samples = self.decode(encoded, codec, seed, calls).to(audio.sample_rate).samples
        length = audio.samples.shape[-1]
        return nn.functional.pad(samples, (0, max(0, length - samples.shape[-1])))[..., :length]

    @torch.no_grad()
    def generate(
        self,
        latents: Tensor,
        samples: int,
        seed: int = 0,
        calls: int | None = None,
        called: Calls | None = None,
    ) -> Tensor:
        """Sounds `[batch, channels, samples]` for latents `[batch, dimension, frames]`.

        Their levels are those that diffusion draws; `decode` corrects them.
        """
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for band in self.bands:
            assert isinstance(band, DiffusionBand)
            steps = None if calls is None else spaced_steps(band.config.schedule.steps, calls)
            parts.append(band.generate(latents, samples, generator, steps, called))
        return torch.stack(parts).sum(dim=0)

    def tokens_for(self, encoded: Encoded, codec: Codec) -> Tensor:
        """The tokens `[batch, codebooks, frames]` that it was trained on, of those there are.

        Raises: ConfigError if the codec does not fit, or there are fewer codebooks.
        """
        self.check_codec(codec)
        wanted = self.config.codebooks
        if encoded.codebooks < wanted:
            raise ConfigError(
                f"this diffusion model was trained on {wanted} codebooks "
                f"({codec.bandwidth_of(wanted):g} kb/s), and there are {encoded.codebooks}; encode "
                "at that bandwidth, or take a model for this one"
            )
        return encoded.tokens[:, :wanted]

    def check_codec(self, codec: Codec) -> None:
        """Warns of a codec of another name, which may have other codewords.

        Raises: ConfigError if the codec's rate, channels or latents are not this model's.
        """
        unet = self.config.bands[0].unet
        ours = (self.sample_rate, unet.channels, unet.condition_dimension)
        dimension = codec.config.quantizer.dimension
        theirs = (codec.sample_rate, codec.channels, dimension)
        if not isinstance(codec, EncodecCore) or codec.segmented or ours != theirs:
            raise ConfigError(
                f"this diffusion model goes with {self.config.codec}: {ours[0]} Hz, {ours[1]} "
                f"channel(s), latents of {ours[2]} numbers; {codec.name or 'this codec'} is of the "
                f"system {codec.system} and has {codec.sample_rate} Hz, {codec.channels} "
                f"channel(s), latents of {dimension}"
            )
        meant, given = (str(name).rpartition("/")[2] for name in (self.config.codec, codec.name))
        if codec.name is not None and given != meant:
            warnings.warn(
                f"this diffusion model was trained on {self.config.codec}; of {codec.name}, unless "
                "it is the same, it makes wrong sounds",
                stacklevel=2,
            )


def join_bands(models: Sequence[MultiBandDiffusion]) -> MultiBandDiffusion:
    """One model of the bands of several, trained apart on the same codec.

    Raises: ConfigError if they differ in anything but their bands.
    """
    first = models[0].config
    for model in models[1:]:
        if msgspec.structs.replace(model.config, bands=first.bands) != first:
            raise ConfigError("the models to join go with different codecs, codebooks or rates")
    bands = tuple(band for model in models for band in model.config.bands)
    joined = MultiBandDiffusion(msgspec.structs.replace(first, bands=bands))
    joined.bands = nn.ModuleList(band for model in models for band in model.bands)
    return joined.train(models[0].training)
