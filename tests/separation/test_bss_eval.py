"""BSSEval: what its ratios mean, frames and silence; and the numbers of the museval package."""

import importlib.util
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sonorant.errors import ConfigError, ShapeError
from sonorant.separation.bss_eval import BssEvalConfig, BssScores, bss_eval, frames

SHORT = BssEvalConfig(window_samples=1000, hop_samples=1000, taps=16)
SCORES = ("sdr", "isr", "sir", "sar")


def sounds(sources: int = 3, channels: int = 2, time: int = 4000) -> tuple[Tensor, Tensor]:
    """Coloured noise, and estimates with leakage and noise of their own, float64."""
    generator = torch.Generator().manual_seed(sources)
    noise = torch.randn(sources, channels, time, dtype=torch.float64, generator=generator)
    references = noise + 0.9 * noise.roll(1, -1) + 0.5 * noise.roll(2, -1)
    artefacts = torch.randn(references.shape, dtype=torch.float64, generator=generator)
    return references, references + 0.3 * references.roll(1, 0) + 0.1 * artefacts


def projected(target: Tensor, on: Tensor, taps: int) -> Tensor:
    """The definition: delayed copies, least squares; all `[channels, time]` in silence."""
    delayed = torch.cat([torch.nn.functional.pad(on, (lag, taps - 1 - lag)) for lag in range(taps)])
    wanted = torch.nn.functional.pad(target, (0, taps - 1))
    return torch.linalg.lstsq(delayed.T, wanted.T).solution.T @ delayed


def decibels(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(a.square().sum() / b.square().sum()))


def test_the_ratios_are_those_of_least_squares_projections() -> None:
    references, estimates = sounds()
    scores = bss_eval(references, estimates, BssEvalConfig(taps=8))
    s, e = (torch.nn.functional.pad(x[1], (0, 7)) for x in (references, estimates))
    own = projected(estimates[1], references[1], 8)
    everything = projected(estimates[1], references.flatten(0, 1), 8)
    assert scores.sdr[1].item() == pytest.approx(decibels(s, e - s))
    assert scores.isr[1].item() == pytest.approx(decibels(s, own - s))
    assert scores.sir[1].item() == pytest.approx(decibels(own, everything - own))
    assert scores.sar[1].item() == pytest.approx(decibels(everything, e - everything))
    sources = bss_eval(references, estimates, BssEvalConfig(taps=8, images=False))
    assert sources.sdr[1].item() == pytest.approx(decibels(own, e - own))
    assert torch.equal(sources.sar, scores.sar)
    assert sources.isr.isnan().all()


def test_frames_are_full_ones_and_the_rest_is_left_out() -> None:
    assert [span.start for span in frames(10, 4, 3)] == [0, 3, 6]
    assert [span.start for span in frames(9, 4, 3)] == [0, 3]
    assert list(frames(3, 4, 3)) == [slice(0, 3)]
    references, estimates = sounds()
    scores = bss_eval(references, estimates, BssEvalConfig(1500, 1000, taps=4))
    for index, start in enumerate((0, 1000, 2000)):
        s, e = (x[0, :, start : start + 1500] for x in (references, estimates))
        assert scores.sdr[0, index].item() == pytest.approx(decibels(s, e - s))
    assert scores.sdr.shape == (3, 3)


@pytest.mark.parametrize("samples", [4000, 4001, 4002, 4062, 4063, 4064, 4700])
def test_frames_that_follow_each_other_make_the_track_s_filters(samples: int) -> None:
    references, estimates = sounds(time=samples)
    following = bss_eval(references, estimates, BssEvalConfig(1000, 1000, taps=64))
    overlapping = bss_eval(references, estimates, BssEvalConfig(1000, 500, taps=64))
    for score in SCORES:
        every_other = getattr(overlapping, score)[:, : 2 * 4 : 2]
        assert torch.allclose(getattr(following, score), every_other, rtol=1e-9), score


def test_single_precision_sounds_give_the_same_figures() -> None:
    references, estimates = (sound.float() for sound in sounds())
    assert torch.allclose(
        bss_eval(references, estimates, SHORT).sar,
        bss_eval(references.double(), estimates.double(), SHORT).sar,
        rtol=1e-12,
    )


def test_small_artefacts_keep_their_digits() -> None:
    references, _ = sounds()
    artefacts = torch.randn(references.shape, dtype=torch.float64)
    quiet = bss_eval(references, references + 1e-6 * artefacts, BssEvalConfig(taps=8)).sar
    loud = bss_eval(references, references + 1e-2 * artefacts, BssEvalConfig(taps=8)).sar
    assert torch.allclose(quiet, loud + 80, atol=0.01)
    assert not torch.equal(quiet, loud + 80)


def test_version_3_is_every_frame_as_a_track() -> None:
    references, estimates = sounds()
    whole = bss_eval(references, estimates, SHORT)
    per_frame = BssEvalConfig(1000, 1000, taps=16, framewise_filters=True)
    scores = bss_eval(references, estimates, per_frame)
    frame = bss_eval(references[..., :1000], estimates[..., :1000], BssEvalConfig(taps=16))
    assert torch.allclose(scores.sar[:, :1], frame.sar)
    assert torch.allclose(scores.sdr, whole.sdr)
    assert not torch.allclose(scores.sar, whole.sar)


