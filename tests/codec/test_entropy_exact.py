"""Entropy models in whole numbers: as good as in floating point, and the same however computed."""

import subprocess
import sys

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sonorant.codec.entropy_coding import (
    EntropyConfig,
    EntropyCore,
    EntropyModel,
    previous_tokens,
)
from sonorant.codec.entropy_compact import CompactEntropyConfig, CompactEntropyModel
from sonorant.codec.entropy_exact import ExactEntropyModel, cumulative_counts
from sonorant.codec.exact_functions import exact_cosine, exact_exp, exact_normal
from sonorant.codec.range_coder import ONE, Counts
from sonorant.errors import ConfigError
from sonorant.nn.transformer import TransformerConfig

TRANSFORMER = TransformerConfig(
    width=16,
    layers=2,
    heads=2,
    hidden=32,
    norm_order="post",
    position="sinusoidal",
    bias=True,
    context=5,
    live_chunk=1,
)
PUBLISHED = EntropyConfig(codebooks=4, codebook_size=16, transformer=TRANSFORMER)
COMPACT = CompactEntropyConfig(
    codebooks=4, codebook_size=16, rank=6, head_width=10, transformer=TRANSFORMER
)


def random_model(config: EntropyConfig | CompactEntropyConfig = COMPACT) -> EntropyCore:
    """A model with opinions: its weights are far from zero everywhere."""
    kind = EntropyModel if isinstance(config, EntropyConfig) else CompactEntropyModel
    model = kind(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.3, generator=generator)
    return model.eval()


def random_tokens(frames: int, codebooks: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(16, (1, codebooks, frames), generator=generator)


def counts_of(model: EntropyCore, tokens: Tensor, piece: int) -> Counts:
    exact = ExactEntropyModel(model)
    state = exact.start()
    frames = tokens[0].t().numpy()
    before = previous_tokens(tokens)[0].t().numpy()
    parts = []
    for first in range(0, len(frames), piece):
        hidden = exact.hidden(before[first : first + piece], state)
        parts.append(exact.ends.counts(hidden, frames[first : first + piece]))
    return np.concatenate(parts)


@pytest.mark.parametrize("config", [PUBLISHED, COMPACT])
@torch.no_grad()
def test_the_counts_are_the_models_probabilities(
    config: EntropyConfig | CompactEntropyConfig,
) -> None:
    """They cost less than a ten-thousandth of a bit a token, also past the context."""
    model, tokens = random_model(config), random_tokens(20)
    logits = model.logits(model.hidden(previous_tokens(tokens)), tokens)
    probabilities = logits[0].permute(2, 1, 0).double().softmax(-1).numpy()
    counts = counts_of(model, tokens, piece=20)
    shares = np.diff(counts, prepend=0, axis=-1) / ONE
    lost_bits = (probabilities * np.log2(probabilities / shares)).sum(-1)
    assert lost_bits.max() < 1e-4
    assert np.log2(16) - -(probabilities * np.log2(probabilities)).sum(-1).mean() > 0.05


@pytest.mark.parametrize("config", [PUBLISHED, COMPACT])
@pytest.mark.parametrize("piece", [1, 3, 7])
def test_any_pieces_give_the_same_counts(
    config: EntropyConfig | CompactEntropyConfig, piece: int
) -> None:
    model, tokens = random_model(config), random_tokens(20)
    assert (counts_of(model, tokens, piece) == counts_of(model, tokens, 20)).all()


def test_a_shuffled_sum_gives_the_same_counts() -> None:
    """Permuting the hidden units of a layer changes the order of every sum over them, as other
    numbers of threads do; in floating point that changes the logits' last bits."""
    model, shuffled = random_model(PUBLISHED), random_model(PUBLISHED)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    for layer in shuffled.transformer.layers:
        part = layer.feed_forward
        part.linear_in.weight.data = part.linear_in.weight.data[order]
        part.linear_in.bias.data = part.linear_in.bias.data[order]
        part.linear_out.weight.data = part.linear_out.weight.data[:, order]
    tokens = random_tokens(20)
    assert (counts_of(model, tokens, 20) == counts_of(shuffled, tokens, 20)).all()


CHECKSUM = """
import hashlib
from tests.codec.test_entropy_exact import COMPACT, counts_of, random_model, random_tokens
print(hashlib.sha256(counts_of(random_model(COMPACT), random_tokens(40), 40).tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_any_number_of_threads_gives_the_same_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    digests = set()
    for threads in ("1", "5"):
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            monkeypatch.setenv(name, threads)
        done = subprocess.run([sys.executable, "-c", CHECKSUM], capture_output=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


def test_weights_and_activations_beyond_the_limits_are_cut_off_alike() -> None:
    """Absurd weights cost bits; they never make the sums inexact."""
    model = random_model(COMPACT)
    for parameter in model.parameters():
        parameter.data *= 1e6
    tokens = random_tokens(12)
    counts = counts_of(model, tokens, 12)
    assert (counts == counts_of(model, tokens, 1)).all()
    assert (np.diff(counts, prepend=0, axis=-1) >= 1).all()
    assert (counts[..., -1] == ONE).all()


def test_counts_are_shares_of_the_whole_with_something_for_everyone() -> None:
    logits = np.array([[0.0, 1e15, -1e15], [0.0, 0.0, 0.0]])
    counts = cumulative_counts(logits)
    assert counts[:, -1].tolist() == [ONE, ONE]
    assert np.diff(counts, prepend=0)[0].tolist() == [1, ONE - 2, 1]
    assert np.ptp(np.diff(counts, prepend=0)[1]) <= 1


def test_the_functions_are_those_that_they_are_named_after() -> None:
    x = np.linspace(-30, 0, 4001)
    np.testing.assert_allclose(exact_exp(x), np.exp(x), rtol=1e-8)
    y = np.linspace(-6, 6, 4001)
    normal = torch.special.ndtr(torch.from_numpy(y)).numpy()
    np.testing.assert_allclose(exact_normal(y), normal, atol=2e-7)
    turns = np.linspace(-3, 1000, 4001)
    np.testing.assert_allclose(exact_cosine(turns), np.cos(2 * np.pi * turns), atol=1e-8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"norm_order": "pre"}, "post-norm"),
        ({"position": "rotary"}, "sinusoidal"),
        ({"context": None}, "a context"),
        ({"width": 1024}, "too wide"),
    ],
)
def test_models_that_cannot_be_exact_are_refused(change: dict, reason: str) -> None:
    transformer = msgspec.structs.replace(TRANSFORMER, **change)
    with pytest.raises(ConfigError, match=reason):
        ExactEntropyModel(
            CompactEntropyModel(msgspec.structs.replace(COMPACT, transformer=transformer))
        )


def test_weights_that_are_not_finite_are_refused() -> None:
    model = random_model()
    next(model.parameters()).data.view(-1)[0] = torch.nan
    with pytest.raises(ConfigError, match="not finite"):
        ExactEntropyModel(model)
