from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import sonorant
from sonorant.cli.decompress import decompress
from sonorant.codec.container import Block
from sonorant.codec.diffusion_files import DiffusionDecoder, cross_fade
from sonorant.codec.encoded import Encoded
from sonorant.codec.files import compress_file, decompress_file
from sonorant.errors import ConfigError
from tests.codec.test_multiband_diffusion import codec, diffusion, sound


def decoder(window: float = 10.0, shared: float = 1.0) -> DiffusionDecoder:
    return DiffusionDecoder(diffusion(), calls=2, window_seconds=window, shared_seconds=shared)


def tokens(frames: int) -> torch.Tensor:
    return torch.randint(16, (1, 2, frames), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("frames", [1, 7, 10, 29, 30, 31, 100])
def test_windows_give_every_frame_once(frames: int) -> None:
    """200 frames a second: windows of 20 frames, of which 5 are shared."""
    blocks = [Block(part, None) for part in tokens(frames).split(8, dim=-1)]
    made = list(decoder(0.1, 0.025)(blocks, codec()))
    assert sum(piece.shape[-1] for piece in made) == frames * 40
    assert all(piece.shape[0] == 1 for piece in made)


def test_one_window_is_what_the_model_makes_of_the_whole() -> None:
    coder = codec()
    (whole,) = diffusion().decode_batch(Encoded(tokens(50), 2000), coder, calls=2)
    made = [torch.from_numpy(piece) for piece in decoder()([Block(tokens(50), None)], coder)]
    assert torch.equal(torch.cat(made, dim=-1), whole)


def test_where_windows_meet_one_fades_into_the_other() -> None:
    """Windows of 20 frames, the second from frame 15 on."""
    parts = tokens(36)
    made = torch.from_numpy(
        np.concatenate(list(decoder(0.1, 0.025)([Block(parts, None)], codec())), axis=-1)
    )
    first, second = (
        diffusion().decode_batch(Encoded(x, x.shape[-1] * 40), codec(), seed, calls=2)[0]
        for seed, x in enumerate((parts[..., :20], parts[..., 15:]))
    )
    assert torch.equal(made[:, :600], first[:, :600])
    assert torch.equal(made[:, 800:], second[:, 200:])
    assert torch.equal(made[:, 600:800], cross_fade(first[:, 600:], second[:, :200]))


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_the_level_stays_the_same_through_a_fade(alike: float) -> None:
    torch.manual_seed(0)
    common, first, second = torch.randn(3, 2, 80_000)
    own = (1 - alike) ** 0.5
    before, after = (alike**0.5 * common + own * each for each in (first, second))
    faded = cross_fade(before, after)
    levels_db = 10 * faded.unflatten(-1, (8, -1)).square().mean(-1).log10()
    assert float(levels_db.abs().max()) < 0.3
    assert torch.equal(faded[:, 0], before[:, 0])
    assert torch.equal(faded[:, -1], after[:, -1])


def test_the_level_of_a_long_sound_does_not_dip_where_windows_meet() -> None:
    """Windows of two seconds, each shared with both neighbours, so that all but the ends fades."""
    parts = torch.randint(16, (1, 2, 20 * 200), generator=torch.Generator().manual_seed(0))
    made = np.concatenate(list(decoder(2.0, 1.0)([Block(parts, None)], codec())), axis=-1)[0]
    eighths = made[8000:-8000].reshape(-1, 8, 1000)
    levels_db = 10 * np.log10(np.mean(np.square(eighths), axis=(0, 2)))
    assert np.ptp(levels_db) < 1


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    """A folder with a sound, the models, and the compressed file."""
    coder = codec()
    coder.save_pretrained(tmp_path / "codec")
    diffusion().save_pretrained(tmp_path / "diffusion")
    sonorant.write(tmp_path / "in.wav", sound(5000, rate=12_000))
    for name, kbps in (("in.snr", 1.6), ("low.snr", 0.8)):
        loaded = sonorant.load(tmp_path / "codec")
        compress_file(tmp_path / "in.wav", tmp_path / name, loaded, bandwidth_kbps=kbps)
    return tmp_path


def test_files_come_back_by_diffusion_at_their_own_rate_and_length(compressed: Path) -> None:
    arguments = [str(compressed / name) for name in ("in.snr", "out.wav")]
    models = ["--model", str(compressed / "codec"), "--diffusion", str(compressed / "diffusion")]
    result = CliRunner().invoke(decompress, [*arguments, *models], catch_exceptions=False)
    assert result.exit_code == 0
    made = sonorant.read(compressed / "out.wav")
    assert (made.sample_rate, made.samples.shape) == (12_000, (1, 5000))
    plain = compressed / "plain.wav"
    decompress_file(compressed / "in.snr", plain, sonorant.load(compressed / "codec"))
    assert not torch.allclose(made.samples, sonorant.read(plain).samples, atol=1e-3)


def test_a_bandwidth_below_the_models_is_refused_and_leaves_nothing(compressed: Path) -> None:
    target = compressed / "out.wav"
    with pytest.raises(ConfigError, match="trained on 2 codebooks"):
        decompress_file(
            compressed / "low.snr", target, sonorant.load(compressed / "codec"), decoder=decoder()
        )
    assert not target.exists()
