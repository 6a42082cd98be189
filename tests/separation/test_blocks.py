"""Blocks of the Demucs models: lengths, batches, neighbourhoods, first weights."""

import pytest
import torch
from torch import nn

from sonorant.errors import ShapeError
from sonorant.separation import blocks
from sonorant.separation.blocks import (
    BLSTM,
    ChannelScale,
    DConv,
    DConvConfig,
    LocalState,
    ScaledEmbedding,
    center_trim,
    pad1d,
    rescale_convolutions,
    sinusoidal_grid,
)


def test_center_trim_drops_the_odd_step_on_the_right():
    assert center_trim(torch.arange(7), 4).tolist() == [1, 2, 3, 4]
    assert center_trim(torch.arange(4), 4).tolist() == [0, 1, 2, 3]


def test_center_trim_refuses_to_lengthen():
    with pytest.raises(ShapeError, match="cannot trim 3 steps to 4"):
        center_trim(torch.arange(3), 4)


def test_reflection_keeps_the_sound_where_it_is():
    x = torch.randn(1, 2, 9)
    padded = pad1d(x, 3, 2, "reflect")
    assert torch.equal(padded[..., 3:12], x)
    assert torch.equal(padded[..., :3], x[..., 1:4].flip(-1))


def test_reflection_of_a_sound_shorter_than_its_padding_begins_with_zeros():
    padded = pad1d(torch.ones(1, 1, 2), 4, 1, "reflect")
    assert padded[0, 0].tolist() == [1, 0, 0, 0, 1, 1, 0]  # 0 0 1 1 0, then reflected


def test_convolutions_come_closer_to_one_scale():
    network = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ConvTranspose2d(8, 4, 3), nn.Linear(4, 4))
    with torch.no_grad():
        network[0].weight *= 100
    stds = [layer.weight.std().item() for layer in network]
    bias = network[0].bias.detach().clone()
    rescale_convolutions(network, 0.1)
    for layer, std in zip(network[:2], stds[:2], strict=True):
        assert layer.weight.std().item() == pytest.approx((std * 0.1) ** 0.5, rel=1e-4)
    torch.testing.assert_close(network[0].bias, bias / (stds[0] / 0.1) ** 0.5)
    assert network[2].weight.std().item() == pytest.approx(stds[2])


def test_lstm_in_frames_equals_each_frame_on_its_own():
    lstm = BLSTM(3, layers=1, max_steps=8, skip=False)
    x = torch.randn(2, 3, 19)
    y = lstm(x)
    padded = torch.nn.functional.pad(x, (0, 5))  # frames of 8 from 0, 4, 8, 12, 16
    for start in (4, 8, 12):
        frame = lstm._whole(padded[..., start : start + 8])
        torch.testing.assert_close(y[..., start + 2 : start + 6], frame[..., 2:6])
    torch.testing.assert_close(y[..., :6], lstm._whole(x[..., :8])[..., :6])
    torch.testing.assert_close(y[..., 18:], lstm._whole(padded[..., 16:])[..., 2:3])


def test_a_sound_of_exactly_the_frame_is_seen_whole():
    lstm = BLSTM(3, layers=1, max_steps=8)
    x = torch.randn(1, 3, 8)
    torch.testing.assert_close(lstm(x), x + lstm._whole(x))


def test_local_attention_leaves_out_the_step_itself():
    attention = LocalState(4, heads=1, decays=0)
    nn.init.zeros_(attention.query.weight)
    nn.init.zeros_(attention.query.bias)
    with torch.no_grad():
        attention.content.weight.copy_(torch.eye(4)[..., None])
        attention.content.bias.zero_()
        attention.proj.weight.copy_(torch.eye(4)[..., None])
        attention.proj.bias.zero_()
    x = torch.randn(1, 4, 5)
    others = (x.sum(-1, keepdim=True) - x) / 4  # equal scores: the mean of the other steps
    torch.testing.assert_close(attention(x), x + others)


def test_local_attention_with_strong_decay_sees_only_the_neighbours():
    attention = LocalState(4, heads=2, decays=4)
    with torch.no_grad():
        attention.query_decay.bias.fill_(50)
        attention.query_decay.weight.zero_()
        attention.query.weight.zero_()
        attention.query.bias.zero_()
    x = torch.randn(1, 4, 30)
    far = x.clone()
    far[..., 25:] += 10
    # decays of 1/2 for rates 1 to 4: a score falls by 2.5 per step
    torch.testing.assert_close(attention(x)[..., :12], attention(far)[..., :12])


@pytest.mark.parametrize("frequencies", [0, 3])
def test_local_attention_in_blocks_of_queries_equals_all_at_once(monkeypatch, frequencies):
    monkeypatch.setattr(blocks, "CACHED", 2 * 2 * 23 * 5)  # five queries of two heads and rows
    attention = LocalState(4, heads=2, decays=3, frequencies=frequencies)
    x = torch.randn(2, 4, 23)
    with torch.no_grad():
        in_blocks = attention(x)
    torch.testing.assert_close(in_blocks, attention(x))


@pytest.mark.parametrize("depth", [2, -2])
@pytest.mark.parametrize("inside", [{}, {"lstm": True, "attention": True}, {"norm": False}])
def test_bins_of_a_spectrogram_are_sounds_of_their_own(depth, inside):
    dconv = DConv(8, DConvConfig(compress=2, depth=depth, initial_scale=1.0, **inside)).eval()
    x = torch.randn(2, 8, 3, 21)
    with torch.no_grad():
        y = dconv(x)
        rows = [dconv(x[:, :, index]) for index in range(3)]
    torch.testing.assert_close(y, torch.stack(rows, dim=2))


def test_branches_change_nothing_where_their_scale_is_zero():
    dconv = DConv(8, DConvConfig(compress=4, initial_scale=0.0))
    x = torch.randn(1, 8, 13)
    assert torch.equal(dconv(x), x)


def test_branches_train_and_run_alike():
    dconv = DConv(8, DConvConfig(compress=4, initial_scale=1.0))
    x = torch.randn(2, 8, 3, 50)
    with torch.no_grad():
        fast = dconv(x)
    torch.testing.assert_close(dconv(x), fast)
    dconv(x).square().sum().backward()
    assert all(bool(parameter.grad.abs().sum() > 0) for parameter in dconv.parameters())


def test_channel_scale_multiplies_channels():
    scale = ChannelScale(2, 0.5)
    assert scale(torch.ones(1, 2, 3)).tolist() == [[[0.5] * 3] * 2]


def test_a_smooth_embedding_begins_with_close_neighbours():
    torch.manual_seed(0)
    rough, smooth = ScaledEmbedding(512, 16), ScaledEmbedding(512, 16, smooth=True)
    steps = [table.weight.diff(dim=0).square().mean() for table in (rough, smooth)]
    assert steps[1] < steps[0] / 20
    assert torch.equal(smooth(torch.tensor([3])), smooth.weight[3:4])


def test_a_grid_needs_a_multiple_of_four_channels():
    with pytest.raises(ShapeError, match="multiple of 4"):
        sinusoidal_grid(6, 2, 2)
