"""The tokens of a manifest's audio, computed once and kept on disk, for models that learn from it.

A cache is a folder with `tokens.npy`, uint16 [frames, codebooks] of all files one after the other,
and `ends.npy`, int64, where each file ends. Its name depends on the codec's weights and the files,
so a changed codec or manifest never reads old tokens.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from sonorant.audio import read
from sonorant.codec.codec import Codec
from sonorant.codec.files import fingerprint
from sonorant.data.manifest import Item
from sonorant.errors import ConfigError

NOTHING = -1
"""Stands where a sequence is longer than its file."""
LARGEST_CODEBOOK = 65_536


class TokenDataset(Dataset[Tensor]):
    """`size` sequences of tokens int64 [codebooks, frames], each a pure function of its index.

    A file is drawn with a chance proportional to its length, then a start within it. Files that are
    shorter than a sequence are filled up with `NOTHING`.
    """

    def __init__(self, folder: Path, frames: int, seed: int, size: int) -> None:
        if size < 1 or frames < 1:
            raise ConfigError(f"{size} sequences of {frames} frames are no data")
        self._tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        self._ends = np.load(folder / "ends.npy")
        self.frames, self.seed, self.size = frames, seed, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self.size:
            raise IndexError(f"sequence {index} of {self.size}")
        random = np.random.Generator(np.random.Philox(key=[self.seed % 2**64, index]))
        file = int(np.searchsorted(self._ends, random.integers(self._ends[-1]), side="right"))
        first, end = int(self._ends[file - 1]) if file else 0, int(self._ends[file])
        start = first + int(random.integers(max(0, end - first - self.frames) + 1))
        drawn = np.asarray(self._tokens[start : min(end, start + self.frames)], np.int64)
        missing = self.frames - len(drawn)
        return torch.from_numpy(np.pad(drawn.T, ((0, 0), (0, missing)), constant_values=NOTHING))


def cached_tokens(codec: Codec, items: Sequence[Item], parent: Path) -> Path:
    """The folder below `parent` with the tokens of all items; they are computed if it is missing.

    Raises: ConfigError for a codec of more codewords than the cache can hold; AudioError if a file
    cannot be read.
    """
    if codec.config.quantizer.codebook_size > LARGEST_CODEBOOK:
        raise ConfigError(f"a token cache holds tokens below {LARGEST_CODEBOOK}")
    digest = hashlib.sha256(fingerprint(codec))
    for item in items:
        digest.update(f"{item.path} {item.duration_seconds}\n".encode())
    folder = parent / digest.hexdigest()[:16]
    if folder.is_dir():
        return folder
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=parent) as temporary:
        part = Path(temporary) / "tokens"
        part.mkdir()
        parts: list[npt.NDArray[np.uint16]] = []
        for item in tqdm(items, desc="tokens", disable=None):
            tokens = codec.encode(read(item.path)).tokens[0].t().cpu().numpy()
            parts.append(tokens.astype(np.uint16))
        np.save(part / "tokens.npy", np.concatenate(parts))
        np.save(part / "ends.npy", np.cumsum([len(tokens) for tokens in parts]))
        part.rename(folder)
    return folder
