"""Any task trains quantised weights by its recipe alone, and exports what it evaluated."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import sonorant
from sonorant.codec.encodec import Encodec
from sonorant.errors import ConfigError
from sonorant.training.engine import train
from sonorant.training.recipe import Recipe, convert_section, load_recipe
from sonorant.training.task import Metrics, StepContext, Task
from tests.codec.test_encodec import tiny
from tests.training.runs import assert_equal_states, final_state, log_lines
from tests.training.toy import toy_recipe

SMALL = {"min_size_mb": 0.0001}


class TinySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    decoder_only: bool = False


class TinyTask(Task):
    """Trains an autoencoder with weight norm and an LSTM, with two backward passes a step."""

    Settings = TinySettings
    averaged_modules = ("codec",)

    def __init__(self, settings: TinySettings) -> None:
        super().__init__(settings)
        self.codec: Encodec = tiny().train()
        self.rival = nn.Linear(1, 1)

    def modules(self) -> dict[str, nn.Module]:
        return {"codec": self.codec, "rival": self.rival}

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        part = self.codec.decoder if self.settings.decoder_only else self.codec
        return {"codec": torch.optim.Adam(part.parameters(), 1e-3)}

    def training_data(self, seed: int) -> Dataset[Any]:
        return TensorDataset(torch.randn(8, 1, 64, generator=torch.Generator().manual_seed(seed)))

    def validation_data(self) -> Dataset[Any]:
        return self.training_data(1)

    def coded(self, batch: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.settings.decoder_only):
            latent = self.codec.to_latent(batch)
        return self.codec.from_latent(latent)

    def step(self, batch: list[Tensor], context: StepContext) -> Metrics:
        error = (self.coded(batch[0]) - batch[0]).square()
        error[:1].mean().backward(retain_graph=True)
        loss = error.mean()
        loss.backward()
        context.apply("codec")
        return {"loss": loss.detach()}

    def evaluate(self, batch: list[Tensor]) -> Metrics:
        return {"error": (self.coded(batch[0]) - batch[0]).square().mean()}

    def export(self, folder: Path) -> None:
        self.codec.save_pretrained(folder)


def run(
    folder: Path,
    quantization: Any,
    settings: dict[str, Any] | None = None,
    resume: bool = False,
    **training: Any,
) -> bool:
    recipe = toy_recipe({"average_decay": None, "evaluate_every": 3, **training}, settings)
    recipe |= {"task": "tests.training.test_quantization:TinyTask", "quantization": quantization}
    return train(convert_section(recipe, Recipe, "tiny"), folder, resume)


DIFFQ = {"method": "diffq", "choice": SMALL, "penalty": 1000.0, "learning_rate": 0.1}
METHODS = {
    "diffq": DIFFQ,
    "lsq": {"method": "lsq", "choice": SMALL, "bits": 4},
    "uniform": {"method": "uniform", "choice": SMALL, "bits": 4},
}


@pytest.mark.parametrize(
    ("method", "average_decay"), [("diffq", 0.5), ("lsq", None), ("uniform", None)]
)
def test_the_exported_model_is_packed_and_the_one_that_was_evaluated(
    method: str, average_decay: float | None, tmp_path: Path
) -> None:
    run(tmp_path, METHODS[method], average_decay=average_decay)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert any(name.endswith("original1.levels") for name in stored)
    assert not any(name.endswith(("_diffq", "_lsq")) for name in stored)
    codec = sonorant.load(tmp_path / "model")
    batch = TinyTask(TinySettings()).training_data(1).tensors[0]
    with torch.no_grad():
        error = (codec.from_latent(codec.to_latent(batch)) - batch).square().mean()
    last = [line for line in log_lines(tmp_path) if line["kind"] == "valid"][-1]
    assert last["error"] == pytest.approx(float(error), rel=1e-4)


def test_the_penalty_takes_bits_away(tmp_path: Path) -> None:
    run(tmp_path, DIFFQ, steps=12, log_every=1, evaluate_every=0)
    sizes = [line["size_mb/codec"] for line in log_lines(tmp_path)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.9 * sizes[0]


@pytest.mark.parametrize("method", ["diffq", "lsq"])
def test_a_resumed_run_equals_an_uninterrupted_one(method: str, tmp_path: Path) -> None:
    run(tmp_path / "whole", METHODS[method], average_decay=0.9)
    run(tmp_path / "parts", METHODS[method], average_decay=0.9, steps=3)
    run(tmp_path / "parts", METHODS[method], average_decay=0.9, resume=True)
    assert_equal_states(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_what_does_not_learn_keeps_its_bits(tmp_path: Path) -> None:
    run(tmp_path, DIFFQ, {"decoder_only": True}, evaluate_every=0)
    state = final_state(tmp_path)["state"]["modules"]["codec"]
    bits = {name: part for name, part in state.items() if name.endswith("_diffq")}
    for name, logits in bits.items():
        start = torch.full_like(logits, float(torch.logit(torch.tensor(6 / 13))))
        assert torch.allclose(logits, start) == name.startswith("encoder"), name


def test_a_method_by_name_has_its_defaults(tmp_path: Path) -> None:
    text = "{task: codec, training: {steps: 1, batch_size: 1}}"
    (tmp_path / "a.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "a.yaml", ["quantization=diffq"])
    assert recipe.quantization == "diffq"
    numbers = ["quantization.method=diffq", "quantization.config.group_size=4"]
    recipe = load_recipe(tmp_path / "a.yaml", numbers)
    assert recipe.quantization.config.group_size == 4
    assert recipe.quantization.penalty == 1.0


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ("eight bits", "quantization"),
        ({"method": "lsq", "bits": 1}, "2 to 15 bits"),
        ({"method": "diffq", "bits": 3}, "unknown field `bits`"),
        ({"method": "diffq", "penalty": -1.0}, "penalty"),
        ({"method": "diffq", "modules": ["rival"]}, "no model 'rival'"),
        ({"method": "diffq", "modules": ["absent"]}, "no model 'absent'"),
        ("diffq", "no parameter above"),
    ],
)
def test_what_cannot_be_is_refused(quantization: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(tmp_path, quantization)
