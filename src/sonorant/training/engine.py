"""The training engine: runs any Task on one CPU, one GPU or many processes, and can always resume.

It stands on accelerate for devices, processes and precision. A run lives in one folder:

    recipe.yaml  metrics.jsonl  tensorboard/  samples/  checkpoints/  model/

`model/` is the exported model, refreshed at every evaluation and at the end. A resumed run gives
the same weights, bit for bit, as one that was never stopped: batches are read by position, random
states are saved, and evaluation leaves no trace in the training state.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping, Sized
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset

from sonorant.errors import CheckpointError, ConfigError, DependencyError
from sonorant.optim.average import ExponentialMovingAverage
from sonorant.training import checkpoints
from sonorant.training.quantization import Quantization, QuantizedModels
from sonorant.training.recipe import Recipe, TrainingConfig, build_task, save_recipe
from sonorant.training.task import StepContext, Task

try:
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from accelerate.utils import (  # type: ignore[import-untyped]
        DistributedType,
        gather_object,
        send_to_device,
        set_seed,
    )

    from sonorant.training.logs import MeanMetrics, RunLog
except ImportError as error:
    raise DependencyError(
        f"training needs accelerate and tensorboard ({error}); pip install 'sonorant[train]'"
    ) from error


def train(
    recipe: Recipe, folder: Path, resume: bool = False, short_names: Mapping[str, str] | None = None
) -> bool:
    """Train what a recipe describes, in `folder`.

    Returns True when the last step was reached, False when a signal stopped the run early.
    Raises: ConfigError for a wrong recipe or a folder that holds a run when `resume` is false;
    CheckpointError for a damaged checkpoint; SonorantError when training diverges.
    """
    config = recipe.training
    accelerator = Accelerator(
        cpu=config.device == "cpu", mixed_precision="bf16" if config.precision == "bf16" else "no"
    )
    if accelerator.distributed_type not in _DISTRIBUTED_TYPES:
        raise ConfigError(
            f"cannot train under {accelerator.distributed_type.value}; "
            "launch plain data-parallel processes (accelerate launch --multi_gpu or --cpu)"
        )
    steps = checkpoints.checkpoint_steps(folder / "checkpoints")
    if steps and not resume:
        raise ConfigError(f"{folder} already holds a run; pass --resume or another --out")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    set_seed(config.seed)
    task = build_task(recipe, short_names or {})
    engine = Engine(task, config, folder, accelerator, recipe.quantization)
    if steps:
        engine.load_checkpoint(checkpoints.checkpoint_path(folder / "checkpoints", steps[-1]))
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, folder / "recipe.yaml")
    return engine.run()


_DISTRIBUTED_TYPES = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
)


class Engine:
    """One run of one task. `train` makes it; tests and notebooks may too."""

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        folder: Path,
        accelerator: Accelerator,
        quantization: Quantization | None = None,
    ) -> None:
        self.task = task
        self.config = config
        self.folder = folder
        self.accelerator = accelerator
        self.step = 0
        self.modules = task.modules()
        for module in self.modules.values():
            module.to(accelerator.device).train()
        self.optimizers = task.make_optimizers()
        self.quantized = QuantizedModels(
            quantization, self.modules, task.averaged_modules, self.optimizers
        )
        self._learning_rates = {
            name: [group["lr"] for group in optimizer.param_groups]
            for name, optimizer in self.optimizers.items()
        }
        self.averages = self._make_averages()
        self.context = StepContext(
            accelerator, self.optimizers, config.accumulate, config.max_gradient_norm
        )
        for module in self.modules.values():
            self.context.broadcast(module)
        # From here on processes draw different numbers; choices that must agree use the context's.
        set_seed(config.seed + 1 + accelerator.process_index)

    def _make_averages(self) -> dict[str, ExponentialMovingAverage]:
        decay = self.config.average_decay
        if decay is None:
            return {}
        if self.task.keeps_averages:
            raise ConfigError("training.average_decay: settings keep averages of their own already")
        return {
            name: ExponentialMovingAverage(self.modules[name], decay)
            for name in self.task.averaged_modules
        }

    def run(self) -> bool:
        """Train from the current step to the last; False if a signal stopped it early."""
        log = None
        if self.accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            log = RunLog(self.folder, self.step, self.config.steps)
        try:
            with StopSignal() as stop:
                return self._train_steps(log, stop)
        finally:
            if log is not None:
                log.close()

    def _train_steps(self, log: RunLog | None, stop: StopSignal) -> bool:
        config = self.config
        metrics = MeanMetrics()
        batches = iter(self._loader(self.task.training_data(config.seed), self.step))
        while self.step < config.steps:
            self._train_step(batches, metrics)
            last = self.step == config.steps
            stopped = self._any_process(stop.requested)
            if log is not None:
                log.advance()
            if last or stopped or _due(self.step, config.log_every, config.checkpoint_every):
                self._log_training(log, metrics)
            if _due(self.step, config.evaluate_every) or (last and config.evaluate_every):
                self._evaluate(log)
            if last or stopped or _due(self.step, config.checkpoint_every):
                self.save_checkpoint()
            if stopped and not last:
                if log is not None:
                    log.say(f"stopped at step {self.step}; continue with --resume")
                return False
        self._export()
        return True

    def _train_step(self, batches: Iterator[Any], metrics: MeanMetrics) -> None:
        factor = learning_rate_factor(self.config, self.step)
        for name, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self._learning_rates[name], strict=True):
                group["lr"] = rate * factor
        for part in range(self.config.accumulate):
            batch = send_to_device(next(batches), self.accelerator.device)
            self.context.begin(self.step, part, self.config.seed)
            with self.quantized.in_place():
                metrics.add(self.task.step(batch, self.context))
            metrics.add(self.quantized.learn(self.context))
        for name, norm in self.context.gradient_norms.items():
            metrics.add({f"gradient_norm/{name}": norm})
        metrics.add({"learning_rate_factor": factor})
        for average in self.averages.values():
            average.update()
        self.step += 1

    def _loader(self, data: Dataset[Any], first_step: int) -> DataLoader[Any]:
        positions = BatchPositions(
            size=len(cast(Sized, data)),
            config=self.config,
            first_step=first_step,
            process=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
        )
        return DataLoader(
            data,
            batch_sampler=positions,
            num_workers=self.config.workers,
            worker_init_fn=_start_worker,
            pin_memory=self.accelerator.device.type == "cuda",
            # Its own generator, so that making a loader draws nothing from the training's.
            generator=torch.Generator(),
        )

    def _any_process(self, flag: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.accelerator.device)
        torch.distributed.all_reduce(flags)
        return bool(flags.item() > 0)

    def _log_training(self, log: RunLog | None, metrics: MeanMetrics) -> None:
        means = metrics.take()
        if log is not None and means:
            log.train(self.step, means)

    # -- evaluation and export, with the averaged weights ------------------------------------

    def _evaluate(self, log: RunLog | None) -> None:
        """Figures, sounds and a fresh export; leaves the training state as it was."""
        metrics = MeanMetrics()
        data = self.task.validation_data()
        with self._finished_model():
            if data is not None:
                for batch in self._validation_batches(data):
                    metrics.add(self.task.evaluate(batch))
            sounds = self.task.samples() if log is not None else {}
        figures = self.task.summary(_mean_over_processes(metrics, self.accelerator))
        self.task.validated(figures)
        if log is not None:
            log.valid(self.step, figures, sounds)
        self._export()

    def _validation_batches(self, data: Dataset[Any]) -> Iterator[Any]:
        size, limit = self.config.batch_size, self.config.evaluation_batches
        data_size = len(cast(Sized, data))
        mine = range(self.accelerator.process_index, data_size, self.accelerator.num_processes)
        chunks = [mine[start : start + size] for start in range(0, len(mine), size)]
        loader = DataLoader(data, batch_sampler=chunks[:limit], generator=torch.Generator())  # type: ignore[arg-type]
        for batch in loader:
            yield send_to_device(batch, self.accelerator.device)

    def _export(self) -> None:
        if self.accelerator.is_main_process:
            part = self.folder / "model.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            with self._finished_model():
                self.task.export(part)
            final, old = self.folder / "model", self.folder / "model.old"
            shutil.rmtree(old, ignore_errors=True)
            if final.exists():
                final.rename(old)
            part.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def _finished_model(self) -> Iterator[None]:
        """Averaged and quantised weights, eval mode, no gradients; random states come back."""
        state = checkpoints.random_state()
        with contextlib.ExitStack() as stack, torch.no_grad():
            for average in self.averages.values():
                stack.enter_context(average.applied())
            for module in self.modules.values():
                module.eval()
            stack.enter_context(self.quantized.in_place())
            try:
                yield
            finally:
                for module in self.modules.values():
                    module.train()
                checkpoints.restore_random_state(state)

    # -- checkpoints ------------------------------------------------------------------------

    def save_checkpoint(self) -> None:
        """Write everything needed to continue exactly from the current step."""
        folder = self.folder / "checkpoints"
        main = self.accelerator.is_main_process
        if main:
            checkpoints.open_part(folder, self.step)
        self.accelerator.wait_for_everyone()
        part = folder / (checkpoints.checkpoint_path(folder, self.step).name + ".part")
        checkpoints.write_file(self._process_state(), part / self._process_file)
        if main:
            checkpoints.write_file(self._state(), part / "state.pt")
        self.accelerator.wait_for_everyone()
        if main:
            checkpoints.complete_part(part, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "processes": self.accelerator.num_processes,
            "order": self._order(),
            "modules": _state_dicts(self.modules),
            "optimizers": _state_dicts(self.optimizers),
            "averages": _state_dicts(self.averages),
        }

    def _order(self) -> dict[str, int]:
        """The numbers that decide which items make which step."""
        config = self.config
        return {
            "batch_size": config.batch_size,
            "accumulate": config.accumulate,
            "seed": config.seed,
        }

    def _process_state(self) -> dict[str, Any]:
        """What may differ between processes: random states, running averages of a task."""
        return {"random": checkpoints.random_state(), "task": self.task.extra_state()}

    @property
    def _process_file(self) -> str:
        return f"process-{self.accelerator.process_index}.pt"

    def load_checkpoint(self, path: Path) -> None:
        """Continue from a checkpoint. Raises: CheckpointError, ConfigError if it does not fit."""
        state = checkpoints.read_file(path / "state.pt")
        if state["processes"] != self.accelerator.num_processes:
            raise ConfigError(
                f"{path} was saved by {state['processes']} process(es) and cannot continue exactly "
                f"with {self.accelerator.num_processes}; launch as many as before"
            )
        if state["order"] != self._order():
            raise ConfigError(
                f"{path} was saved with {state['order']} and cannot continue exactly with "
                f"{self._order()}; keep these numbers, or begin a new run"
            )
        _load_state_dicts(self.modules, state["modules"], path)
        _load_state_dicts(self.optimizers, state["optimizers"], path)
        _load_state_dicts(self.averages, state["averages"], path)
        process_state = checkpoints.read_file(path / self._process_file)
        self.task.load_extra_state(process_state["task"])
        checkpoints.restore_random_state(process_state["random"])
        self.step = state["step"]


class BatchPositions:
    """Which items make each batch of this process: consecutive ones, from any step onwards.

    The dataset wraps around at its end.
    """

    def __init__(
        self, size: int, config: TrainingConfig, first_step: int, process: int, processes: int
    ) -> None:
        if size < 1:
            raise ConfigError("the training data is empty")
        self._size = size
        self._items = config.batch_size
        self._batches = range(first_step * config.accumulate, config.steps * config.accumulate)
        self._process = process
        self._processes = processes

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            start = (batch * self._processes + self._process) * self._items
            yield [index % self._size for index in range(start, start + self._items)]


class StopSignal:
    """Turns the first SIGTERM or Ctrl-C into a request to stop; a second one acts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignal:
        # Python allows handlers in the main thread only; elsewhere a run cannot be stopped early.
        in_main_thread = threading.current_thread() is threading.main_thread()
        for number in (signal.SIGTERM, signal.SIGINT) if in_main_thread else ():
            self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """Factor on the optimisers' learning rates at a step: warm-up, drops, half a cosine."""
    factor = 1.0
    if step < config.warmup_steps:
        factor = (step + 1) / config.warmup_steps
    if config.drop_every:
        factor *= config.drop_factor ** (step // config.drop_every)
    if step > config.decay_from_step:
        progress = (step - config.decay_from_step) / (config.steps - config.decay_from_step)
        low = config.final_learning_rate
        factor *= low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2
    return factor


def _due(step: int, *periods: int) -> bool:
    return any(period and step % period == 0 for period in periods)


def _state_dicts(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items()}


def _load_state_dicts(parts: Mapping[str, Any], states: dict[str, Any], path: Path) -> None:
    if parts.keys() != states.keys():
        raise CheckpointError(
            f"{path} holds {sorted(states)} where this recipe needs {sorted(parts)}; "
            "resume with the recipe that began the run"
        )
    for name, part in parts.items():
        try:
            part.load_state_dict(states[name])
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path} does not fit this recipe ({name}): {error}") from error


def _start_worker(index: int) -> None:
    """A signal to the whole process group must not kill the workers before the clean stop.

    They end when the training process has read enough, or is gone.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _mean_over_processes(metrics: MeanMetrics, accelerator: Accelerator) -> dict[str, float]:
    if accelerator.num_processes == 1:
        return metrics.take()
    total = MeanMetrics()
    for means in gather_object([metrics.take()]):
        total.add(means)
    return total.take()
