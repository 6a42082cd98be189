"""Mimi learns: meaning from its teacher, sound from its losses; the recipes are what they say."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import soundfile
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import sonorant
from sonorant.cli.train import SHORT_NAMES
from sonorant.codec.adversarial_training import AdversarySettings, LossWeights
from sonorant.codec.decoder_training import DecoderOnly
from sonorant.codec.mimi import MIMI, Mimi
from sonorant.codec.mimi_training import MimiSettings, MimiTask, SemanticSettings
from sonorant.codec.semantic_teachers import SpectralSettings, WavLMSettings
from sonorant.data.dataset import SegmentConfig
from sonorant.errors import ConfigError
from sonorant.losses.msstft_discriminator import MSSTFTDiscriminatorConfig
from sonorant.training.engine import train
from sonorant.training.recipe import Recipe, TrainingConfig, load_recipe
from sonorant.training.task import StepContext
from tests.codec.test_mimi import HOP, RATE, tiny_mimi
from tests.codec.test_mimi_start import CONFIG as VOCODER_CODEC
from tests.codec.test_mimi_start import SETTINGS as VOCODER
from tests.training.runs import assert_equal_states, final_state, log_lines

RECIPES = Path(__file__).parents[2] / "recipes"
CODEC = tiny_mimi().config


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four seconds of tones that change twice a second, the same for each split."""
    time = torch.arange(4 * RATE) / RATE
    pitches = torch.tensor([50.0, 90.0, 140.0, 70.0]).repeat(2).repeat_interleave(RATE // 2)
    sound = 0.4 * torch.sin(6.2832 * pitches * time)
    lines = []
    for split in ("train", "valid"):
        soundfile.write(tmp_path / f"{split}.wav", sound.numpy(), RATE)
        item = {
            "path": f"{split}.wav",
            "duration_seconds": 4.0,
            "sample_rate": RATE,
            "channels": 1,
            "domain": "speech",
            "split": split,
            "source": "synthesised",
            "licence": "CC0-1.0",
            "group": split,
        }
        lines.append(msgspec.json.encode(item))
    (tmp_path / "manifest.jsonl").write_bytes(b"\n".join(lines))
    return tmp_path / "manifest.jsonl"


def settings(manifest: Path, **changes: Any) -> MimiSettings:
    network = MSSTFTDiscriminatorConfig(filters=2, n_ffts=(64, 32))
    given: dict[str, Any] = {
        "manifest": str(manifest),
        "codec": CODEC,
        "segments": SegmentConfig(sample_rate=RATE, segment_seconds=32 * HOP / RATE),
        "valid_items": 2,
        "sounds": 1,
        "evaluated_codebooks": (1, 4),
        "semantic": SemanticSettings(SpectralSettings(mels=8, cepstra=4)),
        "adversary": AdversarySettings(network=network, per_bandwidth=False, update_probability=1),
        "learning_rate": 3e-3,
    }
    return MimiSettings(**(given | changes))


def run(task: MimiTask, steps: int = 1) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    context = StepContext(Accelerator(cpu=True), task.make_optimizers(), 1, None)
    data = task.training_data(0)
    metrics = []
    for step in range(steps):
        context.begin(step, 0, seed=0)
        batch = torch.stack([data[2 * step], data[2 * step + 1]])
        metrics.append({name: float(v) for name, v in task.step(batch, context).items()})
    return metrics


class FixedTeacher(nn.Module):
    """Any module with the interface: the mean level of each half frame."""

    dimensions = 2

    def forward(self, sound: Tensor) -> Tensor:
        return sound.unfold(-1, HOP, HOP).unflatten(-1, (2, -1)).square().mean(-1)[:, 0]


@pytest.mark.parametrize(("weight", "learns"), [(1.0, True), (0.0, False)])
def test_the_semantic_codebook_learns_what_the_teacher_says(
    weight: float, learns: bool, manifest: Path
) -> None:
    torch.manual_seed(0)
    time_only = LossWeights(time=1.0, mel=0.0, adversarial=0.0, features=0.0)
    chosen = settings(
        manifest,
        weights=time_only,
        adversary=AdversarySettings(per_bandwidth=False, from_step=1000),
        bypass=0.0,
        learning_rate=1e-2,
        semantic=SemanticSettings(SpectralSettings(mels=8, cepstra=4), weight),
    )
    distances = [metrics["semantic"] for metrics in run(MimiTask(chosen), steps=40)]
    before, after = sum(distances[:5]) / 5, sum(distances[-10:]) / 10
    assert (after < before - 0.07) == learns


def test_without_a_teacher_there_is_no_student(manifest: Path) -> None:
    task = MimiTask(settings(manifest, semantic=SemanticSettings(teacher=None)))
    assert "student" not in task.modules()
    assert "semantic" not in run(task)[0]


def test_any_module_can_teach(manifest: Path) -> None:
    task = MimiTask(settings(manifest), teacher=FixedTeacher())
    assert task.student is not None
    before = task.student.weight.detach().clone()
    assert 0 <= run(task)[0]["semantic"] <= 2
    assert not torch.equal(task.student.weight, before)


def test_adversarial_only_training_has_no_other_losses(manifest: Path) -> None:
    weights = LossWeights(time=0.0, mel=0.0, adversarial=4.0, features=4.0)
    metrics = run(MimiTask(settings(manifest, weights=weights)))[0]
    assert set(metrics) == {"semantic", "commitment", "discriminators", "adversarial", "features"}
    late = AdversarySettings(per_bandwidth=False, from_step=10)
    with pytest.raises(ConfigError, match="begin with the adversary"):
        MimiTask(settings(manifest, weights=weights, adversary=late))


def test_transformers_decay_and_nothing_else(manifest: Path) -> None:
    task = MimiTask(settings(manifest))
    decaying, others = task.make_optimizers()["codec"].param_groups
    assert decaying["weight_decay"] == 0.05
    assert others["weight_decay"] == 0
    attention = task.codec.decoder_transformer.layers[1].attention.in_proj.weight  # type: ignore[union-attr]
    assert any(parameter is attention for parameter in decaying["params"])
    assert task.student is not None
    assert any(parameter is task.student.weight for parameter in others["params"])
    counted = len(decaying["params"]) + len(others["params"])
    assert counted == len([*task.codec.parameters(), *task.student.parameters()])


def test_dropout_draws_every_number_of_acoustic_codebooks(manifest: Path) -> None:
    task = MimiTask(settings(manifest))
    context = StepContext(Accelerator(cpu=True), task.make_optimizers(), 1, None)
    drawn = set()
    for step in range(40):
        context.begin(step, 0, seed=0)
        drawn.add(task._draw_codebooks(context))
    assert drawn == {2, 3, 4}
    whole = MimiTask(settings(manifest, codebook_dropout=False))
    assert whole._draw_codebooks(context) == 4


def test_codebooks_start_from_many_segments(manifest: Path) -> None:
    task = MimiTask(settings(manifest, codebook_segments=6))
    run(task)
    for part in (task.codec.quantizer.semantic, task.codec.quantizer.acoustic):
        for codebook in part.levels.layers:
            assert float(codebook.initialized) == 1  # type: ignore[arg-type]


def test_a_run_resumes_bit_for_bit_and_ends_in_a_model(manifest: Path, tmp_path: Path) -> None:
    def recipe(steps: int) -> Recipe:
        training = TrainingConfig(
            steps=steps, batch_size=2, device="cpu", average_decay=0.9, evaluate_every=4
        )
        return Recipe(
            task="mimi", training=training, settings=msgspec.to_builtins(settings(manifest))
        )

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe(4), whole, short_names=SHORT_NAMES)
    train(recipe(2), parts, short_names=SHORT_NAMES)
    train(recipe(4), parts, resume=True, short_names=SHORT_NAMES)
    assert_equal_states(final_state(whole), final_state(parts))
    names = {name for line in log_lines(whole) for name in line}
    assert any("semantic" in name for name in names)
    assert any(name.endswith("perplexity_3") for name in names)
    model = sonorant.load(whole / "model")
    assert isinstance(model, Mimi)
    assert model.encode_batch(torch.zeros(1, 1, 3 * HOP)).tokens.shape == (1, 4, 3)


