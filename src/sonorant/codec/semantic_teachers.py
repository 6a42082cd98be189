"""Teachers of a codec's semantic token: what of a sound has meaning, at the codec's frame rate.

Source: Mimi distils WavLM into its first codebook (arXiv 2410.00037, section 3.3.2): features of
16 kHz sound at 50 Hz, averaged over eight at every fourth, looking to both sides. Large WavLMs were
trained on sounds of mean 0 and variance 1, and so is everything that they are given here.

A teacher is any module that maps sounds `[batch, channels, time]` at the codec's rate to features
`[batch, frames, dimensions]`, one for every frame of tokens. Two are here: WavLM, and for machines
and corpora that have no use for it, features of the signal itself (own method).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Protocol

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.dsp.mel import mel_spectrogram
from sonorant.dsp.resample import resample
from sonorant.dsp.stft import stft
from sonorant.errors import ConfigError, DependencyError

WAVLM_RATE, WAVLM_HOP, WAVLM_WINDOW = 16_000, 320, 400
SPEECH_BAND_HZ = (60.0, 7600.0)
FLOOR = 1e-6  # of a segment's loudest energy, below which differences mean nothing
QUIET = 1e-9  # energy below which all is silence
VARIANCE_FLOOR = 1e-7  # as transformers' feature extractor adds it


class Teacher(Protocol):
    """What a task asks of a teacher."""

    dimensions: int

    def __call__(self, sound: Tensor) -> Tensor:
        """Features `[batch, frames, dimensions]` of sounds `[batch, channels, time]`."""
        ...


class WavLMSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="wavlm"):
    """A WavLM through transformers.

    model: name on the hub, or folder (section 3.3.2: microsoft/wavlm-large).
    layer: which hidden states; None for their mean over layers. The paper does not say.
    """

    model: str = "microsoft/wavlm-large"
    layer: int | None = None


class SpectralSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="spectral"):
    """Features of the signal: cepstra, how they change, and what stands around them.

    mels, cepstra: bands, and coefficients kept of them.
    context_frames: how many frames to either side a frame also tells of.
    """

    mels: Annotated[int, msgspec.Meta(ge=4)] = 40
    cepstra: Annotated[int, msgspec.Meta(ge=1)] = 13
    context_frames: Annotated[int, msgspec.Meta(ge=0)] = 1


TeacherSettings = WavLMSettings | SpectralSettings


class SpectralTeacher(nn.Module):
    """Mel cepstra with their first and second differences, of a frame and its neighbours.

    Cepstra are taken four times per frame and normalised over the segment to mean 0 and deviation
    1, so that the voice, the room and the level mostly drop out and what changes remains; then they
    are averaged in pairs. Windows reach to both sides of a frame.
    Own method; cepstra as in Davis and Mermelstein (1980), normalised as in Atal (1974).
    """

    def __init__(self, settings: SpectralSettings, sample_rate: int, hop_samples: int) -> None:
        super().__init__()
        if hop_samples % 4:
            raise ConfigError(f"a frame of {hop_samples} samples cannot be divided by four")
        self.settings = settings
        self.sample_rate = sample_rate
        self.hop_samples = hop_samples
        self.n_fft = 2 ** math.ceil(math.log2(0.04 * sample_rate))
        self.dimensions = 3 * settings.cepstra * 2 * (2 * settings.context_frames + 1)
        bands = torch.arange(settings.mels) + 0.5
        cosines = torch.cos(
            math.pi / settings.mels * torch.arange(settings.cepstra)[:, None] * bands
        )
        self.register_buffer("cosines", cosines, persistent=False)

    cosines: Tensor

    @torch.no_grad()
    def forward(self, sound: Tensor) -> Tensor:
        """Features `[batch, frames, dimensions]` of sounds `[batch, channels, time]`; a last frame
        that is not whole counts."""
        frames = -(-sound.shape[-1] // self.hop_samples)
        cepstra = self._cepstra(sound.mean(dim=1), 4 * frames)
        changes = _differences(cepstra)
        features = torch.cat([cepstra, changes, _differences(changes)], dim=1)
        mean = features.mean(dim=-1, keepdim=True)
        spread = features.std(dim=-1, keepdim=True, correction=0).clamp(min=1e-3)
        halves = F.avg_pool1d((features - mean) / spread, 2)
        reach = 2 * self.settings.context_frames
        padded = F.pad(halves, (reach, reach), mode="replicate")
        # [batch, features, frames, steps around]
        around = padded.unfold(-1, 2 * (2 * self.settings.context_frames + 1), 2)
        return around.permute(0, 2, 1, 3).flatten(2)

    def _cepstra(self, mono: Tensor, steps: int) -> Tensor:
        """`[batch, cepstra, steps]`, each step's window centred on its middle."""
        hop = self.hop_samples // 4
        margin = (self.n_fft - hop) // 2
        needed = (steps - 1) * hop + self.n_fft
        padded = F.pad(mono, (margin, max(0, needed - margin - mono.shape[-1])))
        spectrum = stft(padded, self.n_fft, hop, center=False)[..., :steps]
        highest = min(SPEECH_BAND_HZ[1], self.sample_rate / 2)
        energy = mel_spectrogram(
            spectrum, self.sample_rate, self.settings.mels, SPEECH_BAND_HZ[0], highest
        )
        loudest = energy.amax(dim=(1, 2), keepdim=True)
        return self.cosines @ (energy + FLOOR * loudest + QUIET).log()


