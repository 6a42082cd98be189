"""The compact entropy model: what each token's logits depend on, its size, its storage."""

from pathlib import Path

import pytest
import torch

import sonorant
from sonorant.codec.entropy_coding import previous_tokens
from sonorant.codec.entropy_compact import CompactEntropyConfig, CompactEntropyModel
from sonorant.errors import ConfigError, ShapeError
from tests.codec.test_entropy_exact import COMPACT, random_model, random_tokens

LIMIT_BYTES = 3_000_000


@torch.no_grad()
def test_a_tokens_logits_depend_on_what_is_decoded_before_it() -> None:
    """On the frames before and on the coarser tokens of its frame; not on itself or finer ones."""
    model, tokens = random_model(COMPACT), random_tokens(6, codebooks=4)
    logits = model(previous_tokens(tokens), tokens)
    for codebook in range(4):
        changed = tokens.clone()
        changed[0, codebook, 3] = (changed[0, codebook, 3] + 1) % 16
        other = model(previous_tokens(changed), changed)
        differs = (other != logits).any(dim=1)[0]  # [codebooks, frames]
        expected = torch.zeros(4, 6, dtype=torch.bool)
        expected[:, 4:] = True
        expected[codebook + 1 :, 3] = True
        assert torch.equal(differs, expected)


@torch.no_grad()
def test_live_equals_offline() -> None:
    model, tokens = random_model(COMPACT), random_tokens(9)
    previous = previous_tokens(tokens)
    state = model.init_state()
    live = [
        model(before, frame, state)
        for before, frame in zip(previous.split(1, -1), tokens.split(1, -1), strict=True)
    ]
    torch.testing.assert_close(torch.cat(live, -1), model(previous, tokens), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_sequence_can_begin_at_any_position() -> None:
    model = random_model(COMPACT)
    previous = previous_tokens(random_tokens(4))
    at_zero, later = model.hidden(previous), model.hidden(previous, first_position=1000)
    assert not torch.allclose(later, at_zero, atol=1e-2)
    x = model.norm_in(model.embedding(previous))
    moved = model.transformer.positions.add(x, torch.arange(1000, 1004)[None])
    added = model.transformer.positions.add(x + model._moved(x, 1000), torch.arange(4)[None])
    torch.testing.assert_close(added, moved)


def test_the_default_is_small_enough_to_ship(tmp_path: Path) -> None:
    CompactEntropyModel(CompactEntropyConfig()).save_pretrained(tmp_path / "m", torch.float16)
    size = sum(path.stat().st_size for path in (tmp_path / "m").iterdir())
    assert 2_500_000 < size < LIMIT_BYTES


def test_it_is_saved_and_loaded_like_every_model(tmp_path: Path) -> None:
    model = random_model(COMPACT)
    model.save_pretrained(tmp_path / "m")
    loaded = sonorant.load(tmp_path / "m")
    assert isinstance(loaded, CompactEntropyModel)
    tokens = random_tokens(3)
    with torch.no_grad():
        assert torch.equal(
            loaded(previous_tokens(tokens), tokens), model(previous_tokens(tokens), tokens)
        )


def test_more_codebooks_than_it_has_are_refused() -> None:
    tokens = torch.zeros(1, 5, 2, dtype=torch.int64)
    with pytest.raises(ShapeError, match="1 to 4 codebooks, not 5"):
        random_model(COMPACT)(tokens, tokens)
    with pytest.raises(ConfigError, match="rank 0"):
        CompactEntropyConfig(rank=0)
