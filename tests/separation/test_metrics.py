"""Figures of whole songs, and of frames."""

import math

import numpy as np
import pytest
import torch

from sonorant.errors import ShapeError
from sonorant.separation.metrics import fit_length, global_sdr, median_over_frames


def test_the_challenge_s_sdr_is_the_ratio_of_energies_over_time_and_channels() -> None:
    torch.manual_seed(0)
    true, noise = torch.randn(3, 2, 1000), torch.randn(3, 2, 1000)
    found = global_sdr(true, true + 0.1 * noise)
    expected = [
        10 * math.log10((t**2).sum() / (0.01 * (n**2).sum()))
        for t, n in zip(true.double().numpy(), noise.double().numpy(), strict=True)
    ]
    assert found.numpy() == pytest.approx(np.array(expected), abs=1e-5)


def test_silence_left_silent_scores_0_db_and_sound_in_it_less() -> None:
    silence = torch.zeros(2, 1000)
    assert global_sdr(silence, silence).item() == 0
    assert global_sdr(silence, silence + 0.1).item() < -80
    with pytest.raises(ShapeError, match="estimates have the shape"):
        global_sdr(silence, silence[:, 1:])


def test_the_median_leaves_out_frames_without_a_figure() -> None:
    frames = torch.tensor([[1.0, math.nan, 3.0, 10.0, 4.0], [math.nan] * 5], dtype=torch.float64)
    medians = median_over_frames(frames)
    assert medians[0] == 3.5
    assert medians[1].isnan()


def test_estimates_are_padded_or_cut_at_the_end() -> None:
    assert fit_length(torch.ones(1, 2), 4).tolist() == [[1, 1, 0, 0]]
    assert fit_length(torch.arange(4.0)[None], 2).tolist() == [[0, 1]]
