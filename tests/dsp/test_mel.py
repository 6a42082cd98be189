import torch

from sonorant.dsp.mel import mel_filterbank, mel_frequencies, mel_spectrogram
from sonorant.dsp.stft import stft


def test_frequencies_are_equally_spaced_in_mels() -> None:
    hz = mel_frequencies(11, 100.0, 6000.0)
    mels = 2595 * torch.log10(1 + hz / 700)
    torch.testing.assert_close(mels.diff(), mels.diff()[:1].expand(10), rtol=1e-4, atol=0)
    torch.testing.assert_close(hz[[0, -1]], torch.tensor([100.0, 6000.0]))


def test_filters_are_triangles_of_height_one_that_sum_to_one() -> None:
    filters = mel_filterbank(4001, 20, 16000)
    torch.testing.assert_close(filters.amax(dim=0), torch.ones(20), rtol=0, atol=0.03)
    first_peak, last_peak = filters[:, 0].argmax(), filters[:, -1].argmax()
    between = filters[first_peak : last_peak + 1].sum(dim=1)
    torch.testing.assert_close(between, torch.ones_like(between))


def test_filters_stay_within_their_range() -> None:
    filters = mel_filterbank(513, 16, 24000, f_min=1000.0, f_max=4000.0)
    bins = torch.linspace(0, 12000, 513)
    assert filters[(bins <= 1000) | (bins >= 4000)].abs().sum() == 0


def test_filters_narrower_than_a_bin_are_zero() -> None:
    assert (mel_filterbank(33, 120, 16000).sum(dim=0) == 0).any()


def test_spectrogram_weighs_energy_or_magnitude() -> None:
    spectrum = stft(torch.randn(2, 1, 600, dtype=torch.float64), 128, 32)
    filters = mel_filterbank(65, 10, 16000).double()
    for power in (1.0, 2.0):
        expected = torch.einsum("bcft,fm->bcmt", spectrum.abs() ** power, filters)
        actual = mel_spectrogram(spectrum, 16000, 10, power=power)
        assert actual.shape == (2, 1, 10, 19)
        torch.testing.assert_close(actual, expected)
