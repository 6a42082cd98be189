"""BSSEval and the challenge's SDR, against museval."""

from __future__ import annotations

from torch import Tensor

from sonorant.separation.bss_eval import BssEvalConfig, bss_eval
from sonorant.separation.metrics import global_sdr, median_over_frames
from tests.parity.runner import Adapter, Case

SCORES = ("sdr", "isr", "sir", "sar")


def museval(case: Case) -> dict[str, Tensor]:
    references = case.input("in.references").double().transpose(1, 2)
    estimates = case.input("in.estimates").double().transpose(1, 2)
    whole = global_sdr(references, estimates, case.config["global_sdr_delta"])
    outputs = {"out.global_sdr": whole, "out.global_sdr_song_mean": whole.mean()[None]}
    for name, call in case.config["calls"].items():
        reverse = call["estimates"].startswith("reversed")
        scores = bss_eval(references, estimates.flip(0) if reverse else estimates, _config(call))
        for score in SCORES:
            values = getattr(scores, score)
            outputs[f"out.{name}.{score.upper()}"] = values
            outputs[f"out.{name}.median_{score.upper()}"] = median_over_frames(values)
        outputs[f"out.{name}.perm"] = scores.permutation
        if call["framewise_filters"]:
            found = [each for each in outputs if each.startswith(f"out.{name}.")]
            case.clauses |= dict.fromkeys(found, "v3 frames")
    return outputs


def _config(call: dict[str, object]) -> BssEvalConfig:
    return BssEvalConfig(
        window_samples=call["window"],
        hop_samples=call["hop"],
        taps=call["filters_len"],
        framewise_filters=call["framewise_filters"],
        images=call["variant"] == "images",
        permute=call["permutation"],
    )


ADAPTERS: dict[str, Adapter] = {"museval": museval}
