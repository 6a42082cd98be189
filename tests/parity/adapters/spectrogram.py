"""The separators' spectrograms, the resampling around them, and the Wiener filter."""

from typing import Any

import torch
from torch import Tensor

from sonorant.dsp.resample import resample
from sonorant.separation.spectrogram import (
    FramePerHop,
    ShiftedFramePerHop,
    spectrogram,
    waveform,
)
from sonorant.separation.wiener import wiener
from tests.parity.runner import Case


def stft_resample(case: Case) -> dict[str, Tensor]:
    model, sinc = case.config["hdemucs_kwargs"], case.config["resample"]
    outputs = {}
    for name, call in case.config["calls"].items():
        operation, given = call["op"], call.get("input", "in.x")
        x = case.input(given) if given.startswith("in.") else torch.view_as_complex(case.io[given])
        x = x[..., : call.get("input_samples")] if not x.is_complex() else x
        convention = (ShiftedFramePerHop if call.get("hybrid_old") else FramePerHop)(model["nfft"])
        if operation == "spectro":
            outputs[name] = spectrogram(x, call["n_fft"], call["hop"], call["pad"])
        elif operation == "ispectro":
            outputs[name] = waveform(x, call["hop"], call["length"], call["pad"])
        elif operation == "_spec":
            outputs[name] = convention.forward(x)
        elif operation == "_ispec":
            outputs[name] = convention.inverse(x, call["length"])
        else:
            outputs[name] = resample(x, call["old"], call["new"], **sinc)
    return {name: as_real(tensor) for name, tensor in outputs.items()}


def as_real(x: Tensor) -> Tensor:
    """Real and imaginary parts on a last axis."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def wiener_filter(case: Case) -> dict[str, Tensor]:
    """Real and imaginary parts stand before the sources."""
    magnitudes, mix = case.input("in.targets"), case.input("in.mix_stft")
    calls: dict[str, Any] = case.config["calls"]
    outputs = {}
    for name, call in calls.items():
        dtype = getattr(torch, call.get("dtype", "float32"))
        arguments = [(x * call["input_scale"]).to(dtype) for x in (magnitudes, mix)]
        estimates = wiener(
            arguments[0],
            torch.view_as_complex(arguments[1].contiguous()),
            call["iterations"],
            softmask=call["softmask"],
            residual=call["residual"],
        )
        outputs[name] = as_real(estimates).movedim(-1, -2)
    return outputs


ADAPTERS = {"stft-resample": stft_resample, "wiener": wiener_filter}
