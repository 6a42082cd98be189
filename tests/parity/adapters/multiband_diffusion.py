"""One band of Multi-Band Diffusion: network, schedule, equaliser and sampling."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sonorant.codec.diffusion_bands import match_bands
from sonorant.codec.diffusion_checkpoints import band_config, band_tensors
from sonorant.codec.multiband_diffusion import DiffusionBand
from sonorant.dsp.filters import split_bands
from sonorant.dsp.mel import mel_frequencies
from tests.parity.runner import Case


def build(case: Case) -> DiffusionBand:
    states: dict[str, dict[str, Tensor]] = {"model_state": {}, "processor_state": {}}
    for name, tensor in case.weights.items():
        part, _, key = name.partition(".")
        states[part][key] = tensor
    band = DiffusionBand(band_config(case.config), case.config["sample_rate"])
    tensors = band_tensors(band, states["model_state"], states["processor_state"])
    band.load_state_dict(tensors)
    return band.eval()


def sampling(
    case: Case, band: DiffusionBand, prefix: str, steps: list[int]
) -> tuple[dict[str, Tensor], Tensor]:
    """Recorded states on the way, and the result before the equaliser."""
    # The published sampler itself differs by more than one call's tolerance between machines.
    case.clauses |= {match[0]: "after 20 calls" for match in case.names(rf"{prefix}\.(iter|res).*")}
    condition = case.input("condition")
    noise = iter(case.input(f"{prefix}.noise"))
    computed: dict[str, Tensor] = {}
    calls = 0

    def watch(call: int, x: Tensor) -> None:
        nonlocal calls
        calls = call
        if case.recorded(f"{prefix}.iter{call}"):
            computed[f"{prefix}.iter{call}"] = x

    def denoise(x: Tensor, step: int) -> Tensor:
        return band.unet(x, step, condition)

    x = band.schedule.sample(
        denoise, case.input("initial"), lambda: next(noise), steps=steps, watch=watch
    )
    result = band.to_sound(x)
    computed[f"{prefix}.result"] = result
    if case.recorded(f"{prefix}.n_iter"):
        computed[f"{prefix}.n_iter"] = torch.tensor(calls)
    return computed, result


def equalizer(case: Case, band: DiffusionBand, x: Tensor) -> dict[str, Tensor]:
    if not case.recorded("projected"):
        return {}
    projected = band.to_diffusion(x)
    computed = {"projected": projected, "returned": band.to_sound(projected)}
    rate, count = case.config["sample_rate"], case.config["processor"]["n_bands"]
    if case.recorded("bands"):
        computed["bands"] = split_bands(x[:1], rate, n_bands=count)
    if case.recorded("cutoffs_hz"):
        computed["cutoffs_hz"] = mel_frequencies(count + 1, 0, rate / 2)[1:-1]
    return computed


@torch.no_grad()
def mbd_band(case: Case) -> dict[str, Tensor]:
    called: dict[str, Any] = case.config["fixture"]
    band = build(case)
    x, condition = case.input("x"), case.input("condition")
    computed = {"betas": band.schedule.betas, "alpha_bar": band.schedule.alpha_bar}
    computed |= equalizer(case, band, x)
    for match in case.names(r"unet\.step(\d+)"):
        computed[match[0]] = band.unet(x, int(match[1]), condition)
    if case.recorded("unet.step_tensor"):
        steps = torch.tensor(called["step_tensor"])
        computed["unet.step_tensor"] = band.unet(x, steps, condition)
    sampled, result = sampling(case, band, "sub", called["default_step_list"])
    computed |= sampled
    for match in case.names(r"(steps\d+)\.result"):
        computed |= sampling(case, band, match[1], called["short_step_list"])[0]
    for match in case.names(r"re_eq(\d+)"):
        computed[match[0]] = match_bands(
            result,
            x,
            case.config["sample_rate"],
            bands=int(match[1]),
            strictness=called["re_eq_strictness"],
            together=True,
        )
    if case.recorded("train.noisy"):
        step = int(case.input("train.step_scalar"))
        target = band.to_diffusion(x)
        computed["train.noisy"] = band.schedule.add_noise(target, step, case.input("train.noise"))
    return computed


ADAPTERS = {"mbd_band": mbd_band}
