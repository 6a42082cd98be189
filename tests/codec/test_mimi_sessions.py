"""Live sessions of Mimi that are saved, moved to another process and resumed."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import sonorant
from sonorant.codec.mimi import Mimi
from sonorant.errors import CheckpointError
from sonorant.nn.state import State
from tests.codec.test_mimi import HOP, sound, tiny_mimi

RESUME = """
import sys
from pathlib import Path
import torch
import sonorant
from safetensors.torch import load_file, save_file

folder = Path(sys.argv[1])
model = sonorant.load(folder / "model")
state = model.init_state(2)
state.load(folder / "session.safetensors")
encoded = model.encode_step(load_file(folder / "chunk.safetensors")["x"], state)
save_file(
    {"tokens": encoded.tokens, "sound": model.decode_step(encoded, state)},
    folder / "result.safetensors",
)
state.save(folder / "later.safetensors")
"""


def step(model: Mimi, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
    encoded = model.encode_step(x, state)
    return encoded.tokens, model.decode_step(encoded, state)


@pytest.fixture
def model(tmp_path: Path) -> Mimi:
    tiny_mimi().save_pretrained(tmp_path / "model")
    loaded = sonorant.load(tmp_path / "model")
    assert isinstance(loaded, Mimi)
    return loaded


def test_a_session_moves_to_another_process_bit_for_bit(model: Mimi, tmp_path: Path) -> None:
    """Past the context, with rows of different ages, one of which pauses when it is saved."""
    state = model.init_state(2)
    step(model, sound(2, 9 * HOP), state)
    state.set_active(torch.tensor([True, False]))
    step(model, sound(2, 2 * HOP), state)
    state.set_active(None)
    state.save(tmp_path / "session.safetensors")
    x = sound(2, 7 * HOP)
    save_file({"x": x}, tmp_path / "chunk.safetensors")
    subprocess.run([sys.executable, "-c", RESUME, str(tmp_path)], check=True)
    tokens, decoded = step(model, x, state)
    result = load_file(tmp_path / "result.safetensors")
    assert torch.equal(result["tokens"], tokens)
    assert torch.equal(result["sound"], decoded)
    later = load_file(tmp_path / "later.safetensors")
    assert later.keys() == state.tensors.keys()
    assert all(torch.equal(later[name], tensor) for name, tensor in state.tensors.items())


def test_a_session_of_other_weights_is_refused(model: Mimi, tmp_path: Path) -> None:
    state = model.init_state()
    step(model, sound(1, HOP), state)
    state.save(tmp_path / "session.safetensors")
    with torch.no_grad():
        model.decoder.layers[0].conv.weight.mul_(1.001)  # type: ignore[union-attr]
    other = model.init_state()
    with pytest.raises(CheckpointError, match="by another model"):
        other.load(tmp_path / "session.safetensors")
    assert not any(tensor.any() for tensor in other.tensors.values())


def test_a_session_of_another_version_or_size_is_refused(model: Mimi, tmp_path: Path) -> None:
    file = tmp_path / "session.safetensors"
    model.init_state(batch_size=2).save(file)
    with pytest.raises(CheckpointError, match="here 3 rows"):
        model.init_state(batch_size=3).load(file)
    with pytest.raises(CheckpointError, match="another latency mode"):
        model.init_state(batch_size=2, low_latency=True).load(file)
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata() | {"version": "0"}
    save_file(load_file(file), file, metadata=metadata)
    with pytest.raises(CheckpointError, match="another version of this package"):
        model.init_state(batch_size=2).load(file)


@pytest.mark.parametrize("layout", ["moshi", "huggingface"])
def test_a_session_goes_on_with_the_model_in_another_layout(
    model: Mimi, layout: str, tmp_path: Path
) -> None:
    """The published layouts hold the moving averages of training, ours the codewords only."""
    with torch.no_grad():
        for part in (model.quantizer.semantic, model.quantizer.acoustic):
            for level in part.levels.layers:
                level.usage.fill_(2)
                level.embed_sum.mul_(2)
    model.export(tmp_path / layout, layout)
    published = sonorant.load(tmp_path / layout)
    published.save_pretrained(tmp_path / "ours")
    ours = sonorant.load(tmp_path / "ours")
    assert isinstance(published, Mimi)
    assert isinstance(ours, Mimi)
    state, resumed = published.init_state(), ours.init_state()
    step(published, sound(1, 2 * HOP), state)
    state.save(tmp_path / "session.safetensors")
    resumed.load(tmp_path / "session.safetensors")
    x = sound(1, HOP)
    assert torch.equal(step(published, x, state)[1], step(ours, x, resumed)[1])


def test_a_session_of_the_same_weights_under_another_config_is_refused(
    model: Mimi, tmp_path: Path
) -> None:
    transformer = msgspec.structs.replace(model.config.transformer, max_period=500)
    other = Mimi(msgspec.structs.replace(model.config, transformer=transformer))
    other.load_state_dict(model.state_dict())
    model.init_state().save(tmp_path / "session.safetensors")
    with pytest.raises(CheckpointError, match="other weights or config"):
        other.eval().init_state().load(tmp_path / "session.safetensors")


@pytest.mark.parametrize("mode", ["fp16", "int8"])
def test_a_session_of_a_packed_model_is_for_models_packed_alike(
    model: Mimi, mode: str, tmp_path: Path
) -> None:
    fresh, twin, unlike = (sonorant.load(tmp_path / "model") for _ in range(3))
    twin.optimize(mode)
    model.optimize(mode)
    unlike.optimize("int8" if mode == "fp16" else "fp16")
    model.init_state().save(tmp_path / "session.safetensors")
    twin.init_state().load(tmp_path / "session.safetensors")
    for other in (fresh, unlike):
        with pytest.raises(CheckpointError, match="packed otherwise"):
            other.init_state().load(tmp_path / "session.safetensors")


def test_a_session_of_another_context_is_refused(tmp_path: Path) -> None:
    tiny_mimi(context=5).init_state().save(tmp_path / "session.safetensors")
    with pytest.raises(CheckpointError, match="by another model"):
        tiny_mimi(context=6).init_state().load(tmp_path / "session.safetensors")


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_a_damaged_session_is_refused(model: Mimi, tmp_path: Path, length: int) -> None:
    file = tmp_path / "session.safetensors"
    model.init_state().save(file)
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="is not a saved state"):
        model.init_state().load(file)


def test_a_session_that_cannot_be_written_says_so(model: Mimi, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot save a state"):
        model.init_state().save(tmp_path / "missing" / "session.safetensors")


def test_mimi_compresses_and_decompresses_files(model: Mimi, tmp_path: Path) -> None:
    from sonorant.codec.files import compress_file, decompress_file

    x = sound(1, 200 * HOP + 5)[0]
    sonorant.write(tmp_path / "in.wav", sonorant.Audio(x, model.sample_rate))
    compress_file(tmp_path / "in.wav", tmp_path / "small.snr", model, model.bandwidth_of(3))
    decompress_file(tmp_path / "small.snr", tmp_path / "out.wav", model)
    back = sonorant.read(tmp_path / "out.wav")
    read = sonorant.read(tmp_path / "in.wav").samples[None]
    expected = model.decode_batch(model.encode_batch(read, model.bandwidth_of(3)))[0]
    assert back.sample_rate == model.sample_rate
    loudest = 0.98  # what is louder, the writer limits
    torch.testing.assert_close(
        back.samples.clamp(-loudest, loudest), expected.clamp(-loudest, loudest), atol=1e-4, rtol=0
    )