def test_a_frame_with_a_silent_source_is_scored_for_none() -> None:
    references, estimates = sounds()
    references[1, :, 1000:2000] = 0
    estimates[2, 0, 2000:3000] = -estimates[2, 1, 2000:3000]  # adds up to nothing
    for score in SCORES:
        missing = getattr(bss_eval(references, estimates, SHORT), score).isnan()
        assert missing.tolist() == [[False, True, True, False]] * 3


def test_a_track_with_a_silent_source_is_not_scored() -> None:
    references, estimates = sounds()
    references[1] = 0
    assert bss_eval(references, estimates, SHORT).sdr.isnan().all()


def test_estimates_are_given_to_their_references() -> None:
    references, estimates = sounds()
    config = BssEvalConfig(1000, 1000, taps=16, permute=True)
    scores = bss_eval(references, estimates[[2, 0, 1]], config)
    assert scores.permutation.flatten().tolist() == [1, 2, 0]
    assert torch.allclose(scores.sir, bss_eval(references, estimates, SHORT).sir)


def test_a_silent_frame_keeps_the_order_as_in_museval() -> None:
    references, estimates = sounds()
    references[0, :, :1000] = 0
    config = BssEvalConfig(1000, 1000, taps=16, permute=True)
    order = bss_eval(references, estimates[[2, 0, 1]], config).permutation
    assert order.flatten().tolist() == [0, 1, 2]


def test_the_truth_itself_scores_without_limit() -> None:
    references, _ = sounds()
    scores = bss_eval(references, references, SHORT)
    assert (scores.sdr == math.inf).all()
    assert (scores.sar > 150).all()


def test_a_mono_source_in_stereo_counts_as_its_one_channel() -> None:
    references, estimates = sounds()
    references[1, 1] = references[1, 0]
    scores = bss_eval(references, estimates, BssEvalConfig(taps=8))
    everything = projected(estimates[0], references.flatten(0, 1)[[0, 1, 2, 4, 5]], 8)
    e = torch.nn.functional.pad(estimates[0], (0, 7))
    assert scores.sar[0].item() == pytest.approx(decibels(everything, e - everything))


def test_wrong_shapes_and_windows_are_refused() -> None:
    references, estimates = sounds()
    with pytest.raises(ShapeError, match="cut or pad"):
        bss_eval(references, estimates[..., 1:])
    with pytest.raises(ShapeError, match="sources, channels, time"):
        bss_eval(references[0], estimates[0])
    for wrong in (BssEvalConfig(taps=0), BssEvalConfig(0, 0), BssEvalConfig(1000, -1)):
        with pytest.raises(ConfigError, match="a sample or more"):
            bss_eval(references, estimates, wrong)
    with pytest.raises(ConfigError, match="both a window and a hop"):
        bss_eval(references, estimates, BssEvalConfig(1000))


CALLS = [
    {"window": 1000, "hop": 500},
    {"window": 1000, "hop": 500, "framewise_filters": True, "filters_len": 32},
    {"window": np.inf, "hop": np.inf, "filters_len": 64},
    {"window": 900, "hop": 900, "bsseval_sources_version": True, "filters_len": 33},
    {"window": 900, "hop": 900, "compute_permutation": True, "filters_len": 33},
    {
        "window": 900,
        "hop": 900,
        "compute_permutation": True,
        "framewise_filters": True,
        "filters_len": 16,
    },
]


def ours(call: dict[str, float]) -> BssEvalConfig:
    window = None if call["window"] == np.inf else int(call["window"])
    return BssEvalConfig(
        window,
        None if window is None else int(call["hop"]),
        taps=int(call.get("filters_len", 512)),
        framewise_filters=bool(call.get("framewise_filters", False)),
        images=not call.get("bsseval_sources_version", False),
        permute=bool(call.get("compute_permutation", False)),
    )


@pytest.mark.peer
@pytest.mark.skipif(importlib.util.find_spec("museval") is None, reason="museval is not installed")
@pytest.mark.parametrize("call", CALLS, ids=str)
@pytest.mark.parametrize("sources", [1, 2, 3])
def test_museval_says_the_same(sources: int, call: dict[str, float]) -> None:
    from museval.metrics import bss_eval as theirs

    references, estimates = sounds(sources)
    references[0, :, 1000:2000] = 0
    scores: BssScores = bss_eval(references, estimates, ours(call))
    expected = theirs(references.mT.numpy(), estimates.mT.numpy(), **call)
    for name, values in zip((*SCORES, "permutation"), expected, strict=True):
        found = getattr(scores, name).numpy()
        finite = np.isfinite(values)
        assert np.array_equal(np.isnan(found), np.isnan(values)), name
        assert np.allclose(found[finite], values[finite], rtol=0, atol=1e-6), name
