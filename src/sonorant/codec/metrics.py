"""How good is decoded sound, and how well are the codebooks used.

SI-SNR says how exactly the waveform came back, the mel distance how near the spectrum is, ViSQOL
what listeners would say. Sounds are compared at the same rate, length and channels.

Sources: SI-SNR of SDR half-baked (arXiv 1811.02508); ViSQOL v3 (arXiv 2004.09584), in its audio
mode, by the visqol-python package; perplexity as usual for vector quantizers (arXiv 1711.00937).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sonorant.audio import Audio
from sonorant.errors import AudioError, DependencyError
from sonorant.losses.spectral import MelConfig, mel_l1_loss

Samples = npt.NDArray[np.float64]  # [time]

# Three resolutions between those of the codec losses (EnCodec, arXiv 2210.13438, section 3.4): 21,
# 43 and 85 ms at 24 kHz, each with the losses' 64 bands. The floor, far below theirs, is hiss at
# -80 dB of full scale.
MEL_N_FFTS = (512, 1024, 2048)
MEL = MelConfig(floor=1e-8)
VISQOL_RATE = 48_000  # Hz, of ViSQOL's audio mode
VISQOL_SECONDS = 1.0  # shorter sound holds none of its patches


def si_snr(reference: Audio, decoded: Audio) -> float:
    """Scale-invariant signal-to-noise ratio of the whole sound in dB, mean over channels.

    Higher is better; 0 dB means that as much noise as signal is left, infinity that nothing is.
    Raises: AudioError if the sounds cannot be compared, or the reference is silent.
    """
    theirs, ours = (x - x.mean(dim=-1, keepdim=True) for x in _comparable(reference, decoded))
    energy = theirs.square().sum(dim=-1, keepdim=True)
    if not bool(energy.all()):
        raise AudioError("a silent reference has no signal-to-noise ratio")
    signal = (ours * theirs).sum(dim=-1, keepdim=True) / energy * theirs
    noise = ours - signal
    return float(10 * (signal.square().sum(dim=-1) / noise.square().sum(dim=-1)).log10().mean())


def mel_distance(reference: Audio, decoded: Audio) -> float:
    """Mean difference of mel spectrograms in dB, over bands, time, channels and three resolutions.

    Lower is better; 0 dB only for equal spectra.
    Raises: AudioError if the sounds cannot be compared.
    """
    theirs, ours = _comparable(reference, decoded)
    distances = [
        mel_l1_loss(ours, theirs, reference.sample_rate, n_fft, n_fft // 4, MEL)
        for n_fft in MEL_N_FFTS
    ]
    return 10 * float(torch.stack(distances).mean())


def visqol(reference: Audio, decoded: Audio) -> float:
    """Predicted mean opinion score from 1 (bad) to about 4.75 (equal), of the mean of the channels.

    The audio mode for sound of all kinds, at 48 kHz. Takes about as long as a quarter of the sound;
    without the numba package, more than ten times that.
    Raises: AudioError if the sounds cannot be compared, or are shorter than a second or silent;
    DependencyError without visqol-python.
    """
    theirs, ours = _visqol_input(reference, decoded)
    return float(_visqol_api().measure_from_arrays(theirs, ours, VISQOL_RATE).moslqo)


def has_visqol() -> bool:
    """Whether visqol-python is installed."""
    try:
        _visqol_api()
    except DependencyError:
        return False
    return True


@dataclass(frozen=True)
class CodebookUse:
    """How the tokens of one codebook spread over its codewords.

    used: share of the codewords that occur. entropy_bits: of the tokens' distribution; log2 of the
    codebook size at most, when all occur equally often.
    """

    used: float
    entropy_bits: float

    @property
    def perplexity(self) -> float:
        """How many equally frequent codewords would have this entropy."""
        return float(2**self.entropy_bits)


def codebook_use(tokens: Tensor, codebook_size: int) -> list[CodebookUse]:
    """The use of each codebook in tokens int64 `[batch, codebooks, frames]`.

    >>> codebook_use(torch.tensor([[[0, 1, 2, 3], [5, 5, 5, 5]]]), codebook_size=8)
    [CodebookUse(used=0.5, entropy_bits=2.0), CodebookUse(used=0.125, entropy_bits=0.0)]
    """
    uses = []
    for row in tokens.transpose(0, 1).flatten(1):
        counts = torch.bincount(row, minlength=codebook_size)
        shares = counts[counts > 0].double() / row.numel()
        entropy = float((shares * -shares.log2()).sum())
        uses.append(CodebookUse(used=len(shares) / codebook_size, entropy_bits=entropy))
    return uses


def _comparable(reference: Audio, decoded: Audio) -> tuple[Tensor, Tensor]:
    """Both sounds as float64 `[1, channels, time]`."""
    reference.check()
    decoded.check()
    theirs, ours = (
        f"{list(audio.samples.shape)} at {audio.sample_rate} Hz" for audio in (reference, decoded)
    )
    if theirs != ours:
        raise AudioError(f"cannot compare sounds of shapes {theirs} and {ours}")
    return reference.samples[None].double(), decoded.samples[None].double()


def _visqol_input(reference: Audio, decoded: Audio) -> tuple[Samples, Samples]:
    """Both sounds as ViSQOL takes them."""
    _comparable(reference, decoded)
    if reference.duration_seconds < VISQOL_SECONDS:
        raise AudioError(f"ViSQOL needs {VISQOL_SECONDS:g} s of sound or more")
    theirs, ours = (
        audio.to(VISQOL_RATE, channels=1).samples[0].double().cpu().numpy()
        for audio in (reference, decoded)
    )
    if not theirs.any() or not ours.any():
        raise AudioError("ViSQOL cannot judge digital silence")
    return theirs, ours


@cache
def _visqol_api() -> Any:
    try:
        from visqol import VisqolApi
    except ImportError as error:
        raise DependencyError(
            "ViSQOL needs the package visqol-python: pip install 'sonorant[eval]'"
        ) from error
    api = VisqolApi()
    api.create(mode="audio")
    return api
