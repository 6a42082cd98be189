from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from sonorant.errors import CheckpointError, ConfigError, SonorantError
from sonorant.training.checkpoints import checkpoint_path, checkpoint_steps
from sonorant.training.engine import BatchPositions, learning_rate_factor, train
from sonorant.training.recipe import Recipe, TrainingConfig, convert_section
from tests.training.runs import assert_equal_states, final_state, log_lines
from tests.training.toy import toy_recipe


def run(
    folder: Path, resume: bool = False, settings: dict[str, Any] | None = None, **training: Any
) -> bool:
    recipe = convert_section(toy_recipe(training, settings), Recipe, "toy")
    return train(recipe, folder, resume)


def test_training_reaches_the_line(tmp_path: Path) -> None:
    assert run(tmp_path, {}, {"dropout": 0.0, "learning_rate": 0.05}, steps=300, evaluate_every=300)
    (valid,) = [line for line in log_lines(tmp_path) if line["kind"] == "valid"]
    assert valid["error"] < 1e-2
    assert (tmp_path / "model" / "model.pt").exists()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_run_equals_uninterrupted_bit_for_bit(tmp_path: Path, accumulate: int) -> None:
    options: dict[str, Any] = {"accumulate": accumulate, "max_gradient_norm": 0.5}
    run(tmp_path / "whole", **options)
    # Stopped by SIGTERM within the third step, as a scheduler would do it.
    stopped = run(tmp_path / "parts", settings={"stop_self_at_step": 2}, **options)
    assert not stopped
    assert checkpoint_steps(tmp_path / "parts" / "checkpoints") == [3]
    assert run(tmp_path / "parts", resume=True, **options)
    assert_equal_states(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))
    whole, parts = log_lines(tmp_path / "whole"), log_lines(tmp_path / "parts")
    assert [line for line in whole if line["kind"] == "valid"] == [
        line for line in parts if line["kind"] == "valid"
    ]


def test_evaluation_leaves_no_trace_in_training(tmp_path: Path) -> None:
    run(tmp_path / "often", evaluate_every=1)
    run(tmp_path / "never", evaluate_every=0)
    assert_equal_states(final_state(tmp_path / "often"), final_state(tmp_path / "never"))


def test_data_workers_change_nothing(tmp_path: Path) -> None:
    run(tmp_path / "alone", workers=0)
    run(tmp_path / "helped", workers=1)
    assert_equal_states(final_state(tmp_path / "alone"), final_state(tmp_path / "helped"))


def test_accumulated_gradients_are_those_of_the_large_batch(tmp_path: Path) -> None:
    settings = {"dropout": 0.0}
    run(tmp_path / "large", settings=settings, batch_size=4, steps=1)
    run(tmp_path / "parts", settings=settings, batch_size=2, accumulate=2, steps=1)
    large, parts = final_state(tmp_path / "large"), final_state(tmp_path / "parts")
    for name, value in large["state"]["modules"]["model"].items():
        torch.testing.assert_close(parts["state"]["modules"]["model"][name], value)


def test_exported_model_holds_the_averaged_weights(tmp_path: Path) -> None:
    run(tmp_path)
    exported = torch.load(tmp_path / "model" / "model.pt")
    trained = final_state(tmp_path)["state"]["modules"]["model"]
    assert not torch.equal(exported["0.weight"], trained["0.weight"])
    run(tmp_path / "plain", average_decay=None)
    exported = torch.load(tmp_path / "plain" / "model" / "model.pt")
    assert_equal_states(
        dict(exported), dict(final_state(tmp_path / "plain")["state"]["modules"]["model"])
    )


def test_half_written_checkpoint_is_ignored_and_removed(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    crashed = tmp_path / "checkpoints" / "step-00000005.part"
    crashed.mkdir()
    (crashed / "state.pt").write_bytes(b"half a chec")
    assert run(tmp_path, resume=True, steps=6)
    assert not crashed.exists()
    run(tmp_path / "whole", steps=6)
    assert_equal_states(final_state(tmp_path), final_state(tmp_path / "whole"))


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run(tmp_path, checkpoint_every=1, keep_checkpoints=2)
    assert checkpoint_steps(tmp_path / "checkpoints") == [5, 6]


def test_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    path = checkpoint_path(tmp_path / "checkpoints", 3) / "state.pt"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"step-00000003/state.pt is damaged"):
        run(tmp_path, resume=True)


def test_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    with pytest.raises(CheckpointError, match="does not fit this recipe"):
        run(tmp_path, resume=True, settings={"hidden": 5})


def test_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, steps=3)
    with pytest.raises(ConfigError, match="already holds a run"):
        run(tmp_path)