def test_training_on_needs_the_same_config(manifest: Path, tmp_path: Path) -> None:
    tiny_mimi().save_pretrained(tmp_path / "model")
    assert MimiTask(settings(manifest, model=str(tmp_path / "model"))).codec.training
    other = tiny_mimi(context=9).config
    with pytest.raises(ConfigError, match="another config"):
        MimiTask(settings(manifest, codec=other, model=str(tmp_path / "model")))


def test_a_decoder_alone_learns_without_its_biases_and_first_layers(
    manifest: Path, tmp_path: Path
) -> None:
    tiny_mimi().save_pretrained(tmp_path / "model")
    chosen = settings(
        manifest,
        model=str(tmp_path / "model"),
        decoder_only=DecoderOnly(first_layers=3, first_layers_rate=0),
    )
    task = MimiTask(chosen)
    assert task.student is None
    before = {name: value.clone() for name, value in task.codec.state_dict().items()}
    run(task, steps=2)
    changed = {
        name
        for name, value in task.codec.state_dict().items()
        if not torch.equal(value, before[name])
    }
    kept = ("decoder.layers.0.", "decoder.layers.1.", "decoder.layers.2.")
    assert changed == {
        name
        for name in before
        if name.startswith(("decoder.", "decoder_transformer."))
        and not name.startswith(kept)
        and "bias" not in name
    }