class WavLMTeacher(nn.Module):
    """WavLM's hidden states, averaged to the codec's frame rate over twice its frame.

    network: transformers' `WavLMModel`, or anything that is called like it.
    normalizes: whether it was trained on sounds of mean 0 and variance 1; each is then made so.
    Raises: ConfigError if the codec's frame is no whole number of WavLM's steps.
    """

    def __init__(
        self,
        network: Any,
        layer: int | None,
        sample_rate: int,
        hop_samples: int,
        *,
        normalizes: bool,
    ) -> None:
        super().__init__()
        steps = hop_samples * WAVLM_RATE / sample_rate / WAVLM_HOP
        if steps != round(steps) or steps < 1:
            raise ConfigError(
                f"WavLM makes 50 features a second, which do not divide among "
                f"{sample_rate / hop_samples:g} frames a second"
            )
        self.network = network.eval().requires_grad_(False)
        self.layer = layer
        self.normalizes = normalizes
        self.sample_rate = sample_rate
        self.hop_samples = hop_samples
        self.steps_per_frame = round(steps)
        self.dimensions: int = network.config.hidden_size

    @torch.no_grad()
    def forward(self, sound: Tensor) -> Tensor:
        """Features `[batch, frames, dimensions]` of sounds `[batch, channels, time]` at the codec's
        rate; a last frame that is not whole counts."""
        frames = -(-sound.shape[-1] // self.hop_samples)
        mono = resample(sound.mean(dim=1), self.sample_rate, WAVLM_RATE)
        if self.normalizes:
            variance, mean = torch.var_mean(mono, dim=-1, correction=0, keepdim=True)
            mono = (mono - mean) / (variance + VARIANCE_FLOOR).sqrt()
        # As many steps as the frames hold, each window centred on its step.
        length = frames * self.steps_per_frame * WAVLM_HOP
        margin = (WAVLM_WINDOW - WAVLM_HOP) // 2
        padded = F.pad(mono, (margin, length - mono.shape[-1] + margin))
        states = self.network(padded, output_hidden_states=True).hidden_states
        chosen = torch.stack(states).mean(dim=0) if self.layer is None else states[self.layer]
        half = self.steps_per_frame // 2
        pooled = F.avg_pool1d(
            chosen.transpose(1, 2),
            kernel_size=2 * self.steps_per_frame,
            stride=self.steps_per_frame,
            padding=half,
            ceil_mode=True,
            count_include_pad=False,
        )
        return pooled[..., :frames].transpose(1, 2)


def make_teacher(
    settings: TeacherSettings, sample_rate: int, hop_samples: int
) -> SpectralTeacher | WavLMTeacher:
    """The teacher that a recipe asks for.

    Raises: DependencyError if WavLM is asked for and transformers is not there.
    """
    if isinstance(settings, SpectralSettings):
        return SpectralTeacher(settings, sample_rate, hop_samples)
    try:
        from transformers import WavLMModel
    except ImportError as error:
        raise DependencyError(
            "the WavLM teacher needs transformers; install it with: pip install 'sonorant[text]'"
        ) from error
    try:
        network = WavLMModel.from_pretrained(settings.model)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load the teacher {settings.model!r}: {error}") from error
    normalizes = _trained_on_normalized(settings.model, network.config)
    return WavLMTeacher(network, settings.layer, sample_rate, hop_samples, normalizes=normalizes)


def _trained_on_normalized(name: str, config: Any) -> bool:
    """What the checkpoint's feature extractor says of normalising sounds; where it has none, what
    is so for the published ones: the large, with layer norm in front, yes, the base models no.
    """
    from transformers import Wav2Vec2FeatureExtractor

    try:
        return bool(Wav2Vec2FeatureExtractor.from_pretrained(name).do_normalize)
    except OSError:
        return bool(config.feat_extract_norm == "layer")


def _differences(x: Tensor) -> Tensor:
    """Slope over five steps `[batch, features, steps]` -> the same, by regression."""
    padded = F.pad(x, (2, 2), mode="replicate")
    near = padded[..., 3:-1] - padded[..., 1:-3]
    far = padded[..., 4:] - padded[..., :-4]
    return (near + 2 * far) / 10
