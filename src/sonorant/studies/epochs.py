"""The order of training items: every one once an epoch, in an order that each epoch has anew."""

from __future__ import annotations

import numpy as np

EPOCHS = 1_000_000
"""How many there are; no training comes that far."""


class EpochOrder:
    """Which of `items` things is the i-th one of a training; it follows from `seed` and i alone."""

    def __init__(self, items: int, seed: int) -> None:
        self.items, self.seed = items, seed
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return self.items * EPOCHS

    def __getitem__(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        epoch, position = divmod(index, self.items)
        if epoch != self._epoch:
            random = np.random.Generator(np.random.Philox(key=[self.seed % 2**64, epoch]))
            self._epoch, self._order = epoch, random.permutation(self.items)
        return int(self._order[position])
