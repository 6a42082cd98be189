"""Start a Mimi as a vocoder, with a semantic codebook that already knows what its teacher says.

The SEANet pair starts as in `sonorant.nn.vocoder_start`. The resampling between latents and frames
of tokens lays the latents of a frame side by side. What the two parts of the quantizer see of a
frame is then found from data, in closed form: the semantic part what tells most of the teacher's
features, by reduced-rank regression (Izenman 1975); the acoustic part the principal components of
what is left. Own method.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import torch
from torch import Tensor

from sonorant.codec.mimi import Mimi
from sonorant.errors import ConfigError
from sonorant.nn.conv import StreamingConv1d
from sonorant.nn.vocoder_start import Vocoder, start_as_vocoder

RIDGE = 1e-3  # of the mean variance, in the regressions

Count = Annotated[int, msgspec.Meta(ge=1)]


class VocoderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size of the vocoder start.

    bands: of noise. slots: in which their levels are taken in each latent step. tones: below them.
    semantic_dimensions: of what the semantic codebook quantises.
    semantic_share: of what it tells of the latent, how much the decoder takes from it; the acoustic
        codebooks tell the rest. One codebook knows little exactly, and nothing mends its errors:
        at 0.25 the levels are off by 3.3 dB, at 1 by 5.6 (12 dimensions, 8 codebooks of 1024).
    """

    bands: Count = 20
    slots: Count = 2
    tones: Annotated[int, msgspec.Meta(ge=2)] = 22
    semantic_dimensions: Count = 12
    semantic_share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.25


@torch.no_grad()
def start_mimi(codec: Mimi, settings: VocoderSettings) -> None:
    """First weights of all but the quantizer.

    Raises: ConfigError for a codec that is not of the kind, or too narrow.
    """
    config = codec.config
    vocoder = Vocoder(
        config.seanet, config.sample_rate, settings.bands, settings.slots, settings.tones
    )
    steps, kept = config.latents_per_frame, vocoder.dimensions
    if steps * kept > config.seanet.dimension:
        raise ConfigError(
            f"latents of {config.seanet.dimension} numbers cannot hold {steps} steps of {kept}"
        )
    start_as_vocoder(codec.encoder, codec.decoder, vocoder)
    gather = torch.zeros_like(codec.downsample.conv.weight)
    scatter = torch.zeros_like(codec.upsample.weight)
    for step in range(steps):
        rows = torch.arange(kept) + step * kept
        gather[rows, torch.arange(kept), steps + step] = 1
        scatter[rows, step] = 1
    codec.downsample.conv.weight.copy_(gather)
    codec.upsample.weight.copy_(scatter)
    first = codec.decoder.layers[0]  # sees alike what every step has laid elsewhere
    assert isinstance(first, StreamingConv1d)
    weight = first.conv.weight
    weight[:, kept : steps * kept] = weight[:, :kept].repeat(1, steps - 1, 1)


@torch.no_grad()
def fit_projections(
    codec: Mimi, latents: Tensor, features: Tensor, settings: VocoderSettings
) -> None:
    """Set what the quantizer's two parts see, and what they give back.

    Shapes: latents [sounds, width, frames], features [sounds, frames, dimensions].
    """
    x = latents.transpose(1, 2).flatten(0, 1).double()
    wanted = features.flatten(0, 1).double()
    inside, outside = _semantic_space(x, wanted, settings.semantic_dimensions)
    outside = outside * settings.semantic_share
    semantic, acoustic = codec.quantizer.semantic, codec.quantizer.acoustic
    _set(semantic.input_proj.weight, inside.t())
    _set(semantic.output_proj.weight, outside.t())
    rest = torch.eye(x.shape[1], dtype=x.dtype) - inside @ outside
    kept = acoustic.input_proj.weight.shape[0]
    left = x @ rest
    components = torch.linalg.eigh(left.t() @ left).eigenvectors[:, -kept:].flip(1)
    _set(acoustic.input_proj.weight, (rest @ components).t())
    _set(acoustic.output_proj.weight, components)


def _semantic_space(x: Tensor, features: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """Matrices into that space, `[width, dimensions]`, and back to what it tells of `x`."""
    centred, wanted = x - x.mean(dim=0), features - features.mean(dim=0)
    covariance = centred.t() @ centred
    regression = torch.linalg.solve(_ridged(covariance), centred.t() @ wanted)
    predicted = regression.t() @ covariance @ regression
    inside = regression @ torch.linalg.eigh(predicted).eigenvectors[:, -dimensions:].flip(1)
    seen = x @ inside
    return inside, torch.linalg.solve(seen.t() @ seen, seen.t() @ x)


def _ridged(matrix: Tensor) -> Tensor:
    mean = float(matrix.diagonal().mean())
    return matrix + RIDGE * mean * torch.eye(len(matrix), dtype=matrix.dtype)


def _set(weight: Tensor, value: Tensor) -> None:
    """Fill the first rows and columns of a projection; the others stay out of use."""
    weight.zero_()
    weight[: value.shape[0], : value.shape[1]] = value.to(weight.dtype)
