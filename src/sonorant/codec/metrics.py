"""How good is decoded sound, and how well are the codebooks used.

SI-SNR says how exactly the waveform came back, the mel and STFT distances how near the spectrum is,
ViSQOL what listeners would say of any sound, PESQ and STOI what they would say of speech and
understand of it. Sounds are compared at the same rate, length and channels.

Sources: SI-SNR of SDR half-baked (arXiv 1811.02508); multi-resolution STFT distance of Parallel
WaveGAN (arXiv 1910.11480); ViSQOL v3 (arXiv 2004.09584), in its audio mode, by the visqol-python
package; PESQ of ITU-T P.862.2 (wide band), by the pesq package; STOI of Taal et al. (IEEE
Transactions on Audio, Speech and Language Processing 19(7), 2011), by pystoi; perplexity as usual
for vector quantizers (arXiv 1711.00937).
"""

from __future__ import annotations

import importlib
import math
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sonorant.audio import Audio
from sonorant.errors import AudioError, DependencyError
from sonorant.losses.spectral import MelConfig, STFTConfig, mel_l1_loss, stft_loss

Samples = npt.NDArray[np.float64]  # [time]

# Three resolutions between those of the codec losses (EnCodec, arXiv 2210.13438, section 3.4): 21,
# 43 and 85 ms at 24 kHz, each with the losses' 64 bands. The floor, far below theirs, is hiss at
# -80 dB of full scale.
MEL_N_FFTS = (512, 1024, 2048)
MEL = MelConfig(floor=1e-8)
# Both terms whole: spectral convergence plus the log-magnitude distance in nepers.
STFT = STFTConfig(convergence_weight=1.0, magnitude_weight=1.0)
VISQOL_RATE = 48_000  # Hz, of ViSQOL's audio mode
VISQOL_SECONDS = 1.0  # shorter sound holds none of its patches
PESQ_RATE = 16_000  # Hz, of wide-band PESQ
PESQ_SECONDS = 0.25  # the package refuses less
PESQ_PIECE_SECONDS = 15.0  # the recommendation is about sentences of 8 to 20 s (ITU-T P.862.3)
STOI_SECONDS = 0.5  # it compares stretches of 0.384 s


def si_snr(reference: Audio, decoded: Audio) -> float:
    """Scale-invariant signal-to-noise ratio of the whole sound in dB, mean over channels.

    Higher is better; 0 dB means that as much noise as signal is left, infinity that nothing is,
    minus infinity that there is no signal. Channels of which the reference is silent do not count.
    Raises: AudioError if the sounds cannot be compared, or the whole reference is silent.
    """
    theirs, ours = (x - x.mean(dim=-1, keepdim=True) for x in _comparable(reference, decoded))
    heard = theirs.any(dim=-1)
    if not bool(heard.any()):
        raise AudioError("a silent reference has no signal-to-noise ratio")
    theirs, ours = theirs[heard], ours[heard]
    energy = theirs.square().sum(dim=-1, keepdim=True)
    signal = (ours * theirs).sum(dim=-1, keepdim=True) / energy * theirs
    power, noise = signal.square().sum(dim=-1), (ours - signal).square().sum(dim=-1)
    if not bool(power.all()):  # of silence too, which has no noise
        return -math.inf
    ratio = power / noise
    return float(10 * ratio.log10().mean())


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


def stft_distance(reference: Audio, decoded: Audio) -> float:
    """Multi-resolution STFT distance: spectral convergence plus mean |ln magnitude ratio|.

    Mean over three resolutions of 512 to 2048 samples, at the sounds' own rate. Lower is better; 0
    only for equal magnitudes.
    Raises: AudioError if the sounds cannot be compared, the reference is silent, or they are
    shorter than half the longest window.
    """
    theirs, ours = _comparable(reference, decoded)
    shortest = max(STFT.n_ffts) // 2 + 1
    if theirs.shape[-1] < shortest:
        raise AudioError(f"the STFT distance needs {shortest} samples or more")
    if not bool(theirs.any()):
        raise AudioError("a silent reference has no STFT to be near to")
    return float(stft_loss(ours, theirs, STFT))


def visqol(reference: Audio, decoded: Audio) -> float:
    """Predicted mean opinion score from 1 (bad) to about 4.75 (equal), of the mean of the channels.

    The audio mode for sound of all kinds, at 48 kHz. Takes about as long as a quarter of the sound;
    without the numba package, more than ten times that.
    Raises: AudioError if the sounds cannot be compared, or are shorter than a second or silent;
    DependencyError without visqol-python.
    """
    theirs, ours = _visqol_input(reference, decoded)
    return float(_visqol_api().measure_from_arrays(theirs, ours, VISQOL_RATE).moslqo)


