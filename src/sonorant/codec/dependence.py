"""How much the codebooks of a codec depend on each other: total correlation, in bits per frame.

Total correlation is the sum of the codebooks' entropies less the entropy of them together (Watanabe
1960): what a coder that treats them as independent wastes, and what a language model that predicts
them at once cannot know. Counting joint tokens is out of the question: four codebooks have 2^40 of
them. By the chain rule it is also the sum, over codebooks, of what the ones before tell about it,

    TC = sum over k of H(c_k) - H(c_k | c_1 .. c_(k-1)),

and each term is bounded from below by what a predictor that was trained on other sound saves, in
bits, over the plain frequencies, both measured on sound that neither has seen. The better the
predictor, the tighter the bound; without dependence it is 0, or a little less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.errors import ShapeError

BATCH_FRAMES = 256
LEARNING_RATE = 1e-3
WIDTH = 128
TABLE_SCALE = 0.1  # larger first tables learn single tokens by heart, and the bound gets looser


@dataclass(frozen=True)
class TotalCorrelation:
    """bits: a lower bound, per frame. share: of the codebooks' entropies. gains: per codebook, what
    the ones before tell, in bits; the first is 0."""

    bits: float
    share: float
    gains: tuple[float, ...]


class Predictor(nn.Module):
    """Log-probabilities of one codebook's tokens, given those of the codebooks before.

    It begins with the plain frequencies, so it learns only what the others tell.
    """

    def __init__(self, frequencies: Tensor, codebooks_before: int) -> None:
        super().__init__()
        size = len(frequencies)
        self.register_buffer("plain", frequencies.log())
        self.tables = nn.ModuleList(nn.Embedding(size, WIDTH) for _ in range(codebooks_before))
        for parameter in self.tables.parameters():
            nn.init.normal_(parameter, std=TABLE_SCALE)
        self.hidden = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, before: Tensor) -> Tensor:
        """Shape: before int64 [frames, codebooks_before] -> [frames, codebook_size]."""
        x = torch.stack([table(before[:, i]) for i, table in enumerate(self.tables)]).sum(dim=0)
        y = self.head(F.gelu(self.hidden(F.gelu(x))))
        return (self.plain + y).log_softmax(dim=-1)


def total_correlation(
    train: Tensor, held_out: Tensor, codebook_size: int, epochs: int = 6, seed: int = 0
) -> TotalCorrelation:
    """A lower bound of the total correlation between the codebooks of a frame.

    Shape: train, held_out int64 [codebooks, frames], of different sounds. The number of epochs is
    chosen, up to `epochs`, on the first half of `held_out`, and the bound measured on the second.
    Raises: ShapeError for fewer than two codebooks or too little to measure on.
    """
    if len(train) < 2 or len(train) != len(held_out) or min(train.shape[1], held_out.shape[1]) < 4:
        raise ShapeError(
            "total correlation needs two or more codebooks and some frames of both kinds of sound, "
            f"got {list(train.shape)} and {list(held_out.shape)}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gains, entropy = [0.0], _bits(_frequencies(train[0], codebook_size).log(), held_out[0])
        for level in range(1, len(train)):
            plain = _frequencies(train[level], codebook_size)
            gains.append(_gain(train[: level + 1], held_out[: level + 1], plain, epochs))
            entropy += _bits(plain.log(), held_out[level])
    return TotalCorrelation(sum(gains), sum(gains) / entropy, tuple(gains))


def shuffled(tokens: Tensor, seed: int = 0) -> Tensor:
    """Tokens `[codebooks, frames]` with every codebook in an own random order: independent ones.

    What `total_correlation` gives for them is its error at 0.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(tokens.shape[1], generator=generator) for _ in tokens]
    return torch.stack([row[order] for row, order in zip(tokens, orders, strict=True)])


def _gain(train: Tensor, held_out: Tensor, plain: Tensor, epochs: int) -> float:
    """Bits per token of the last codebook that those before save."""
    middle = held_out.shape[1] // 2
    choice, measure = held_out[:, :middle], held_out[:, middle:]
    predictor = Predictor(plain, len(train) - 1)
    optimizer = torch.optim.Adam(predictor.parameters(), LEARNING_RATE)
    best, best_gain = 0.0, 0.0  # with no epoch, that of the plain frequencies
    for _ in range(epochs):
        for frames in torch.randperm(train.shape[1]).split(BATCH_FRAMES):
            part = train[:, frames]
            loss = F.nll_loss(predictor(part[:-1].t()), part[-1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        chosen_on = _saved(predictor, plain, choice)
        if chosen_on > best:
            best, best_gain = chosen_on, _saved(predictor, plain, measure)
    return best_gain


@torch.no_grad()
def _saved(predictor: Predictor, plain: Tensor, tokens: Tensor) -> float:
    predicted = sum(
        float(F.nll_loss(predictor(part[:-1].t()), part[-1], reduction="sum"))
        for part in tokens.split(4096, dim=1)
    )
    return _bits(plain.log(), tokens[-1]) - predicted / tokens.shape[1] / math.log(2)


def _frequencies(tokens: Tensor, size: int) -> Tensor:
    """With half a count more for each, so that no token is impossible."""
    counts = torch.bincount(tokens, minlength=size) + 0.5
    return counts / counts.sum()


def _bits(log_probabilities: Tensor, tokens: Tensor) -> float:
    """Mean code length of tokens."""
    return float(-log_probabilities[tokens].mean()) / math.log(2)
