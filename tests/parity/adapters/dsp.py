"""Resampling, filters, convolution, mel and loudness."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from sonorant.dsp.fft_convolution import fft_conv1d, unfold, volume
from sonorant.dsp.filters import bandpass, highpass, lowpass, lowpass_bank, split_bands
from sonorant.dsp.loudness import biquad, loudness, published_filters
from sonorant.dsp.mel import mel_filterbank, mel_frequencies, mel_spectrogram
from sonorant.dsp.resample import resample, resampling_kernel
from sonorant.dsp.stft import stft
from tests.parity.runner import Adapter, Case

# A function of the case's config -> ours, and its arguments, in order, by their names there.
FUNCTIONS: dict[str, tuple[Any, dict[str, str]]] = {
    "resample_frac": (resample, {"old": "old_rate", "new": "new_rate"}),
    "lowpass": (lowpass, {}),
    "lowpass bank": (lowpass_bank, {}),
    "highpass": (highpass, {}),
    "bandpass": (bandpass, {}),
    "split_bands": (split_bands, {}),
    "fft_conv1d": (fft_conv1d, {}),
    "unfold": (unfold, {}),
    "volume": (volume, {}),
}


def julius(case: Case) -> dict[str, Tensor]:
    outputs = {}
    for name, arguments in case.config["cases"].items():
        arguments = dict(arguments)
        function = arguments.pop("fn")
        if function.startswith("resampling kernel"):
            kernel = resampling_kernel(arguments.pop("old"), arguments.pop("new"), **arguments)
            outputs[name] = kernel[:, None]
        elif function == "mel_frequencies":
            outputs[name] = mel_frequencies(
                arguments["n_mels"], arguments["fmin"], arguments["fmax"]
            )
        else:
            ours, renamed = FUNCTIONS[function]
            x = _input(case, arguments.pop("input"))
            for tensor in ("weight", "bias"):
                if tensor in arguments:
                    arguments[tensor] = case.input(arguments[tensor])
            outputs[name] = ours(x, **{renamed.get(key, key): arguments[key] for key in arguments})
    return outputs


def _input(case: Case, text: str) -> Tensor:
    """A recorded tensor, or a part of one, written as `x[:1, ..., -733:]`."""
    match = re.fullmatch(r"(\w+)(?:\[([-\d:., ]+)\])?", text)
    assert match, text
    return _part(case.input(match[1]), match[2])


def _part(x: Tensor, indices: str | None) -> Tensor:
    """`x[indices]`, of numbers, slices and an ellipsis; `x` for None."""
    if indices is None:
        return x
    parts: list[Any] = []
    for part in indices.split(","):
        if part.strip() == "...":
            parts.append(...)
            continue
        bounds = [int(bound) if bound.strip() else None for bound in part.split(":")]
        parts.append(slice(*bounds) if ":" in part else bounds[0])
    return x[tuple(parts)]


def mel_loudness(case: Case) -> dict[str, Tensor]:
    config, x = case.config, case.input("x")
    rate, mels = config["sample_rate"], config["n_mels"]
    f_range = config["f_min"], config["f_max"]
    standard = (x[0, 0] - x[0, 0].mean()) / (x[0, 0].std() + 1e-8)
    spectrum = stft(standard, config["n_fft"], config["hop"], normalized=True)
    energy = mel_spectrogram(spectrum, rate, mels, *f_range)
    shelf, highpass_filter = published_filters(rate)
    shelved = biquad(x, shelf, clamp=True)
    outputs = {
        "brain_mel_fb": mel_filterbank(config["n_fft"] // 2 + 1, mels, rate, *f_range),
        "brain_logmel": torch.log10(energy + config["log_floor"]),
        "kweight_shelf": shelved,
        "kweight": biquad(shelved, highpass_filter, clamp=True),
    }
    for name in case.names(r"kweight_shelf_([\d.]+)x_clamped"):
        outputs[name[0]] = biquad(x * float(name[1]), shelf, clamp=True)
    for name, described in config["loudness_inputs"].items():
        outputs[name] = loudness(_loudness_input(x, described), rate)
    return outputs


def _loudness_input(x: Tensor, described: str) -> Tensor:
    """`x`, `0.001 * x`, or `concat(x[:1], 0.5 * x[1:]) on channels`."""
    concat = re.fullmatch(r"concat\((.*), (.*)\) on channels", described)
    if concat:
        return torch.cat([_loudness_input(x, part) for part in concat.groups()], dim=1)
    match = re.fullmatch(r"(?:([-+\d.e]+) \* )?x(?:\[([-\d:., ]+)\])?", described)
    assert match, described
    return _part(x, match[2]) * float(match[1] or 1)


ADAPTERS: dict[str, Adapter] = {"dsp_julius": julius, "dsp_mel_loudness": mel_loudness}
