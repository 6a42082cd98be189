"""Texts as numbered words: a vocabulary by frequency, and the pieces that a language model reads.

As Wikitext-103 is used (arXiv 1609.07843): words are what stands between spaces, every line ends
with a word of its own, and words that the training text lacks are one and the same.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sonorant.errors import ConfigError, FormatError
from sonorant.studies.epochs import EpochOrder

END_OF_LINE, UNKNOWN = "<eos>", "<unk>"
NOTHING = -1
"""Stands in for words that are not to be predicted."""
Piece = tuple[Tensor, Tensor]
"""What is read and what is to be predicted, int64 [words] each, one word apart."""


class Vocabulary:
    """Words by number, the most frequent first."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self._numbers = {word: number for number, word in enumerate(words)}

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def of_text(cls, path: str | Path, least_count: int = 1) -> Vocabulary:
        """The words that a text has at least so often, and always the two special ones.

        Raises: as `numbers`.
        """
        counts: Counter[str] = Counter({END_OF_LINE: 0, UNKNOWN: 0})
        for words in _lines(path):
            counts.update(words)
        kept = [word for word in counts if counts[word] >= least_count]
        special = [word for word in (END_OF_LINE, UNKNOWN) if word not in kept]
        return cls(sorted([*kept, *special], key=lambda word: (-counts[word], word)))

    def numbers(self, path: str | Path) -> Tensor:
        """A text as int32 [words]; it begins as if after the end of a line.

        Raises: ConfigError if the file cannot be read; FormatError if it is not a text in UTF-8.
        """
        find, unknown = self._numbers.get, self._numbers[UNKNOWN]
        found = array("i", [self._numbers[END_OF_LINE]])
        for words in _lines(path):
            found.extend(find(word, unknown) for word in words)
        return torch.frombuffer(found, dtype=torch.int32)

    def save(self, path: Path) -> None:
        """One word a line, by number."""
        path.write_text("\n".join(self.words) + "\n", encoding="utf-8")


def _lines(path: str | Path) -> Iterator[list[str]]:
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                yield [*line.split(), END_OF_LINE]
    except OSError as error:
        raise ConfigError(f"cannot read the text {path}: {error}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not a text in UTF-8: {error}") from error


class TrainingPieces(Dataset[Piece]):
    """Pieces of `length` words, one after the other in the text, in a new order each epoch.

    Piece i follows from `seed` and i alone. What is left at the text's end is not read.
    Raises: ConfigError if the text has not one piece.
    """

    def __init__(self, numbers: Tensor, length: int, seed: int) -> None:
        pieces = (len(numbers) - 1) // length
        if pieces < 1:
            raise ConfigError(
                f"the training text has {len(numbers) - 1} words, fewer than one piece of {length}"
                "; set settings.piece_words lower"
            )
        self.numbers, self.length = numbers, length
        self._order = EpochOrder(pieces, seed)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Piece:
        start = self._order[index] * self.length
        piece = self.numbers[start : start + self.length + 1].long()
        return piece[:-1], piece[1:]


class ValidationPieces(Dataset[Piece]):
    """A whole text in pieces of `length` words, of which each word is to be predicted once.

    All but the first piece begin with `context` words that the piece before had predicted already,
    so that no word is predicted from less.
    Raises: ConfigError if the text is empty.
    """

    def __init__(self, numbers: Tensor, length: int, context: int) -> None:
        if len(numbers) < 2:
            raise ConfigError("the validation text is empty")
        self.numbers, self.length, self.context = numbers, length, context
        self.stride = length - context
        self._pieces = 1 + max(0, -(-(len(numbers) - 1 - length) // self.stride))

    def __len__(self) -> int:
        return self._pieces

    def __getitem__(self, index: int) -> Piece:
        if not 0 <= index < self._pieces:
            raise IndexError(f"piece {index} of {self._pieces}")
        start = index * self.stride
        piece = self.numbers[start : start + self.length + 1].long()
        known = len(piece) - 1
        read = torch.zeros(self.length, dtype=torch.int64)
        predicted = torch.full((self.length,), NOTHING)
        read[:known], predicted[:known] = piece[:-1], piece[1:]
        if index:
            predicted[: self.context] = NOTHING
        return read, predicted
