"""The independence loss within codec training."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch

from sonorant.codec.encodec import Encodec
from sonorant.codec.independence_training import IndependencePromoter, IndependenceSettings
from sonorant.codec.training import CodecSettings
from sonorant.losses.independence import IndependenceConfig
from sonorant.training.engine import train
from tests.codec import test_training as codec_training
from tests.training.runs import assert_equal_states, final_state, log_lines

manifest = codec_training.manifest
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
