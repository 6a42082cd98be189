"""Stereo by turns: both channels come back, in the published order."""

import pytest
import torch

from sonorant.audio import Audio
from sonorant.codec.encodec import EncodecConfig
from sonorant.codec.encodec_segments import SegmentedEncodec
from sonorant.codec.stereo import InterleavedStereo, interleave, separate
from sonorant.errors import ConfigError, ShapeError
from sonorant.nn.seanet import SEANetConfig
from tests.codec.test_encodec import tiny


def test_codebooks_take_turns_left_before_right() -> None:
    tokens = torch.arange(2 * 3 * 4).view(2, 3, 4)  # left and right of one sound
    mixed = interleave(tokens)
    assert torch.equal(mixed[0, 0], tokens[0, 0])
    assert torch.equal(mixed[0, 1], tokens[1, 0])
    assert torch.equal(mixed[0, 2], tokens[0, 1])


def test_frames_take_turns_left_before_right() -> None:
    tokens = torch.arange(2 * 3 * 4).view(2, 3, 4)
    mixed = interleave(tokens, per_timestep=True)
    assert torch.equal(mixed[0, :, ::2], tokens[0])
    assert torch.equal(mixed[0, :, 1::2], tokens[1])


@pytest.mark.parametrize("per_timestep", [False, True])
def test_separating_undoes_interleaving(per_timestep: bool) -> None:
    tokens = torch.randint(9, (6, 3, 4))
    assert torch.equal(separate(interleave(tokens, per_timestep), per_timestep), tokens)


@pytest.mark.parametrize("per_timestep", [False, True])
def test_each_channel_is_coded_as_if_alone(per_timestep: bool) -> None:
    codec = tiny()
    both = InterleavedStereo(codec, per_timestep)
    x = 0.3 * torch.randn(2, 2, 700, generator=torch.Generator().manual_seed(0))
    decoded = both.decode_batch(both.encode_batch(x))
    assert decoded.shape == x.shape
    for channel in range(2):
        mono = x[:, channel : channel + 1]
        alone = codec.decode_batch(codec.encode_batch(mono))
        torch.testing.assert_close(decoded[:, channel : channel + 1], alone)


def test_a_mono_sound_of_another_rate_is_converted() -> None:
    both = InterleavedStereo(tiny())
    encoded = both.encode(Audio(torch.zeros(1, 12000), 12000))
    assert encoded.tokens.shape[1] == 2 * both.codec.codebooks_for()
    assert both.decode(encoded).samples.shape == (2, encoded.samples)


def test_tokens_without_a_partner_and_mono_input_are_refused() -> None:
    both = InterleavedStereo(tiny())
    with pytest.raises(ShapeError, match="left and right in turn"):
        separate(torch.zeros(1, 3, 4, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"\[batch, 2, time\]"):
        both.encode_batch(torch.zeros(1, 1, 100))


def test_a_codec_with_volumes_is_refused() -> None:
    config = EncodecConfig(seanet=SEANetConfig(causal=False), normalize=True)
    with torch.device("meta"):
        codec = SegmentedEncodec(config)
    with pytest.raises(ConfigError, match="mono codec without segments and volumes"):
        InterleavedStereo(codec)