def test_a_vocoder_start_sets_the_quantizer_from_the_data(manifest: Path) -> None:
    chosen = settings(
        manifest,
        codec=VOCODER_CODEC,
        vocoder=VOCODER,
        codebook_segments=4,
        decoder_only=DecoderOnly(first_layers=3, first_layers_rate=0),
        segments=SegmentConfig(sample_rate=24000, segment_seconds=0.64),
    )
    task = MimiTask(chosen)
    run(task)
    semantic = task.codec.quantizer.semantic
    assert int((semantic.input_proj.weight.abs().sum(dim=1) > 0).sum()) == 4
    assert float(semantic.levels.layers[0].initialized) == 1  # type: ignore[arg-type]


def test_starts_that_lack_what_they_need_are_refused(manifest: Path) -> None:
    with pytest.raises(ConfigError, match="vocoder start finds"):
        settings(manifest, codec=VOCODER_CODEC, vocoder=VOCODER)
    with pytest.raises(ConfigError, match="vocoder start finds"):
        settings(
            manifest, vocoder=VOCODER, codebook_segments=4, semantic=SemanticSettings(teacher=None)
        )
    with pytest.raises(ConfigError, match="codebooks do not learn"):
        settings(manifest, decoder_only=DecoderOnly())


def test_settings_that_contradict_themselves_are_refused(manifest: Path) -> None:
    with pytest.raises(ConfigError, match="one set of discriminators"):
        settings(manifest, adversary=AdversarySettings())
    with pytest.raises(ConfigError, match="evaluated_codebooks"):
        settings(manifest, evaluated_codebooks=(9,))


def test_the_papers_recipe_is_the_published_model_with_weight_norm() -> None:
    chosen = msgspec.convert(load_recipe(RECIPES / "mimi.yaml").settings, MimiSettings)
    seanet = msgspec.structs.replace(MIMI.seanet, norm="weight_norm")
    assert chosen.codec == msgspec.structs.replace(MIMI, seanet=seanet)
    assert chosen.semantic.teacher == WavLMSettings()


def test_the_small_recipe_fits_its_ten_megabytes() -> None:
    chosen = msgspec.convert(load_recipe(RECIPES / "mimi-small.yaml").settings, MimiSettings)
    assert chosen.segments.segment_samples % 1920 == 0
    with torch.device("meta"):
        model = Mimi(chosen.codec)
    assert model.frame_rate == 12.5
    assert model.bandwidth_of(8) == pytest.approx(1.0)
    assert 2 * sum(tensor.numel() for tensor in model.saved_tensors().values()) < 9.9e6
