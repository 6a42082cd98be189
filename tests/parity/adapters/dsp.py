"""Resampling, filters, mel and loudness."""

from __future__ import annotations

import torch
from torch import Tensor

from sonorant.dsp.mel import mel_filterbank, mel_spectrogram
from sonorant.dsp.stft import stft
from tests.parity.runner import Adapter, Case


def mel_loudness(case: Case) -> dict[str, Tensor]:
    config, x = case.config, case.input("x")
    rate, mels = config["sample_rate"], config["n_mels"]
    f_range = config["f_min"], config["f_max"]
    standard = (x[0, 0] - x[0, 0].mean()) / (x[0, 0].std() + 1e-8)
    spectrum = stft(standard, config["n_fft"], config["hop"], normalized=True)
    energy = mel_spectrogram(spectrum, rate, mels, *f_range)
    return {
        "brain_mel_fb": mel_filterbank(config["n_fft"] // 2 + 1, mels, rate, *f_range),
        "brain_logmel": torch.log10(energy + config["log_floor"]),
    }


ADAPTERS: dict[str, Adapter] = {"dsp_mel_loudness": mel_loudness}
