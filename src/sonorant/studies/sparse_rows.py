"""Sparse two-class data: made here, or read from files in libsvm's format.

The published experiments of AdaBatch are on libsvm's sets; `SHAPES` has their sizes, for data of
the same shape that is made here.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sonorant.errors import FormatError

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
MARGIN = 5.0
"""Standard deviation of the true margins: few labels are a matter of chance."""
_FREQUENT = 0.01  # the chance of a feature from which it is drawn once a row, exactly


@dataclass(frozen=True)
class SparseRows:
    """Samples with few non-zeros, row after row, and their classes.

    starts: [rows + 1] int64, where each row begins in the two next.
    columns: [entries] int64. values: [entries] float32. labels: [rows] float32, -1 or 1.
    dimension: how many columns there are.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    labels: Tensor
    dimension: int

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor) -> SparseRows:
        """These rows, in this order."""
        lengths = self.starts.diff()[rows]
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        shift = self.starts[rows] - starts[:-1]
        at = torch.arange(int(starts[-1])) + torch.repeat_interleave(shift, lengths)
        return SparseRows(
            starts, self.columns[at], self.values[at], self.labels[rows], self.dimension
        )

    def slice(self, first: int, last: int) -> SparseRows:
        """Rows first .. last - 1, without copying the entries."""
        begin, end = int(self.starts[first]), int(self.starts[last])
        return SparseRows(
            self.starts[first : last + 1] - begin,
            self.columns[begin:end],
            self.values[begin:end],
            self.labels[first:last],
            self.dimension,
        )

    @property
    def row_numbers(self) -> Tensor:
        """The row [entries] that each entry is of."""
        return torch.repeat_interleave(self.starts.diff(), output_size=len(self.columns))

    def margins(self, weight: Tensor) -> Tensor:
        """label * <row, weight> [rows]."""
        products = weight.index_select(0, self.columns) * self.values
        sums = torch.zeros_like(self.labels).index_add_(0, self.row_numbers, products)
        return sums * self.labels


@dataclass(frozen=True)
class Shape:
    """Size of a data set: rows, columns, and the mean number of non-zeros of a row."""

    rows: int
    dimension: int
    filled: int


SHAPES = {
    "small": Shape(20_000, 2_000, 20),
    # n and d of libsvm's pages: https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary.html
    "news20": Shape(19_996, 1_355_191, 455),
    "webspam": Shape(350_000, 254, 85),
    "url": Shape(2_396_130, 3_231_961, 116),
}


def make_rows(shape: Shape, seed: int = 0) -> SparseRows:
    """Data with frequent and rare features, and labels of a logistic model.

    Feature k is there with a chance p proportional to k^-1.1, scaled to the mean number of
    non-zeros; rows are divided by the root of theirs. As rare words do in texts, rare features say
    more: their weights grow as p^(-1/3). Where features are rare, a few that would be drawn twice
    in a row are left out.
    """
    random = np.random.default_rng(seed)
    chances = _chances(shape)
    drawn = random.binomial(shape.rows, chances)
    columns = np.repeat(np.arange(shape.dimension), drawn)
    frequent = chances >= _FREQUENT
    rows = np.concatenate(
        [
            *(random.choice(shape.rows, count, replace=False) for count in drawn[frequent]),
            random.integers(shape.rows, size=int(drawn[~frequent].sum())),
        ]
    )
    keys = np.unique(rows.astype(np.int64) * shape.dimension + columns)
    rows, columns = np.divmod(keys, shape.dimension)
    lengths = np.bincount(rows, minlength=shape.rows)
    values = (1 / np.sqrt(np.maximum(lengths, 1)))[rows].astype(np.float32)
    starts = np.concatenate([[0], lengths.cumsum()])
    truth = random.standard_normal(shape.dimension) * np.cbrt(1 / chances)
    margins = np.bincount(rows, values * truth[columns], minlength=shape.rows)
    margins *= MARGIN / margins.std()
    labels = np.where(random.random(shape.rows) < 1 / (1 + np.exp(-margins)), 1, -1)
    return SparseRows(
        torch.from_numpy(starts),
        torch.from_numpy(columns),
        torch.from_numpy(values),
        torch.from_numpy(labels.astype(np.float32)),
        shape.dimension,
    )


def _chances(shape: Shape) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Capped at 1, with the mean number of non-zeros asked for; in decreasing order."""
    powers = np.arange(1, shape.dimension + 1) ** -1.1
    low, high = 0.0, float(shape.dimension) ** 1.1
    for _ in range(200):  # halvings, more than a float64 has digits
        middle = (low + high) / 2
        if np.minimum(1, middle * powers).sum() < shape.filled:
            low = middle
        else:
            high = middle
    return np.minimum(1, high * powers)


def read_libsvm(path: Path) -> SparseRows:
    """Read `label index:value ...` lines; indices from 1, growing; `#` begins a comment.

    The largest index is the number of columns. Files may be packed (.gz, .bz2, .xz). The smaller of
    the two labels becomes -1, the larger one 1.
    Raises: FormatError naming file and line.
    """
    labels: list[float] = []
    lengths: list[int] = [0]
    columns: list[int] = []
    values: list[float] = []
    for label, row in _samples(path):
        labels.append(label)
        lengths.append(len(row))
        columns += row.keys()
        values += row.values()
    if not labels:
        raise FormatError(f"{path} holds no samples")
    classes = sorted(set(labels))
    if len(classes) != 2:
        shown = ", ".join(f"{label:g}" for label in classes[:5])
        raise FormatError(f"{path} needs samples of two classes, and has the labels {shown}")
    return SparseRows(
        torch.tensor(lengths).cumsum(0),
        torch.tensor(columns, dtype=torch.int64) - 1,
        torch.tensor(values, dtype=torch.float32),
        torch.where(torch.tensor(labels) == classes[1], 1.0, -1.0),
        max(columns, default=0),
    )


def _samples(path: Path) -> Iterator[tuple[float, dict[int, float]]]:
    """Label and index -> value of each line that is not empty."""
    try:
        with _OPENERS.get(path.suffix, open)(path, "rt", encoding="ascii") as lines:
            for number, line in enumerate(lines, 1):
                if words := line.partition("#")[0].split():
                    yield _parse(words, f"{path}, line {number}")
    except (UnicodeDecodeError, EOFError, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise FormatError(f"{path} is damaged, or no text: {error}") from error


def _parse(words: list[str], where: str) -> tuple[float, dict[int, float]]:
    row: dict[int, float] = {}
    before = 0
    try:
        label = float(words[0])
        for word in words[1:]:
            index, colon, value = word.partition(":")
            if not colon or not index.isdecimal() or int(index) <= before:
                raise ValueError(f"{word!r}: need index:value, indices from 1 on and growing")
            before = int(index)
            row[before] = float(value)
        if not all(map(math.isfinite, (label, *row.values()))):
            raise ValueError("a number is not finite")
    except ValueError as error:
        raise FormatError(f"{where}: {error}") from error
    return label, row
