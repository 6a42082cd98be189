"""Training an entropy model: cached tokens, what it learns, and the model a codec then finds."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from sonorant.audio import read
from sonorant.cli.train import SHORT_NAMES
from sonorant.codec.entropy_compact import CompactEntropyConfig
from sonorant.codec.entropy_training import EntropySettings, EntropyTask
from sonorant.codec.files import compress_file, decompress_file, load_codec, load_entropy_model
from sonorant.codec.token_cache import NOTHING, TokenDataset, cached_tokens
from sonorant.data.manifest import Item, read_manifest
from sonorant.errors import ConfigError
from sonorant.training.engine import train
from sonorant.training.recipe import Recipe, TrainingConfig, build_task, load_recipe
from tests.codec.test_encodec import RATE, tiny
from tests.codec.test_entropy_exact import TRANSFORMER
from tests.codec.test_files import sound_file
from tests.codec.test_mimi import tiny_mimi
from tests.training.runs import assert_equal_states, final_state, log_lines

RECIPES = Path(__file__).parents[2] / "recipes"
MODEL = CompactEntropyConfig(4, 16, rank=4, head_width=16, transformer=TRANSFORMER)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EntropySettings:
    """A codec, and four short files whose tokens repeat themselves."""
    tiny().save_pretrained(tmp_path / "codec")
    lines = []
    for index, split in enumerate(("train", "train", "train", "valid")):
        path = sound_file(tmp_path / f"{index}.wav", 60 + 400 * index)
        item = Item(
            path=path.name,
            duration_seconds=(60 + 400 * index) / RATE,
            sample_rate=RATE,
            channels=1,
            domain="music",
            split=split,  # type: ignore[arg-type]
            source="synthesised",
            licence="CC0-1.0",
            group=f"{split}{index}",
        )
        lines.append(msgspec.json.encode(item))
    (tmp_path / "manifest.jsonl").write_bytes(b"\n".join(lines))
    monkeypatch.chdir(tmp_path)
    return EntropySettings(
        manifest="manifest.jsonl",
        codec=str(tmp_path / "codec"),
        tokens="tokens",
        model=MODEL,
        segment_seconds=0.2,
        valid_items=8,
        learning_rate=1e-2,
    )


def recipe(settings: EntropySettings, **training: object) -> Recipe:
    config = TrainingConfig(
        **{"steps": 60, "batch_size": 8, "device": "cpu", "evaluate_every": 60, **training}  # type: ignore[arg-type]
    )
    return Recipe(task="entropy", training=config, settings=msgspec.to_builtins(settings))


def test_a_run_saves_bits_and_compress_finds_its_model(
    settings: EntropySettings, tmp_path: Path
) -> None:
    """Even tokens of noise are not alike: learning how often each occurs saves bits."""
    assert train(recipe(settings), tmp_path / "run", short_names=SHORT_NAMES)
    figures = [line for line in log_lines(tmp_path / "run") if "valid" in str(line)][-1]
    saved = {name: value for name, value in flat(figures).items() if "saved" in name}
    assert len(saved) == 3
    assert all(value > 0.02 for value in saved.values()), saved
    (tmp_path / "run" / "model").rename(tmp_path / "codec" / "entropy")
    codec = load_codec(tmp_path / "codec")
    entropy = load_entropy_model(codec, tmp_path / "codec")
    source = sound_file(tmp_path / "in.wav", 4000)
    compress_file(source, tmp_path / "packed.snr", codec)
    compress_file(source, tmp_path / "coded.snr", codec, entropy=entropy)
    sizes = [(tmp_path / f"{kind}.snr").stat().st_size for kind in ("packed", "coded")]
    assert sizes[1] < sizes[0]
    decompress_file(tmp_path / "coded.snr", tmp_path / "out.wav", codec, entropy=entropy)
    assert (tmp_path / "out.wav").exists()


def test_a_codec_that_was_trained_for_every_bandwidth_gets_a_model_too(
    settings: EntropySettings, tmp_path: Path
) -> None:
    tiny_mimi().save_pretrained(tmp_path / "codec")
    train(recipe(settings, steps=4), tmp_path / "run", short_names=SHORT_NAMES)
    saved = [name for name in flat(log_lines(tmp_path / "run")[-1]) if "saved" in name]
    assert len(saved) == 4  # as many as codebooks
    (tmp_path / "run" / "model").rename(tmp_path / "codec" / "entropy")
    codec = load_codec(tmp_path / "codec")
    entropy = load_entropy_model(codec, tmp_path / "codec")
    source = sound_file(tmp_path / "in.wav", 2000)
    for name, model in (("packed", None), ("coded", entropy)):
        compress_file(source, tmp_path / f"{name}.snr", codec, entropy=model)
        decompress_file(tmp_path / f"{name}.snr", tmp_path / f"{name}.wav", codec, entropy=model)
    packed, coded = (read(tmp_path / f"{name}.wav").samples for name in ("packed", "coded"))
    assert torch.equal(packed, coded)


def test_training_goes_on_from_a_model(settings: EntropySettings, tmp_path: Path) -> None:
    first = EntropyTask(settings).model
    first.save_pretrained(tmp_path / "first")
    going_on = msgspec.structs.replace(settings, start=str(tmp_path / "first"))
    for name, tensor in EntropyTask(going_on).model.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name]), name
    other = msgspec.structs.replace(going_on, model=msgspec.structs.replace(MODEL, rank=8))
    with pytest.raises(ConfigError, match="another config"):
        EntropyTask(other)


@pytest.mark.parametrize("method", ["diffq", "lsq", "uniform"])
def test_a_quantised_entropy_model_is_found_and_decodes_what_it_coded(
    settings: EntropySettings, tmp_path: Path, method: str
) -> None:
    made = recipe(settings, steps=4, evaluate_every=0)
    quantization = {"method": method, "choice": {"min_size_mb": 0.0001}}
    made = msgspec.convert(msgspec.to_builtins(made) | {"quantization": quantization}, Recipe)
    train(made, tmp_path / "run", short_names=SHORT_NAMES)
    plain = (tmp_path / "plain").absolute()
    EntropyTask(settings).model.save_pretrained(plain, torch.float16)
    sizes = [(f / "model.safetensors").stat().st_size for f in (tmp_path / "run" / "model", plain)]
    assert sizes[0] < sizes[1]
    (tmp_path / "run" / "model").rename(tmp_path / "codec" / "entropy")
    codec = load_codec(tmp_path / "codec")
    entropy = load_entropy_model(codec, tmp_path / "codec")
    source = sound_file(tmp_path / "in.wav", 2000)
    compress_file(source, tmp_path / "coded.snr", codec, entropy=entropy)
    decompress_file(tmp_path / "coded.snr", tmp_path / "out.wav", codec, entropy=entropy)
    assert (tmp_path / "out.wav").exists()


def flat(content: object, name: str = "") -> dict[str, float]:
    """All numbers of a log line, by their path."""
    if isinstance(content, dict):
        return {key: value for part in content for key, value in flat(content[part], part).items()}
    return {name: content} if isinstance(content, float) else {}


def test_resumed_training_equals_uninterrupted(settings: EntropySettings, tmp_path: Path) -> None:
    short = {"evaluate_every": 0, "batch_size": 2}
    train(recipe(settings, steps=6, **short), tmp_path / "whole", short_names=SHORT_NAMES)
    train(recipe(settings, steps=3, **short), tmp_path / "parts", short_names=SHORT_NAMES)
    train(recipe(settings, steps=6, **short), tmp_path / "parts", True, SHORT_NAMES)
    assert_equal_states(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


def test_tokens_are_computed_once_for_each_codec_and_manifest(
    settings: EntropySettings, tmp_path: Path
) -> None:
    items = read_manifest(settings.manifest, "train")
    codec = load_codec(settings.codec)
    folder = cached_tokens(codec, items, tmp_path / "tokens")
    written = (folder / "tokens.npy").stat().st_mtime_ns
    assert cached_tokens(codec, items, tmp_path / "tokens") == folder
    assert (folder / "tokens.npy").stat().st_mtime_ns == written
    tokens, ends = np.load(folder / "tokens.npy"), np.load(folder / "ends.npy")
    assert tokens.shape == (ends[-1], 4)
    assert ends.tolist() == [8, 8 + 58, 8 + 58 + 108]  # ceil(samples / 8), running total
    assert cached_tokens(codec, items[:2], tmp_path / "tokens") != folder
    codec.quantizer.layers[0].embed.data += 1
    assert cached_tokens(codec, items, tmp_path / "tokens") != folder
    assert len(list((tmp_path / "tokens").iterdir())) == 3


def test_sequences_lie_within_files_and_say_where_they_end(tmp_path: Path) -> None:
    ends = np.array([8, 66, 174])
    np.save(tmp_path / "tokens.npy", np.arange(174 * 2, dtype=np.uint16).reshape(174, 2))
    np.save(tmp_path / "ends.npy", ends)
    data = TokenDataset(tmp_path, frames=20, seed=0, size=200)
    drawn = set()
    for index in range(200):
        sequence = data[index]
        assert torch.equal(sequence, data[index])
        start = int(sequence[0, 0]) // 2
        file = int(np.searchsorted(ends, start, side="right"))
        length = min(20, int(ends[file]) - start)
        assert torch.equal(sequence[0, :length], 2 * torch.arange(start, start + length))
        assert torch.equal(sequence[1, :length], sequence[0, :length] + 1)
        assert (sequence[:, length:] == NOTHING).all()
        assert length == (8 if file == 0 else 20)
        drawn.add(start)
    assert {0, *range(8, 47), *range(66, 155)} >= drawn
    assert len(drawn) > 80
    with pytest.raises(IndexError):
        data[200]
    with pytest.raises(ConfigError, match="no data"):
        TokenDataset(tmp_path, 20, 0, 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": msgspec.structs.replace(MODEL, codebooks=5)}, "for 5 codebooks of 16"),
        ({"model": msgspec.structs.replace(MODEL, codebook_size=8)}, "of 8 tokens"),
    ],
)
def test_a_model_that_does_not_fit_the_codec_is_refused(
    settings: EntropySettings, change: dict, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        EntropyTask(msgspec.structs.replace(settings, **change))


def test_a_loss_is_the_mean_of_the_tokens_that_are_there(settings: EntropySettings) -> None:
    """Frames after a file's end neither count nor change the others."""
    task = EntropyTask(settings)
    task.model.eval()
    tokens = torch.randint(0, 16, (2, 4, 6))
    longer = torch.nn.functional.pad(tokens, (0, 3), value=NOTHING)
    with torch.no_grad():
        torch.testing.assert_close(task._bits_per_token(longer), task._bits_per_token(tokens))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("entropy-*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_fit_their_codecs(path: Path) -> None:
    task: Callable[..., object] = build_task(load_recipe(path), SHORT_NAMES)  # type: ignore[assignment]
    assert isinstance(task, EntropyTask)
