"""CIFAR's archives, the residual networks, and their training in full and in few bits."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

import sonorant
from sonorant.cli.train import SHORT_NAMES
from sonorant.errors import ConfigError, FormatError
from sonorant.model import SkipInitialization
from sonorant.studies.cifar import Cifar, Images, TrainingImages, read_cifar
from sonorant.studies.epochs import EpochOrder
from sonorant.studies.image_classification import ImageSettings, ImageTask
from sonorant.studies.resnet import RESNET_18, WIDE_RESNET_28_10, ResNet, ResNetConfig
from sonorant.training.engine import train
from sonorant.training.recipe import Recipe, TrainingConfig
from tests.training.runs import assert_equal_states, final_state, log_lines

TINY = ResNetConfig(first_width=4, widths=(4, 8), blocks=1)
TEST_IMAGES = 20


def records(count: int, class_bytes: int = 1, seed: int = 0) -> bytes:
    """Images of class 0, dark and red, and of class 1, bright and blue."""
    random = np.random.default_rng(seed)
    content = b""
    for index in range(count):
        number = index % 2
        pixels = random.integers(0, 60, (3, 32, 32)) + 150 * number
        pixels[2 * number] += 40
        content += bytes(class_bytes - 1) + bytes([number]) + pixels.astype(np.uint8).tobytes()
    return content


def archive(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def cifar10_files() -> dict[str, bytes]:
    batches = {f"data_batch_{n}.bin": records(12, seed=n) for n in (5, 4, 3, 2, 1)}
    return {**batches, "readme.html": b"", "test_batch.bin": records(TEST_IMAGES, seed=9)}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return archive(tmp_path / "cifar-10-binary.tar.gz", cifar10_files())


def test_cifar_10_is_read_in_the_order_of_its_batches(data: Path) -> None:
    found = read_cifar(data)
    assert found.class_count == 10
    assert (len(found.train), len(found.test)) == (60, TEST_IMAGES)
    second = np.frombuffer(records(12, seed=1), np.uint8).reshape(-1, 3073)[1]
    assert found.train.classes[1] == second[0] == 1
    assert found.train.pixels[1].flatten().tolist() == second[1:].tolist()


def test_cifar_100_has_its_fine_classes(tmp_path: Path) -> None:
    files = {"train.bin": records(4, class_bytes=2), "test.bin": records(2, class_bytes=2)}
    found = read_cifar(archive(tmp_path / "cifar-100-binary.tar.gz", files))
    assert found.class_count == 100
    assert found.train.classes.tolist() == [0, 1, 0, 1]
    assert found.train.pixels.shape == (4, 3, 32, 32)


def test_what_is_not_the_binary_version_is_refused_with_where_to_get_it(tmp_path: Path) -> None:
    download = "download https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    with pytest.raises(ConfigError, match=f"no file.*{download}"):
        read_cifar(tmp_path / "missing.tar.gz")
    pickles = archive(tmp_path / "cifar-10-python.tar.gz", {"data_batch_1": b"\x80\x04."})
    with pytest.raises(ConfigError, match=f"pickles.*{download}"):
        read_cifar(pickles)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (records(2)[:-1], "no records of 3073"),
        (b"", "no records"),
        (b"\x0a" + bytes(3072), "class 10 of 10"),
    ],
)
def test_damaged_images_are_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    files = {**cifar10_files(), "test_batch.bin": content}
    with pytest.raises(FormatError, match=reason):
        read_cifar(archive(tmp_path / "cifar.tar.gz", files))


@pytest.mark.parametrize("length", [0, 10, 5000])
def test_half_a_download_is_refused(data: Path, length: int) -> None:
    data.write_bytes(data.read_bytes()[:length])
    with pytest.raises(FormatError, match="download it again"):
        read_cifar(data)


def test_each_epoch_has_every_item_once_in_another_order() -> None:
    order = EpochOrder(50, seed=3)
    epochs = [[order[50 * epoch + i] for i in range(50)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order[7] == epochs[0][7]
    assert [EpochOrder(50, seed=4)[i] for i in range(50)] != epochs[0]
    with pytest.raises(IndexError):
        order[-1]


def test_training_images_are_shifted_by_up_to_four_pixels_and_flipped() -> None:
    pixels = torch.arange(1, 33, dtype=torch.uint8).expand(1, 3, 32, 32)  # the column, from 1
    data = TrainingImages(Images(pixels, torch.tensor([6])), seed=0)
    drawn = set()
    for index in range(200):
        image, number = data[index]
        assert number == 6
        assert torch.equal(image, data[index][0])
        row = image[0, 16].tolist()
        flipped = row[16] < row[15]
        forward = row[::-1] if flipped else row
        shift = forward[16] - 17
        assert forward == [c if 1 <= c <= 32 else 0 for c in range(1 + shift, 33 + shift)]
        drawn.add((shift, flipped))
    assert drawn == {(shift, flipped) for shift in range(-4, 5) for flipped in (True, False)}


@pytest.mark.parametrize(
    ("config", "millions", "megabytes"),
    [(RESNET_18, 11.17, 42.6), (WIDE_RESNET_28_10, 36.48, 139.2)],
)
def test_networks_have_the_published_sizes(
    config: ResNetConfig, millions: float, megabytes: float
) -> None:
    """arXiv 1605.07146, table 4, has 36.5 million for Wide-ResNet 28-10."""
    with SkipInitialization():
        model = ResNet(config)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert weights / 1e6 == pytest.approx(millions, abs=5e-3)
    assert weights * 4 / 2**20 == pytest.approx(megabytes, abs=0.05)


def settings(data: Path, **changes: object) -> dict[str, object]:
    made = ImageSettings(data=str(data), model=TINY, learning_rate=0.05)
    return msgspec.to_builtins(made) | changes


def recipe(made: dict[str, object], **training: object) -> Recipe:
    config = {"steps": 20, "batch_size": 8, "device": "cpu", "evaluate_every": 0, **training}
    return Recipe(
        task="image_classification",
        training=TrainingConfig(**config),
        settings=made,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("block", ["post", "pre"])
def test_training_learns_to_tell_classes_and_the_model_loads(
    data: Path, tmp_path: Path, block: str
) -> None:
    made = settings(data)
    made["model"] = {**made["model"], "block": block}  # type: ignore[dict-item]
    assert train(recipe(made, evaluate_every=20), tmp_path / "run", short_names=SHORT_NAMES)
    figures = [line for line in log_lines(tmp_path / "run") if line["kind"] == "valid"][-1]
    model = sonorant.load(tmp_path / "run" / "model")
    test = read_cifar(data).test
    with torch.no_grad():
        found = model(test.pixels.float() / 255).argmax(1)
    hits = int((found == test.classes).sum())
    assert hits >= TEST_IMAGES - 1
    # 20 images in batches of 8, 8 and 4: each of them counts the same.
    assert figures["accuracy"] == pytest.approx(hits / TEST_IMAGES)


def test_accuracy_counts_every_image_the_same(data: Path) -> None:
    means = {"images": (8 + 8 + 4) / 3, "hits": (8 + 8 + 0) / 3, "losses": 10 / 3}
    figures = ImageTask(ImageSettings(data=str(data), model=TINY)).summary(means)
    assert figures == pytest.approx({"accuracy": 0.8, "loss": 0.5})


def test_resumed_training_equals_uninterrupted(data: Path, tmp_path: Path) -> None:
    made = settings(data)
    train(recipe(made, steps=4), tmp_path / "whole", short_names=SHORT_NAMES)
    train(recipe(made, steps=2), tmp_path / "parts", short_names=SHORT_NAMES)
    train(recipe(made, steps=4), tmp_path / "parts", True, SHORT_NAMES)
    assert_equal_states(final_state(tmp_path / "whole"), final_state(tmp_path / "parts"))


@pytest.mark.parametrize("method", ["diffq", "lsq", "uniform"])
def test_few_bits_are_learned_from_a_trained_model(data: Path, tmp_path: Path, method: str) -> None:
    model = ResNetConfig(first_width=8, widths=(8, 16), blocks=1)
    made = settings(data, model=msgspec.to_builtins(model))
    train(recipe(made, steps=2), tmp_path / "plain", short_names=SHORT_NAMES)
    made["start"] = str(tmp_path / "plain" / "model")
    quantization = {"method": method, "choice": {"min_size_mb": 0.0001}}
    few = msgspec.convert(
        msgspec.to_builtins(recipe(made, steps=2)) | {"quantization": quantization}, Recipe
    )
    train(few, tmp_path / "few", short_names=SHORT_NAMES)
    sizes = {
        run: (tmp_path / run / "model" / "model.safetensors").stat().st_size
        for run in ("plain", "few")
    }
    assert sizes["few"] < 0.6 * sizes["plain"], sizes
    assert isinstance(sonorant.load(tmp_path / "few" / "model"), ResNet)


def test_a_start_or_data_of_another_kind_is_refused(data: Path, tmp_path: Path) -> None:
    ResNet(TINY).save_pretrained(tmp_path / "model")
    other = msgspec.structs.replace(TINY, classes=100)
    with pytest.raises(ConfigError, match="another config"):
        ImageTask(ImageSettings(data=str(data), model=other, start=str(tmp_path / "model")))
    task = ImageTask(ImageSettings(data=str(data), model=other))
    with pytest.raises(ConfigError, match=r"set settings\.model\.classes=10"):
        task.training_data(0)


def test_a_cifar_is_read_once(data: Path) -> None:
    task = ImageTask(ImageSettings(data=str(data), model=TINY))
    task.training_data(0)
    data.unlink()
    assert isinstance(task.data, Cifar)
    assert len(task.validation_data()) == TEST_IMAGES  # type: ignore[arg-type]
