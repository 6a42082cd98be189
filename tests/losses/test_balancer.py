"""The balancer: what a weight means, exact continuation, errors. Values: tests/parity."""

import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, multiprocessing, nn

from sonorant.errors import CheckpointError, ConfigError
from sonorant.losses.balancer import Balancer, BalancerConfig


def losses_of(output: Tensor, step: int = 0) -> dict[str, Tensor]:
    return {"time": (output - 0.3).abs().mean(), "mel": (1 + step) * (output + 0.5).square().mean()}


def random_output(seed: int = 0, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 1, 20, generator=generator).requires_grad_()


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(1e-3, 1e3),
    weight=st.floats(0.1, 10),
    per_batch_item=st.booleans(),
)
def test_the_scale_of_a_loss_does_not_matter(
    scale: float, weight: float, per_batch_item: bool
) -> None:
    config = BalancerConfig(per_batch_item=per_batch_item)
    plain, scaled = (Balancer({"time": 1.0, "mel": weight}, config) for _ in range(2))
    for step in range(3):
        output = random_output(seed=step)
        losses = losses_of(output, step)
        expected = plain.gradient(losses, output)
        losses["mel"] = scale * losses["mel"]
        torch.testing.assert_close(scaled.gradient(losses, output), expected)


@settings(max_examples=20, deadline=None)
@given(weight=st.floats(0.01, 100), total_norm=st.floats(0.1, 10))
def test_the_only_loss_of_a_step_gets_the_whole_norm(weight: float, total_norm: float) -> None:
    balancer = Balancer({"time": weight, "mel": 1.0}, BalancerConfig(total_norm=total_norm))
    output = random_output()
    gradient = balancer.gradient({"time": losses_of(output)["time"]}, output)
    norms = gradient.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms.mean(), torch.tensor(total_norm))


def test_a_weight_is_the_share_of_the_gradient() -> None:
    output = random_output()
    losses = losses_of(output)
    (time,) = torch.autograd.grad(losses["time"], output, retain_graph=True)
    (mel,) = torch.autograd.grad(losses["mel"], output, retain_graph=True)
    balanced = Balancer({"time": 1.0, "mel": 3.0}, BalancerConfig(per_batch_item=False)).balance(
        losses, output
    )
    torch.testing.assert_close(
        balanced.gradient, 0.25 * time / time.norm() + 0.75 * mel / mel.norm()
    )
    total = time.norm() + mel.norm()
    torch.testing.assert_close(balanced.ratios["time"], time.norm() / total)
    torch.testing.assert_close(
        balanced.effective_loss,
        (0.25 * losses["time"] / time.norm() + 0.75 * losses["mel"] / mel.norm()).detach(),
    )


def test_one_loud_step_moves_the_average_of_many_little() -> None:
    balancer = Balancer({"time": 1.0}, BalancerConfig(ema_decay=0.99))
    output = random_output()
    for _ in range(200):
        balancer.gradient({"time": losses_of(output)["time"]}, output)
    gradient = balancer.gradient({"time": 100 * losses_of(output)["time"]}, output)
    # The moving average is about 1 + (100 - 1) / 86.7 times the usual norm, 86.7 the sum of 0.99^k.
    torch.testing.assert_close(
        gradient.flatten(1).norm(dim=1).mean(), torch.tensor(46.7), rtol=0.01, atol=0
    )


def test_the_gradient_reaches_the_model_once() -> None:
    layer = nn.Linear(4, 4)
    output = layer(torch.ones(2, 4))
    gradient = Balancer({"time": 1.0, "mel": 1.0}).gradient(losses_of(output), output)
    assert layer.weight.grad is None
    output.backward(gradient)
    torch.testing.assert_close(layer.weight.grad, gradient.sum(0)[:, None].expand(4, 4))


def test_without_balancing_the_weighted_gradients_are_summed() -> None:
    output = random_output()
    losses = losses_of(output)
    balancer = Balancer({"time": 2.0, "mel": 3.0}, BalancerConfig(balance_grads=False))
    (expected,) = torch.autograd.grad(
        2 * losses["time"] + 3 * losses["mel"], output, retain_graph=True
    )
    torch.testing.assert_close(balancer.gradient(losses, output), expected)


def test_a_loss_without_gradient_stays_finite() -> None:
    output = torch.zeros(2, 1, 8, requires_grad=True)
    balancer = Balancer({"flat": 1.0, "mel": 1.0})
    losses = {"flat": output.square().mean(), "mel": (output - 1).square().mean()}
    balanced = balancer.balance(losses, output)
    assert balanced.gradient.isfinite().all()
    torch.testing.assert_close(balanced.gradient.flatten(1).norm(dim=1), torch.full((2,), 0.5))


def test_continues_exactly_from_its_state(tmp_path: Path) -> None:
    def run(balancer: Balancer, steps: range) -> list[Tensor]:
        gradients = []
        for step in steps:
            output = random_output(seed=step)
            gradients.append(balancer.gradient(losses_of(output, step), output))
        return gradients

    whole = run(Balancer({"time": 1.0, "mel": 2.0}), range(6))
    first, second = (Balancer({"time": 1.0, "mel": 2.0}) for _ in range(2))
    run(first, range(3))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for expected, got in zip(whole[3:], run(second, range(3, 6)), strict=True):
        assert torch.equal(expected, got)


@pytest.mark.parametrize("weights", [{"time": -1.0, "mel": 2.0}, {"time": 0.0}, {}])
def test_impossible_weights_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="weights"):
        Balancer(weights)


def test_losses_that_cannot_be_balanced_are_refused() -> None:
    output = random_output()
    balancer = Balancer({"time": 1.0, "mel": 0.0})
    with pytest.raises(ConfigError, match="no weight for the losses"):
        balancer.gradient({"sisnr": output.mean()}, output)
    with pytest.raises(ConfigError, match="no weight together"):
        balancer.gradient({"mel": output.mean()}, output)
    with pytest.raises(ConfigError, match="'time' does not depend"):
        balancer.gradient({"time": torch.ones((), requires_grad=True)}, output)
    with pytest.raises(CheckpointError, match="sisnr"):
        balancer.load_state_dict(
            {"averages": {"sisnr": torch.ones(())}, "counts": {"sisnr": torch.ones(())}}
        )


def _balance_in_a_process(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", f"tcp://localhost:{port}", rank=rank, world_size=2)
    output = random_output(seed=rank, batch=1 + rank)
    gradient = Balancer({"time": 1.0, "mel": 1.0}).gradient(losses_of(output), output)
    torch.save(gradient, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_balance_as_one(tmp_path: Path) -> None:
    """Two processes with one and two items do what one process with all three would."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_balance_in_a_process, (port, str(tmp_path)), nprocs=2)
    outputs = [random_output(seed=rank, batch=1 + rank) for rank in range(2)]
    whole = torch.cat([output.detach() for output in outputs]).requires_grad_()
    first, second = (losses_of(part) for part in whole.split([1, 2]))
    losses = {name: first[name] + second[name] for name in first}
    expected = Balancer({"time": 1.0, "mel": 1.0}).gradient(losses, whole)
    parts = torch.cat([torch.load(tmp_path / f"{rank}.pt") for rank in range(2)])
    torch.testing.assert_close(parts, expected)
