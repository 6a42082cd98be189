"""SEANet: sizes, gradients, live equals offline, blocks equal the whole."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonorant.nn.conv import Norm
from sonorant.nn.elu import ELU
from sonorant.nn.lstm import FEW_STEPS, SkipLSTM
from sonorant.nn.seanet import SEANetConfig, SEANetDecoder, SEANetEncoder
from sonorant.nn.state import init_state

TINY = SEANetConfig(dimension=8, base_filters=2, ratios=(4, 2), pad_mode="zero", norm="none")
HOP = 8


@pytest.mark.parametrize("skip", ["convolution", "identity"])
@pytest.mark.parametrize("lstm_layers", [0, 2])
def test_shapes_and_gradients(skip: str, lstm_layers: int) -> None:
    config = SEANetConfig(
        dimension=8, base_filters=2, ratios=(4, 2), skip=skip, lstm_layers=lstm_layers
    )
    encoder, decoder = SEANetEncoder(config), SEANetDecoder(config)
    latent = encoder(torch.randn(2, 1, 5 * HOP + 1))
    assert latent.shape == (2, 8, 6)
    sound = decoder(latent)
    assert sound.shape == (2, 1, 6 * HOP)
    sound.pow(2).sum().backward()
    for module in (encoder, decoder):
        assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5))
@torch.no_grad()
def test_live_equals_offline_for_any_chunking(sizes: list[int]) -> None:
    torch.manual_seed(0)
    encoder, decoder = SEANetEncoder(TINY), SEANetDecoder(TINY)
    x = torch.randn(2, 1, sum(sizes) * HOP)
    state, back = init_state(encoder, 2), init_state(decoder, 2)
    lengths = [size * HOP for size in sizes]
    latents = [encoder(part, state) for part in x.split(lengths, dim=-1)]
    whole = encoder(x)
    torch.testing.assert_close(torch.cat(latents, dim=-1), whole, rtol=1e-4, atol=1e-5)
    sounds = [decoder(part, back) for part in whole.split(sizes, dim=-1)]
    torch.testing.assert_close(torch.cat(sounds, dim=-1), decoder(whole), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base_filters", [2, 8])  # the wider encoder opens with two layers in one
@pytest.mark.parametrize("norm", ["none", "weight_norm"])
def test_the_forms_with_and_without_gradients_agree(base_filters: int, norm: Norm) -> None:
    torch.manual_seed(0)
    config = SEANetConfig(dimension=8, base_filters=base_filters, ratios=(4, 2), norm=norm)
    encoder, decoder = SEANetEncoder(config), SEANetDecoder(config)
    assert encoder.opens_at_once == (base_filters == 8)
    x = torch.randn(2, 1, 40 * HOP + 3)
    latent = encoder(x)
    sound = decoder(latent)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), latent, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(decoder(latent), sound, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_encoder_that_opens_with_two_layers_in_one_runs_live() -> None:
    torch.manual_seed(0)
    encoder = SEANetEncoder(SEANetConfig(dimension=8, base_filters=8, ratios=(4, 2)))
    x = torch.randn(2, 1, 60 * HOP)
    state = init_state(encoder, 2)
    live = [encoder(part, state) for part in x.split([20 * HOP, HOP, 39 * HOP], dim=-1)]
    torch.testing.assert_close(torch.cat(live, dim=-1), encoder(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_blocks_equal_the_whole() -> None:
    encoder, decoder = SEANetEncoder(TINY), SEANetDecoder(TINY)
    x = torch.randn(1, 1, 150 * HOP + 3)
    latent = encoder.run_in_blocks(x, init_state(encoder), block=16 * HOP)
    torch.testing.assert_close(latent, encoder(x), rtol=1e-4, atol=1e-5)
    sound = decoder.run_in_blocks(latent, init_state(decoder), block=16)
    torch.testing.assert_close(sound, decoder(latent), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_lstm_agrees_between_its_few_and_many_step_forms() -> None:
    lstm = SkipLSTM(channels=6, layers=2)
    x = torch.randn(3, 6, FEW_STEPS + 5)
    state = init_state(lstm, 3)
    live = torch.cat([lstm(x[..., :3], state), lstm(x[..., 3:], state)], dim=-1)
    torch.testing.assert_close(live, lstm(x), rtol=1e-5, atol=1e-6)


def test_both_forms_of_the_elu_agree() -> None:
    x = torch.linspace(-20, 20, 2001)
    trained = ELU()(x)
    with torch.no_grad():
        torch.testing.assert_close(ELU()(x), trained, rtol=0, atol=1e-7)
