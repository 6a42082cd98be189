"""The images of CIFAR-10 and CIFAR-100, read from their published archives.

Only the binary versions are read: the ones for Python are pickles, and a pickle can run any code.
In those a record is one byte for the class (two in CIFAR-100, the coarse class first), and 3072 for
the image: rows of the red, then the green, then the blue channel of 32 by 32.
Source: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from sonorant.errors import ConfigError, FormatError
from sonorant.studies.epochs import EpochOrder

SIDE = 32
PADDING = 4
"""Pixels around an image within which it is cropped in training (arXiv 1512.03385, section 4.2)."""
DOWNLOAD = "https://www.cs.toronto.edu/~kriz/{name}-binary.tar.gz"


@dataclass(frozen=True)
class Layout:
    """What an archive holds. class_bytes: before each image; the last of them is the class."""

    name: str
    classes: int
    class_bytes: int
    train: tuple[str, ...]
    test: tuple[str, ...]


LAYOUTS = (
    Layout(
        name="cifar-10",
        classes=10,
        class_bytes=1,
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test=("test_batch.bin",),
    ),
    Layout("cifar-100", classes=100, class_bytes=2, train=("train.bin",), test=("test.bin",)),
)


@dataclass(frozen=True)
class Images:
    """pixels: uint8 [images, 3, 32, 32]. classes: int64 [images]."""

    pixels: Tensor
    classes: Tensor

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Cifar:
    """Both parts of a data set. class_count: 10 or 100."""

    train: Images
    test: Images
    class_count: int


def read_cifar(archive: str | Path) -> Cifar:
    """Read `cifar-10-binary.tar.gz` or `cifar-100-binary.tar.gz` as it was downloaded.

    Raises: ConfigError if there is no such file, or it is another version of the data; FormatError
    if it is damaged.
    """
    path = Path(archive)
    downloads = " or ".join(DOWNLOAD.format(name=layout.name) for layout in LAYOUTS)
    if not path.is_file():
        raise ConfigError(f"there is no file {path}; download {downloads} and give its path")
    try:
        files = _members(path)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise FormatError(
            f"{path} is not a complete .tar.gz ({error}); download it again"
        ) from error
    for layout in LAYOUTS:
        if files.keys() >= {*layout.train, *layout.test}:
            train, test = (
                _images(bytearray().join(files[name] for name in names), layout, path)
                for names in (layout.train, layout.test)
            )
            return Cifar(train, test, layout.classes)
    raise ConfigError(
        f"{path} does not hold CIFAR's binary version, which alone is read, since the "
        f"pickles of the one for Python can run any code; download {downloads}"
    )


def _members(path: Path) -> dict[str, bytes]:
    """The files of an archive that a layout names, without their folders; nothing is unpacked."""
    wanted = {name for layout in LAYOUTS for name in (*layout.train, *layout.test)}
    found = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = Path(member.name).name
            content = archive.extractfile(member) if name in wanted else None
            if content is not None:
                found[name] = content.read()
    return found


def _images(content: bytearray, layout: Layout, path: Path) -> Images:
    size = layout.class_bytes + 3 * SIDE * SIDE
    if not content or len(content) % size:
        raise FormatError(
            f"{path}: {len(content)} bytes are no records of {size}; download it again"
        )
    records = torch.frombuffer(content, dtype=torch.uint8).view(-1, size)
    classes = records[:, layout.class_bytes - 1].long()
    largest = int(classes.max())
    if largest >= layout.classes:
        raise FormatError(
            f"{path} has an image of class {largest} of {layout.classes}; download it again"
        )
    return Images(records[:, layout.class_bytes :].reshape(-1, 3, SIDE, SIDE), classes)


class TrainingImages(Dataset[tuple[Tensor, Tensor]]):
    """Images and classes, in a new order each epoch, flipped and cropped at random.

    Item i, the image uint8 [3, 32, 32] and its class [], follows from `seed` and i alone.
    """

    def __init__(self, images: Images, seed: int) -> None:
        self.images, self.seed = images, seed
        self._order = EpochOrder(len(images), seed)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        chosen = self._order[index]
        random = np.random.Generator(np.random.Philox(key=[self.seed % 2**64, index]))
        top, left = random.integers(2 * PADDING + 1, size=2)
        padded = F.pad(self.images.pixels[chosen], (PADDING,) * 4)
        cropped = padded[:, top : top + SIDE, left : left + SIDE]
        image = cropped.flip(2) if random.random() < 0.5 else cropped.clone()
        return image, self.images.classes[chosen]
