"""The independence loss within codec training."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from sonorant.codec.decoder_training import DecoderOnly
from sonorant.codec.encodec import Encodec
from sonorant.codec.independence_training import IndependencePromoter, IndependenceSettings
from sonorant.codec.training import CodecSettings
from sonorant.errors import ConfigError
from sonorant.losses.independence import IndependenceConfig
from sonorant.training.engine import train
from tests.codec import test_mimi_training as mimi_training
from tests.codec import test_training as codec_training
from tests.codec.test_mimi import tiny_mimi
from tests.training.runs import assert_equal_states, final_state, log_lines

manifest = codec_training.manifest
mimi_manifest = mimi_training.manifest
THREE_BATCHES = IndependenceSettings(stored_batches=3, loss=IndependenceConfig(delayed=False))


def small_codec() -> Encodec:
    torch.manual_seed(0)
    codec = Encodec(codec_training.TINY_CODEC).train()
    codec.quantizer.initialize(codec.encoder(torch.randn(4, 1, 2000)).detach(), 100)
    return codec


def settings(manifest: Path) -> CodecSettings:
    plain = codec_training.settings(manifest)
    return msgspec.structs.replace(plain, independence=THREE_BATCHES)


def test_a_gradient_comes_once_enough_batches_are_kept() -> None:
    codec, promoter = small_codec(), IndependencePromoter(THREE_BATCHES)
    told = []
    for _ in range(6):
        told.append(promoter.backward(codec, torch.randn(2, 1, 400)))
        moved = any(p.grad is not None and bool(p.grad.any()) for p in codec.encoder.parameters())
        assert moved == ("independence" in told[-1])
        codec.zero_grad(set_to_none=True)
    assert [len(metrics) for metrics in told] == [0, 0, 1, 0, 0, 1]


def test_only_the_encoder_is_pulled() -> None:
    codec, promoter = small_codec(), IndependencePromoter(THREE_BATCHES)
    codebooks = [layer.embed.clone() for layer in codec.quantizer.layers]
    for _ in range(3):
        promoter.backward(codec, torch.randn(2, 1, 400))
    assert all(parameter.grad is None for parameter in codec.decoder.parameters())
    assert all(map(torch.equal, codebooks, (layer.embed for layer in codec.quantizer.layers)))


def test_only_what_lies_before_mimis_codebooks_is_pulled() -> None:
    codec, promoter = tiny_mimi().train(), IndependencePromoter(THREE_BATCHES)
    told = [promoter.backward(codec, torch.randn(2, 1, 32 * 16)) for _ in range(3)]
    assert ["independence" in metrics for metrics in told] == [False, False, True]
    pulled = {name for name, p in codec.named_parameters() if p.grad is not None and p.grad.any()}
    parts = ("encoder", "encoder_transformer", "downsample", "quantizer")
    assert {name.split(".")[0] for name in pulled} == set(parts)
    assert not any(name.endswith("output_proj.weight") for name in pulled)


def test_what_mimis_levels_quantise_is_what_their_tokens_are_nearest_to() -> None:
    """In the space of each part; the acoustic levels begin with the latent itself again."""
    quantizer, latent = tiny_mimi().quantizer, torch.randn(2, 8, 5)
    tokens = quantizer.encode(latent)
    residuals = quantizer.residuals(latent, tokens)
    assert residuals.shape == (2, 4, 4, 5)
    layers = [*quantizer.semantic.levels.layers, *quantizer.acoustic.levels.layers]
    for level, layer in enumerate(layers):
        vectors = residuals[:, level].transpose(1, 2).flatten(0, 1)
        assert torch.equal(layer.encode(vectors), tokens[:, level].flatten())
    torch.testing.assert_close(quantizer.residuals(latent, tokens[:, :1]), residuals[:, :1])


def test_a_mimi_recipe_trains_independence_and_logs_it(mimi_manifest: Path, tmp_path: Path) -> None:
    chosen = mimi_training.settings(mimi_manifest, independence=THREE_BATCHES)
    metrics = mimi_training.run(mimi_training.MimiTask(chosen), steps=3)
    assert ["independence" in step for step in metrics] == [False, False, True]
    kept = mimi_training.MimiTask(chosen)
    mimi_training.run(kept, steps=2)
    resumed = mimi_training.MimiTask(chosen)
    resumed.load_extra_state(kept.extra_state())
    assert "independence" in mimi_training.run(resumed)[0]
    with pytest.raises(ConfigError, match="take out independence"):
        msgspec.structs.replace(chosen, decoder_only=DecoderOnly(), model="some")


def test_encoding_kept_batches_again_gives_the_gradient_of_one_large_batch() -> None:
    batches = torch.randn(3, 2, 1, 400).unbind()
    gradients = []
    for kept, parts in ((3, batches), (1, [torch.cat(batches)])):
        codec = small_codec()
        promoter = IndependencePromoter(msgspec.structs.replace(THREE_BATCHES, stored_batches=kept))
        for part in parts:
            torch.manual_seed(7)  # the same shuffles
            promoter.backward(codec, part)
        gradients.append(torch.cat([p.grad.flatten() for p in codec.encoder.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * float(gradients[0].abs().max()))


def test_resumed_training_knows_the_batches_kept_before(manifest: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(codec_training.recipe(settings(manifest), log_every=1), whole)
    train(codec_training.recipe(settings(manifest), steps=4), parts)
    train(codec_training.recipe(settings(manifest)), parts, resume=True)
    assert_equal_states(final_state(whole), final_state(parts))
    lines = [line for line in log_lines(whole) if line["kind"] == "train"]
    assert ["independence" in line for line in lines] == [False, False, True] * 2
