"""Discriminator over complex spectrograms at several resolutions (MS-STFT).

Source: EnCodec (arXiv 2210.13438, section 3.4); kernels, strides and dilations from its figure 2.
Each sub-discriminator takes the spectrogram of one resolution as an image of `time` by `frequency`
whose channels are the real parts, then the imaginary parts.

Speed: the images are laid out in memory with channels last, which costs nothing because it is how
the transform leaves them, and makes these narrow convolutions two to three times faster on a CPU.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from sonorant.dsp.stft import stft
from sonorant.errors import ConfigError, ShapeError
from sonorant.losses.image_conv import ImageConv

Count = Annotated[int, msgspec.Meta(ge=1)]


class MSSTFTDiscriminatorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes; the defaults are those of the published 24 kHz discriminator.

    hop_lengths, win_lengths: in samples, per resolution; None means n_fft / 4 and n_fft.
    Hops of n_fft / 2 halve the work.
    in_channels: audio channels of one image. With 1, the channels of stereo sound are judged one by
    one, as the paper does; with 2, together.
    kernel_size: (time, frequency) of the wide convolutions; the last two are (time, time).
    dilations: in time, one for each convolution that halves the frequencies.
    normalized: divide the spectrograms by sqrt(sum window^2).
    time_stride: 1 in all published models, as is out_channels, the channels of the logits.
    leaky_slope: 0.2 in the paper, 0.3 in the later published training code.
    """

    filters: Count = 32
    n_ffts: tuple[Count, ...] = (1024, 2048, 512, 256, 128)
    hop_lengths: tuple[Count, ...] | None = None
    win_lengths: tuple[Count, ...] | None = None
    in_channels: Count = 1
    kernel_size: tuple[Count, Count] = (3, 9)
    frequency_stride: Count = 2
    time_stride: Count = 1
    dilations: tuple[Count, ...] = (1, 2, 4)
    normalized: bool = True
    leaky_slope: float = 0.2
    out_channels: Count = 1

    def __post_init__(self) -> None:
        for name in ("hop_lengths", "win_lengths"):
            lengths = getattr(self, name)
            if lengths is not None and len(lengths) != len(self.n_ffts):
                raise ConfigError(
                    f"{name} has {len(lengths)} entries for {len(self.n_ffts)} n_ffts; "
                    "give one per resolution"
                )
        if not self.n_ffts:
            raise ConfigError("n_ffts is empty; a discriminator needs at least one resolution")

    @property
    def resolutions(self) -> list[tuple[int, int, int]]:
        """(n_fft, hop, window) in samples, per sub-discriminator."""
        hops = self.hop_lengths or tuple(n_fft // 4 for n_fft in self.n_ffts)
        return list(zip(self.n_ffts, hops, self.win_lengths or self.n_ffts, strict=True))


class MSSTFTDiscriminator(nn.Module):
    """Judges sound at every resolution of its config.

    Shape: x [batch, channels, time] -> logits, a list over resolutions of
    [batch, 1, frames, frequencies]; features, a list over resolutions of the lists of the feature
    maps [batch, filters, frames, frequencies]. With in_channels 1, batch means batch x channels.
    Raises: ShapeError if x is shorter than the longest window or has a wrong number of channels.
    Too short sound is not padded: a real and an invented sound would then agree in the padding.

    >>> config = MSSTFTDiscriminatorConfig(filters=4, n_ffts=(64, 32))
    >>> logits, features = MSSTFTDiscriminator(config)(torch.randn(2, 1, 256))
    >>> logits[0].shape, [len(maps) for maps in features]
    (torch.Size([2, 1, 13, 5]), [5, 5])
    """

    def __init__(self, config: MSSTFTDiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config or MSSTFTDiscriminatorConfig()
        self.scales = nn.ModuleList(
            SpectrogramDiscriminator(self.config, *resolution)
            for resolution in self.config.resolutions
        )

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        if x.dim() != 3 or self.config.in_channels not in (1, x.shape[1]):
            raise ShapeError(
                f"this discriminator takes [batch, {self.config.in_channels}, time], "
                f"got {list(x.shape)}"
            )
        images = x.shape[0] * x.shape[1] // self.config.in_channels
        x = x.reshape(images, self.config.in_channels, x.shape[-1])
        logits, features = zip(*(scale(x) for scale in self.scales), strict=True)
        return list(logits), list(features)


class SpectrogramDiscriminator(nn.Module):
    """Judges sound at one resolution: x [batch, in_channels, time] -> (logits, feature maps)."""

    def __init__(
        self, config: MSSTFTDiscriminatorConfig, n_fft: int, hop_length: int, win_length: int
    ) -> None:
        super().__init__()
        self.n_fft, self.hop_length, self.win_length = n_fft, hop_length, win_length
        self.normalized, self.leaky_slope = config.normalized, config.leaky_slope
        width, wide, square = config.filters, config.kernel_size, (config.kernel_size[0],) * 2
        stride = (config.time_stride, config.frequency_stride)
        # The published checkpoints normalise the weights of every convolution but the first.
        self.convs = nn.ModuleList(
            [
                ImageConv(2 * config.in_channels, width, wide),
                *(
                    weight_norm(ImageConv(width, width, wide, stride, dilation))
                    for dilation in config.dilations
                ),
                weight_norm(ImageConv(width, width, square)),
            ]
        )
        self.logits = weight_norm(ImageConv(width, config.out_channels, square))

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        image = self.image(x)
        features = []
        for conv in self.convs:
            image = F.leaky_relu(conv(image), self.leaky_slope)
            features.append(image)
        return self.logits(image), features

    def image(self, x: Tensor) -> Tensor:
        """Real, then imaginary parts `[batch, 2 * in_channels, frames, frequencies]`."""
        spectrum = stft(
            x.float(),
            self.n_fft,
            self.hop_length,
            self.win_length,
            center=False,
            normalized=self.normalized,
        )
        parts = torch.view_as_real(spectrum)  # [batch, channels, frequencies, frames, 2]
        image = parts.permute(0, 4, 1, 3, 2).flatten(1, 2)
        return image.contiguous(memory_format=torch.channels_last)