def pesq(reference: Audio, decoded: Audio) -> float:
    """Wide-band PESQ of speech, from 1.04 (bad) to 4.64 (equal): a predicted mean opinion score.

    Of the mean of the channels, converted to 16 kHz: what lies above 8 kHz does not count. Sounds
    of more than 15 s are cut into equal pieces of at most that, and their mean is given; pieces
    without speech are left out.
    Raises: AudioError if the sounds cannot be compared, are shorter than 0.25 s or without speech;
    DependencyError without the pesq package.
    """
    module = _package("pesq", "PESQ")
    _comparable(reference, decoded)
    if reference.duration_seconds < PESQ_SECONDS:
        raise AudioError(f"PESQ needs {PESQ_SECONDS:g} s of sound or more")
    count = max(1, int(np.ceil(reference.duration_seconds / PESQ_PIECE_SECONDS)))
    pieces = (np.array_split(_mono(audio, PESQ_RATE), count) for audio in (reference, decoded))
    scores = []
    for theirs, ours in zip(*pieces, strict=True):
        if theirs.any() and ours.any():
            try:
                scores.append(float(module.pesq(PESQ_RATE, theirs, ours, "wb")))
            except module.NoUtterancesError:
                continue
    if not scores:
        raise AudioError("PESQ finds no speech in it")
    return statistics.fmean(scores)


def stoi(reference: Audio, decoded: Audio) -> float:
    """Short-time objective intelligibility of speech: how much is understood, 1 for equal sounds.

    Of the mean of the channels, converted to 16 kHz; the measure itself works on 10 kHz.
    Raises: AudioError if the sounds cannot be compared, are shorter than 0.5 s or hold less speech
    than that; DependencyError without pystoi.
    """
    module = _package("pystoi", "STOI")
    _comparable(reference, decoded)
    if reference.duration_seconds < STOI_SECONDS:
        raise AudioError(f"STOI needs {STOI_SECONDS:g} s of sound or more")
    theirs, ours = (_mono(audio, PESQ_RATE) for audio in (reference, decoded))
    if not theirs.any() or not ours.any():
        raise AudioError("STOI cannot judge digital silence")
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # how it says that there is too little
        try:
            return float(module.stoi(theirs, ours, PESQ_RATE))
        except RuntimeWarning as warning:
            raise AudioError("STOI finds too little speech in it") from warning


@dataclass(frozen=True)
class Metric:
    """One figure of decoded sound. speech_only: it means something for speech alone.

    needs: the optional package that computes it, if any.
    """

    title: str
    unit: str
    higher_is_better: bool
    measure: Callable[[Audio, Audio], float]
    speech_only: bool = False
    needs: str | None = None

    def require(self) -> None:
        """Raises: DependencyError naming the extra, if the optional package is missing."""
        if self.needs is not None:
            _package(self.needs, self.title)


METRICS = {
    "si_snr": Metric("SI-SNR", "dB", True, si_snr),
    "mel": Metric("mel distance", "dB", False, mel_distance),
    "stft": Metric("STFT distance", "", False, stft_distance),
    "visqol": Metric("ViSQOL", "", True, visqol, needs="visqol"),
    "pesq": Metric("PESQ", "", True, pesq, speech_only=True, needs="pesq"),
    "stoi": Metric("STOI", "", True, stoi, speech_only=True, needs="pystoi"),
}


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
    return use_of_counts(codeword_counts(tokens, codebook_size))


def codeword_counts(tokens: Tensor, codebook_size: int) -> Tensor:
    """How often each codeword occurs, int64 `[codebooks, codebook_size]`; counts of sounds add."""
    rows = tokens.transpose(0, 1).flatten(1)
    return torch.stack([torch.bincount(row, minlength=codebook_size) for row in rows])


def use_of_counts(counts: Tensor) -> list[CodebookUse]:
    """The use of each codebook, from what `codeword_counts` gives."""
    uses = []
    for row in counts:
        shares = row[row > 0].double() / row.sum()
        entropy = float((shares * -shares.log2()).sum())
        uses.append(CodebookUse(used=len(shares) / len(row), entropy_bits=entropy))
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
    theirs, ours = (_mono(audio, VISQOL_RATE) for audio in (reference, decoded))
    if not theirs.any() or not ours.any():
        raise AudioError("ViSQOL cannot judge digital silence")
    return theirs, ours


def _mono(audio: Audio, rate: int) -> Samples:
    """The mean of the channels at a rate in Hz."""
    return audio.to(rate, channels=1).samples[0].double().cpu().numpy()


def _package(name: str, title: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DependencyError(
            f"{title} needs an optional package: pip install 'sonorant[eval]'"
        ) from error


@cache
def _visqol_api() -> Any:
    api = _package("visqol", "ViSQOL").VisqolApi()
    api.create(mode="audio")
    return api
