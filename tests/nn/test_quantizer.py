"""The residual quantizer: tokens, learning, replacement of unused codewords."""

import pytest
import torch

from sonorant.errors import ConfigError
from sonorant.nn.quantizer import (
    Codebook,
    QuantizerConfig,
    ResidualQuantizer,
    codebook_perplexity,
    kmeans,
)

SMALL = QuantizerConfig(dimension=4, codebooks=3, codebook_size=16, kmeans_iterations=10)


def trained(config: QuantizerConfig = SMALL) -> ResidualQuantizer:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(config).train()
    for _ in range(20):
        quantizer(torch.randn(4, config.dimension, 50))
    return quantizer.eval()


def test_every_level_brings_the_latent_closer() -> None:
    quantizer = trained()
    latent = torch.randn(2, 4, 30)
    tokens = quantizer.encode(latent)
    errors = [float((quantizer.decode(tokens[:, :n]) - latent).pow(2).mean()) for n in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]


def test_fewer_codebooks_give_the_first_tokens() -> None:
    quantizer = trained()
    latent = torch.randn(2, 4, 30)
    assert torch.equal(quantizer.encode(latent, 2), quantizer.encode(latent)[:, :2])


def test_forward_agrees_with_encode_and_decode_and_passes_gradients_straight() -> None:
    quantizer = trained()
    latent = torch.randn(2, 4, 30, requires_grad=True)
    quantized, tokens, penalty = quantizer(latent)
    assert torch.equal(tokens, quantizer.encode(latent.detach()))
    torch.testing.assert_close(quantized.detach(), quantizer.decode(tokens))
    weights = torch.randn_like(quantized)
    (gradient,) = torch.autograd.grad((quantized * weights).sum(), latent, retain_graph=True)
    torch.testing.assert_close(gradient, weights)
    assert float(penalty.detach()) > 0


def test_of_equally_near_codewords_the_first_wins() -> None:
    codebook = Codebook(SMALL)
    codebook.embed.copy_(torch.ones(16, 4))
    assert codebook.encode(torch.zeros(3, 4)).tolist() == [0, 0, 0]


def test_an_unused_codeword_is_replaced_by_a_vector_of_the_batch_and_stays_replaced() -> None:
    codebook = Codebook(SMALL)
    codebook.embed.copy_(torch.randn(16, 4))
    codebook.embed[3] = 1000.0  # nothing is near it
    codebook.usage.fill_(10.0)
    codebook.usage[3] = 0.0
    codebook.embed_sum.copy_(codebook.embed * codebook.usage[:, None])
    x = torch.randn(40, 4)
    codebook.learn(x, codebook.encode(x))
    replaced = codebook.embed[3].clone()
    assert bool((x == replaced).all(dim=-1).any())
    codebook.learn(x, codebook.encode(x))
    assert float((codebook.embed[3] - replaced).abs().max()) < 1.0


def test_no_codeword_is_replaced_when_the_share_is_zero() -> None:
    codebook = Codebook(QuantizerConfig(dimension=4, codebook_size=16, dead_code_share=0.0))
    codebook.embed.copy_(torch.randn(16, 4))
    codebook.embed[3] = 1000.0
    codebook.usage.fill_(10.0)
    codebook.embed_sum.copy_(codebook.embed * codebook.usage[:, None])
    x = torch.randn(40, 4)
    codebook.learn(x, codebook.encode(x))
    assert float(codebook.embed[3].min()) > 900.0


def test_replacement_brings_a_collapsed_codebook_back_into_use() -> None:
    def perplexity_after_training(dead_code_share: float) -> float:
        torch.manual_seed(0)
        config = QuantizerConfig(
            dimension=4, codebooks=1, codebook_size=16, dead_code_share=dead_code_share
        )
        quantizer = ResidualQuantizer(config).train()
        codebook = quantizer.layers[0]
        codebook.embed.fill_(1000.0)
        codebook.embed[0] = 0.0  # the only codeword near the vectors
        codebook.embed_sum.copy_(codebook.embed)
        codebook.usage.fill_(1.0)
        codebook.initialized.fill_(1)
        for _ in range(300):
            quantizer(torch.randn(1, 4, 100))
        tokens = quantizer.eval().encode(torch.randn(1, 4, 2000))
        return float(codebook_perplexity(tokens, 16)[0])

    assert perplexity_after_training(0.0) < 1.01
    assert perplexity_after_training(0.1) > 10


def test_a_checkpoint_of_codewords_alone_loads_and_can_be_trained_on() -> None:
    quantizer = trained()
    state = {name: t for name, t in quantizer.state_dict().items() if name.endswith("embed")}
    other = ResidualQuantizer(SMALL)
    other.load_state_dict(state)
    latent = torch.randn(1, 4, 9)
    assert torch.equal(other.encode(latent), quantizer.encode(latent))
    other.train()(latent)
    assert bool(torch.isfinite(other.layers[0].embed).all())


def test_kmeans_finds_separate_places() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(50, 2) * 0.01 + place for place in (0.0, 5.0)])
    means, counts = kmeans(x, 2, 20)
    assert sorted(means.mean(dim=1).round().tolist()) == [0.0, 5.0]
    assert counts.tolist() == [50.0, 50.0]


def test_perplexity_counts_codewords_in_use() -> None:
    tokens = torch.tensor([[[0, 1, 2, 3], [5, 5, 5, 5]]])
    torch.testing.assert_close(codebook_perplexity(tokens, 8), torch.tensor([4.0, 1.0]))


@pytest.mark.parametrize("codebooks", [0, 4])
def test_too_many_or_no_codebooks_are_refused(codebooks: int) -> None:
    with pytest.raises(ConfigError, match="1 to 3"):
        trained().encode(torch.randn(1, 4, 5), codebooks)


def test_residuals_are_what_each_level_quantises() -> None:
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(QuantizerConfig(dimension=3, codebooks=3, codebook_size=4))
    for layer in quantizer.layers:
        torch.nn.init.normal_(layer.embed)
    latent = torch.randn(2, 3, 5, requires_grad=True)
    tokens = quantizer.encode(latent.detach())
    residuals = quantizer.residuals(latent, tokens)
    assert residuals.shape == (2, 3, 3, 5)
    for level, layer in enumerate(quantizer.layers):
        vectors = residuals[:, level].transpose(1, 2).flatten(0, 1)
        assert torch.equal(layer.encode(vectors).view(2, 5), tokens[:, level])
    residuals.sum().backward()
    assert torch.equal(latent.grad, torch.full_like(latent, 3.0))


def test_codewords_laid_out_for_search_stay_the_same() -> None:
    torch.manual_seed(0)
    codebook = Codebook(QuantizerConfig(dimension=3, codebook_size=5))
    codebook.embed.normal_()
    x, before = torch.randn(7, 3), codebook.embed.clone()
    tokens = codebook.encode(x)
    codebook.lay_out_for_search()
    assert codebook.embed.stride() == (1, 5)
    assert torch.equal(codebook.embed, before)
    assert torch.equal(codebook.encode(x), tokens)