def test_resume_forgets_what_was_logged_after_the_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, steps=4, log_every=1, evaluate_every=0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "kind": "train", "loss": 1.0}\n{"step": 6, "ki')
    run(tmp_path, resume=True, steps=6, log_every=1, evaluate_every=0)
    assert [line["step"] for line in log_lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_resuming_with_another_batch_size_is_refused(tmp_path: Path) -> None:
    run(tmp_path, steps=4, evaluate_every=0)
    with pytest.raises(ConfigError, match="cannot continue exactly"):
        run(tmp_path, resume=True, steps=6, evaluate_every=0, batch_size=5)


def test_divergence_stops_the_run_before_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(SonorantError, match=r"diverged before step 5: loss"):
        run(tmp_path, settings={"diverge_at_step": 4}, log_every=1, evaluate_every=0)
    assert checkpoint_steps(tmp_path / "checkpoints") == [3]


def test_processes_and_resumed_steps_read_disjoint_consecutive_items() -> None:
    config = TrainingConfig(steps=4, batch_size=2, accumulate=2)
    both = [
        list(BatchPositions(100, config, first_step=1, process=process, processes=2))
        for process in (0, 1)
    ]
    assert both[0][:2] == [[8, 9], [12, 13]]
    assert both[1][:2] == [[10, 11], [14, 15]]
    assert sorted(item for batch in both[0] + both[1] for item in batch) == list(range(8, 32))


def test_batches_wrap_around_the_data() -> None:
    config = TrainingConfig(steps=2, batch_size=2)
    assert list(BatchPositions(3, config, 0, 0, 1)) == [[0, 1], [2, 0]]


def test_learning_rate_warms_up_then_follows_half_a_cosine() -> None:
    config = TrainingConfig(
        steps=100, batch_size=1, warmup_steps=10, decay_from_step=50, final_learning_rate=0.1
    )
    assert learning_rate_factor(config, 0) == pytest.approx(0.1)
    assert learning_rate_factor(config, 30) == 1.0
    assert learning_rate_factor(config, 75) == pytest.approx(0.55)
    assert learning_rate_factor(config, 99) == pytest.approx(0.1, abs=1e-3)
    constant = TrainingConfig(steps=100, batch_size=1)
    assert {learning_rate_factor(constant, step) for step in range(100)} == {1.0}


def test_learning_rate_drops_in_steps() -> None:
    config = TrainingConfig(steps=100, batch_size=1, drop_every=30, drop_factor=0.2)
    factors = [learning_rate_factor(config, step) for step in (0, 29, 30, 59, 60, 99)]
    assert factors == pytest.approx([1.0, 1.0, 0.2, 0.2, 0.04, 0.008])


def write_recipe(path: Path, settings: dict[str, Any], **training: Any) -> Path:
    path.write_text(yaml.safe_dump(toy_recipe(training, settings)))
    return path


TRAIN = "from sonorant.cli.train import train; train()"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_sigterm_saves_a_checkpoint_and_exits_cleanly(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "toy.yaml", {}, steps=10**8, evaluate_every=0)
    out = tmp_path / "run"
    command = [sys.executable, "-c", TRAIN, str(recipe), "--out", str(out), "training.workers=1"]
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not checkpoint_steps(out / "checkpoints") and time.monotonic() < deadline:
        time.sleep(0.1)
    # To the whole group, data worker included, as schedulers and terminals do it.
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    step = checkpoint_steps(out / "checkpoints")[-1]
    assert f"stopped at step {step}; continue with --resume" in output
    assert log_lines(out)[-1]["step"] == step


@pytest.mark.slow
def test_two_processes_hold_identical_weights_and_resume_exactly(tmp_path: Path) -> None:
    settings = {"compare_processes": True, "dropout": 0.0}
    recipe = write_recipe(tmp_path / "toy.yaml", settings)
    script = tmp_path / "run.py"
    script.write_text(TRAIN)

    def launch(out: Path, *arguments: str) -> None:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        command = [*launcher, "--standalone", str(script), str(recipe), "--out", str(out)]
        # The script's own folder is not the one that holds the tests.
        paths = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
        environment = {**ENVIRONMENT, "PYTHONPATH": paths}
        subprocess.run([*command, *arguments], env=environment, check=True, timeout=300)

    launch(tmp_path / "whole")
    launch(tmp_path / "parts", "training.steps=3")
    launch(tmp_path / "parts", "--resume")
    whole = final_state(tmp_path / "whole")
    assert whole["state"]["processes"] == 2
    assert_equal_states(whole, final_state(tmp_path / "parts"))
    # Two processes with batches of 2 see what one process sees with batches of 4.
    run(tmp_path / "one", settings={"dropout": 0.0}, batch_size=4)
    for name, value in final_state(tmp_path / "one")["state"]["modules"]["model"].items():
        torch.testing.assert_close(whole["state"]["modules"]["model"][name], value)
