"""Quantisers stand in for weights during a pass, learn their bits, and count them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sonorant.errors import CheckpointError, ConfigError
from sonorant.quantization import LSQ, Choice, DiffQ, DiffQConfig, Quantizer, UniformQuantizer

ALL = Choice(min_size_mb=0.0001)


def small_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8))


def zero(model: nn.Module) -> None:
    nn.init.zeros_(model.weight)


def quantizers(model: nn.Module) -> list[Quantizer]:
    diffq = DiffQ(model, DiffQConfig(group_size=8, init_bits=3), ALL)
    return [diffq, LSQ(model, 3, ALL), UniformQuantizer(model, 3, trained=True, choice=ALL)]


@pytest.mark.parametrize("kind", range(3))
@pytest.mark.parametrize("training", [True, False])
def test_a_pass_is_quantised_and_leaves_the_weights(kind: int, training: bool) -> None:
    model = small_model().train(training)
    x = torch.randn(4, 8)
    plain, before = model(x), model[0].weight
    for i, quantizer in enumerate(quantizers(model)):
        if i != kind:
            quantizer.detach()
    assert not torch.allclose(model(x), plain)
    assert model[0].weight is before


def test_detaching_leaves_the_model_as_it_was() -> None:
    model = small_model()
    names, plain = list(model.state_dict()), model(torch.ones(1, 8))
    for quantizer in quantizers(model):
        quantizer.detach()
    assert list(model.state_dict()) == names
    assert torch.equal(model(torch.ones(1, 8)), plain)


def test_a_failed_pass_leaves_the_weights() -> None:
    model = small_model().eval()
    UniformQuantizer(model, 2, choice=ALL)
    with pytest.raises(RuntimeError):
        model(torch.ones(1, 5))
    assert "weight" not in model[0].__dict__


def test_recurrent_layers_compute_with_quantised_weights() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(4, 8).eval()
    x = torch.randn(5, 1, 4)
    plain = model(x)[0]
    quantizer = UniformQuantizer(model, 2, choice=ALL)
    assert not torch.allclose(model(x)[0], plain)
    quantizer.detach()
    assert torch.equal(model(x)[0], plain)


def test_the_penalty_takes_bits_away_and_the_loss_keeps_those_it_needs() -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 16, bias=False)
    quantizer = DiffQ(model, DiffQConfig(group_size=16), ALL)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    logits = torch.optim.Adam([quantizer.quantized[0].learned], lr=0.1)
    x = torch.randn(64, 16)
    target = model.weight.detach()[:8] @ x.T  # the last eight rows are free
    size = quantizer.true_model_size()
    for _ in range(60):
        optimizer.zero_grad()
        logits.zero_grad()
        error: Tensor = (model(x).T[:8] - target).square().mean()
        (error + 10 * quantizer.model_size()).backward()
        logits.step()
    bits = quantizer.bits(quantizer.quantized[0])
    assert quantizer.true_model_size() < size
    assert bits[:8].min() > bits[8:].max()


def test_an_optimiser_made_before_trains_the_logits() -> None:
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    quantizer = DiffQ(model, DiffQConfig(group_size=8), ALL)
    quantizer.attach(optimizer, lr=1e-3, weight_decay=0)
    before = quantizer.quantized[0].learned.detach().clone()
    quantizer.model_size().backward()
    optimizer.step()
    assert torch.allclose(before - quantizer.quantized[0].learned, torch.tensor(1e-3), atol=1e-5)


def test_tied_weights_are_counted_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    assert UniformQuantizer(model, 4, choice=ALL).true_model_size() == (4 * 64 + 64) / 8 / 2**20


def test_a_constant_weight_comes_back() -> None:
    model = nn.Linear(8, 8)
    nn.init.constant_(model.weight, 0.25)
    quantizer = UniformQuantizer(model, 3, choice=ALL)
    assert torch.equal(quantizer.stored_weight(quantizer.quantized[0]), model.weight)


def test_gradients_pass_on_from_weights_set_apart_in_any_number_of_passes() -> None:
    grads = []
    for apart in (False, True):
        model, x = small_model(), torch.ones(2, 8)
        quantizer = DiffQ(model, DiffQConfig(group_size=8), ALL)
        torch.manual_seed(1)
        with quantizer.in_place(apart):
            y = model(x)
            if apart:
                y[0].square().mean().backward(retain_graph=True)
                assert quantizer.reached == set(quantizer.quantized)
                y[1].square().mean().backward()
            else:
                (y[0].square().mean() + y[1].square().mean()).backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_a_pass_within_keeps_the_weights_in_place() -> None:
    model = small_model()
    quantizer = DiffQ(model, DiffQConfig(group_size=8, init_bits=3), ALL)
    with quantizer.in_place():
        assert torch.equal(model(torch.ones(1, 8)), model(torch.ones(1, 8)))
    assert not torch.equal(model(torch.ones(1, 8)), model(torch.ones(1, 8)))


def test_the_last_group_may_be_smaller() -> None:
    model = nn.Linear(5, 3)
    quantizer = DiffQ(model, DiffQConfig(group_size=8), Choice(min_size_mb=0, exclude=("bias",)))
    (slot,) = quantizer.quantized
    assert quantizer.stored_bits(slot).numel() == 2
    assert quantizer.true_model_size() * 8 * 2**20 == 15 * 8 + 64 + 8 + 3 * 2 + 3 * 32
    assert torch.allclose(quantizer.stored_weight(slot), model.weight, atol=2e-3)
    model(torch.ones(1, 5)).sum().backward()
    assert slot.learned.grad.abs().min() > 0


def test_weights_that_are_not_finite_are_named() -> None:
    for make in (
        lambda model: DiffQ(model, choice=ALL),
        lambda model: UniformQuantizer(model, 4, choice=ALL),
        lambda model: LSQ(model, 4, ALL),
    ):
        model = small_model().eval()
        make(model)
        model[0].weight.data[0, 0] = float("nan")
        with pytest.raises(CheckpointError, match=r"0\.weight has values that are not finite"):
            model(torch.ones(1, 8))


def test_bits_that_are_not_finite_are_named() -> None:
    model = small_model().eval()
    DiffQ(model, choice=ALL).quantized[0].learned.data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"0\.weight_diffq has values that are not finite"):
        model(torch.ones(1, 8))


def test_zeros_take_any_step() -> None:
    model = nn.Linear(8, 8).apply(zero)
    quantizer = LSQ(model, 4, ALL)
    assert torch.equal(quantizer.stored_weight(quantizer.quantized[0]), model.weight)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DiffQConfig(min_bits=8),
        lambda: DiffQConfig(min_bits=1),
        lambda: DiffQConfig(max_bits=16),
        lambda: DiffQConfig(group_size=-1),
        lambda: UniformQuantizer(small_model(), 16),
        lambda: LSQ(small_model(), 1),
        lambda: UniformQuantizer(nn.Linear(8, 8, dtype=torch.complex64), 4, choice=ALL),
        lambda: UniformQuantizer(whole_numbers(), 4, choice=ALL),
    ],
)
def test_impossible_options_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError):
        make()


def whole_numbers() -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(100, dtype=torch.int32), requires_grad=False)
    return module
