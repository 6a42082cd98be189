from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import soundfile
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import sonorant
from sonorant.codec.adversarial_training import AdversarySettings, LossWeights
from sonorant.codec.decoder_training import DecoderOnly
from sonorant.codec.encodec import Encodec, EncodecConfig
from sonorant.codec.training import CodecSettings, CodecTask, StartSettings
from sonorant.data.dataset import SegmentConfig
from sonorant.errors import ConfigError
from sonorant.losses.msstft_discriminator import MSSTFTDiscriminatorConfig
from sonorant.nn.quantizer import QuantizerConfig
from sonorant.nn.seanet import SEANetConfig
from sonorant.training.engine import train
from sonorant.training.recipe import Recipe, TrainingConfig, load_recipe
from sonorant.training.task import StepContext
from tests.training.runs import assert_equal_states, final_state, log_lines

RECIPES = Path(__file__).parents[2] / "recipes"
SAMPLE_RATE = 8000
# A hop of 40 samples gives 200 frames/s; 16 codewords are 4 bits, so a codebook costs 0.8 kb/s.
TINY_CODEC = EncodecConfig(
    sample_rate=SAMPLE_RATE,
    target_bandwidths_kbps=(0.8, 3.2),
    seanet=SEANetConfig(base_filters=4, dimension=8, ratios=(8, 5), lstm_layers=1),
    quantizer=QuantizerConfig(dimension=8, codebooks=4, codebook_size=16, kmeans_iterations=5),
)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two seconds of a gliding chord, the same for each split."""
    time = torch.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    partials = [torch.sin(6.2832 * 220 * k * (time + 0.05 * time**2)) / k for k in (1, 2, 3)]
    sound = 0.25 * torch.stack(partials).sum(0)
    lines = []
    for split in ("train", "valid"):
        path = tmp_path / f"{split}.wav"
        soundfile.write(path, sound.numpy(), SAMPLE_RATE)
        item = {
            "path": path.name,
            "duration_seconds": 2.0,
            "sample_rate": SAMPLE_RATE,
            "channels": 1,
            "domain": "music",
            "split": split,
            "source": "synthesised",
            "licence": "CC0-1.0",
            "group": split,
        }
        lines.append(msgspec.json.encode(item))
    file = tmp_path / "manifest.jsonl"
    file.write_bytes(b"\n".join(lines))
    return file


def settings(manifest: Path, **adversary: Any) -> CodecSettings:
    network = MSSTFTDiscriminatorConfig(filters=2, n_ffts=(128, 64))
    return CodecSettings(
        manifest=str(manifest),
        codec=TINY_CODEC,
        segments=SegmentConfig(sample_rate=SAMPLE_RATE, segment_seconds=0.3),
        valid_items=4,
        sounds=1,
        adversary=AdversarySettings(network=network, **adversary),
        learning_rate=3e-3,
    )


def recipe(codec_settings: CodecSettings, **training: Any) -> Recipe:
    config = TrainingConfig(
        **{"steps": 6, "batch_size": 2, "device": "cpu", "average_decay": 0.9, **training}
    )
    return Recipe(
        task="sonorant.codec.training:CodecTask",
        training=config,
        settings=msgspec.to_builtins(codec_settings),
    )


def one_step(task: CodecTask, step: int = 0) -> dict[str, Any]:
    optimizers = task.make_optimizers()
    context = StepContext(Accelerator(cpu=True), optimizers, 1, None)
    context.begin(step, 0, seed=0)
    data = task.training_data(0)
    return dict(task.step(torch.stack([data[0], data[1]]), context))


def weights(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def changed(module: nn.Module, before: list[Tensor]) -> bool:
    return not all(
        torch.equal(old, new) for old, new in zip(before, module.parameters(), strict=True)
    )


def test_resumed_codec_training_equals_uninterrupted_bit_for_bit(
    manifest: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(recipe(settings(manifest)), whole)
    train(recipe(settings(manifest), steps=3), parts)
    train(recipe(settings(manifest)), parts, resume=True)
    state = final_state(whole)
    assert {"codec", "discriminators"} <= state["state"]["modules"].keys()
    assert state["process-0"]["task"]["balancer"]["averages"]
    assert_equal_states(state, final_state(parts))


def test_the_adversary_waits_for_its_step(manifest: Path) -> None:
    task = CodecTask(settings(manifest, from_step=5, update_probability=1.0))
    before = weights(task.discriminators)
    assert "adversarial" not in one_step(task, step=4)
    assert not changed(task.discriminators, before)
    assert {"adversarial", "features", "discriminators"} <= one_step(task, step=5).keys()
    assert changed(task.discriminators, before)


def test_only_the_discriminator_of_the_drawn_bandwidth_learns(manifest: Path) -> None:
    task = CodecTask(settings(manifest, per_bandwidth=True, update_probability=1.0))
    before = [weights(discriminator) for discriminator in task.discriminators]
    one_step(task)
    learned = [changed(*pair) for pair in zip(task.discriminators, before, strict=True)]
    assert sorted(learned) == [False, True]


def test_the_codecs_step_leaves_the_discriminators_alone(manifest: Path) -> None:
    task = CodecTask(settings(manifest, per_bandwidth=False, update_probability=0.0))
    before, codec_before = weights(task.discriminators), weights(task.codec)
    one_step(task)
    assert not changed(task.discriminators, before)
    assert changed(task.codec, codec_before)
    assert all(parameter.grad is None for parameter in task.discriminators.parameters())
    assert all(parameter.requires_grad for parameter in task.discriminators.parameters())


def test_every_bandwidth_is_trained_and_discriminators_in_their_share_of_steps(
    manifest: Path,
) -> None:
    task = CodecTask(settings(manifest, per_bandwidth=True, update_probability=0.5))
    optimizers = task.make_optimizers()
    context = StepContext(Accelerator(cpu=True), optimizers, 1, None)
    batch = task.training_data(0)[0][None, :, :1000]
    updates = 0
    for step in range(40):
        context.begin(step, 0, seed=0)
        updates += "discriminators" in task.step(batch, context)
    assert 12 <= updates <= 28
    assert all(bool(layer.initialized) for layer in task.codec.quantizer.layers)
    assert all(p in optimizers["discriminators"].state for p in task.discriminators.parameters())


class KeepGradients(StepContext):
    """Leaves gradients where they are, to be looked at."""

    def apply(self, optimizer_name: str) -> None:
        pass


def test_commitment_adds_its_own_gradient_to_the_encoder_only(manifest: Path) -> None:
    gradients = []
    for weight in (0.0, 1.0, 2.0):
        torch.manual_seed(0)
        plain = settings(manifest, from_step=99)
        task = CodecTask(msgspec.structs.replace(plain, commitment_weight=weight))
        context = KeepGradients(Accelerator(cpu=True), {}, 1, None)
        context.begin(0, 0, seed=0)
        task.step(task.training_data(0)[0][None], context)
        gradients.append({name: p.grad for name, p in task.codec.named_parameters()})
    none, once, twice = gradients
    for name in none:
        if name.startswith("decoder."):
            assert torch.equal(none[name], once[name])
        else:
            assert not torch.equal(none[name], once[name])
            # Outside the balancer: twice the weight is twice the pull.
            pull, double = once[name] - none[name], twice[name] - none[name]
            torch.testing.assert_close(double, 2 * pull, rtol=1e-2, atol=1e-5)


def test_discriminators_run_in_bf16_and_gradients_stay_finite(
    manifest: Path, tmp_path: Path
) -> None:
    task = CodecTask(settings(manifest, update_probability=1.0))
    context = KeepGradients(Accelerator(cpu=True), {}, 1, None)
    context.autocast = lambda: torch.autocast("cpu", torch.bfloat16)  # type: ignore[method-assign]
    context.begin(0, 0, seed=0)
    task.step(task.training_data(0)[0][None], context)
    gradients = [p.grad for p in task.codec.parameters()]
    assert all(g.dtype == torch.float32 and torch.isfinite(g).all() for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)


def test_codebooks_can_start_from_more_than_the_first_batch(manifest: Path) -> None:
    start = StartSettings(codebook_segments=3)
    task = CodecTask(msgspec.structs.replace(settings(manifest), start=start))
    one_step(task)
    usages = [layer.usage for layer in task.codec.quantizer.layers]
    # Every level has started, whichever bandwidth was drawn, at the usual usage per step.
    frames_per_step = 2 * task.codec.frames_of(round(0.3 * SAMPLE_RATE))
    for usage in usages:
        assert usage.sum().item() == pytest.approx(frames_per_step, rel=0.2)


def decoder_only_settings(manifest: Path) -> CodecSettings:
    return msgspec.structs.replace(
        settings(manifest),
        decoder_only=DecoderOnly(first_layers_rate=0.1),
        start=StartSettings(codebook_segments=3),
    )


def test_only_the_decoders_weights_learn_where_asked(manifest: Path) -> None:
    task = CodecTask(decoder_only_settings(manifest))
    before = {name: value.clone() for name, value in task.codec.state_dict().items()}
    one_step(task)
    after = task.codec.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    weights = {n for n, _ in task.codec.decoder.named_parameters() if "bias" not in n}
    assert {name.removeprefix("decoder.") for name in moved if "decoder." in name} == weights
    # The codebooks' first start is all that happens elsewhere.
    assert all("decoder." in name or "quantizer." in name for name in moved)
    one_step(task)
    again = task.codec.state_dict()
    assert all(torch.equal(after[name], again[name]) for name in again if "quantizer." in name)


def test_the_first_layers_learn_more_slowly(manifest: Path) -> None:
    task = CodecTask(decoder_only_settings(manifest))
    before = {name: value.detach().clone() for name, value in task.codec.named_parameters()}
    one_step(task)
    # Adam's first step is as large as the learning rate for every weight.
    steps = {
        n: float((p.detach() - before[n]).abs().max()) for n, p in task.codec.named_parameters()
    }
    lstm = max(size for name, size in steps.items() if "decoder.layers.1." in name)
    upsampling = max(size for name, size in steps.items() if "decoder.layers.3." in name)
    assert lstm == pytest.approx(3e-4, rel=0.01)
    assert upsampling == pytest.approx(3e-3, rel=0.01)


def test_codebooks_that_neither_start_nor_learn_are_refused(manifest: Path) -> None:
    with pytest.raises(ConfigError, match="codebook_segments"):
        msgspec.structs.replace(settings(manifest), decoder_only=DecoderOnly())


@pytest.mark.slow
def test_a_codec_learns_to_give_sound_back(manifest: Path, tmp_path: Path) -> None:
    # A heavy time loss makes the waveform itself come back within seconds of training.
    chosen = msgspec.structs.replace(
        settings(manifest, from_step=10**6), weights=LossWeights(time=1.0)
    )
    train(recipe(chosen, steps=300, batch_size=4, evaluate_every=100), tmp_path / "run")
    first, _, last = [line for line in log_lines(tmp_path / "run") if line["kind"] == "valid"]
    assert last["mel_3.2kbps"] < 0.7 * first["mel_3.2kbps"]
    assert last["si_snr_3.2kbps"] > max(first["si_snr_3.2kbps"] + 10, 0)
    # More codebooks must help, or the quantizer has learned nothing.
    assert last["si_snr_3.2kbps"] > last["si_snr_0.8kbps"]
    assert last["perplexity_0"] > 4


def test_exported_model_is_the_averaged_one_and_loads(manifest: Path, tmp_path: Path) -> None:
    train(recipe(settings(manifest), evaluate_every=3), tmp_path / "run")
    model = sonorant.load(tmp_path / "run" / "model")
    assert isinstance(model, Encodec)
    assert model.config == TINY_CODEC
    averaged = CodecTask(settings(manifest))
    state = final_state(tmp_path / "run")
    averaged.codec.load_state_dict(state["state"]["modules"]["codec"])
    x = CodecTask(settings(manifest)).validation_data()[0][None]
    trained = averaged.codec.eval().encoder(x)
    assert not torch.allclose(model.encoder(x), trained)
    names = {path.name for path in (tmp_path / "run" / "samples").rglob("*.wav")}
    assert names == {"0_original.wav", "0_0.8kbps.wav", "0_3.2kbps.wav"}


@pytest.mark.parametrize("name", ["encodec_24khz.yaml", "codec-24khz-small.yaml"])
def test_shipped_recipes_fit_the_task(name: str) -> None:
    loaded = load_recipe(RECIPES / name)
    codec_settings = msgspec.convert(loaded.settings, CodecSettings)
    codec = Encodec(codec_settings.codec)
    bandwidths = codec_settings.codec.target_bandwidths_kbps
    books = [codec.codebooks_for(bandwidth) for bandwidth in bandwidths]
    assert books == sorted(set(books))
    assert books[-1] == codec_settings.codec.quantizer.codebooks
