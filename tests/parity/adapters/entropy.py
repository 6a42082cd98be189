"""EnCodec's entropy model: frame by frame, in one call, with fewer codebooks, and what it keeps."""

from typing import Any

import torch
from torch import Tensor, nn

from sonorant.codec.entropy_checkpoints import from_original
from sonorant.codec.entropy_coding import EntropyConfig, EntropyModel, previous_tokens
from sonorant.nn.transformer import TransformerConfig
from tests.parity.runner import Case


def config_of(published: dict[str, Any]) -> EntropyConfig:
    return EntropyConfig(
        codebooks=published["n_q"],
        codebook_size=published["card"],
        norm_in=published["norm_in"],
        transformer=TransformerConfig(
            width=published["dim"],
            layers=published["num_layers"],
            heads=published["num_heads"],
            hidden=int(published["dim"] * published["hidden_scale"]),
            feed_forward="gelu" if published["gelu"] else "relu",
            norm_order="pre" if published["norm_first"] else "post",
            position="sinusoidal",
            max_period=published["max_period"],
            bias=True,
            context=published["past_context"] + 1,
            live_chunk=1,
        ),
    )


def model_of(published: dict[str, Any], weights: dict[str, Tensor]) -> EntropyModel:
    config = config_of(published)
    model = EntropyModel(config)
    model.load_state_dict(from_original(config, weights))
    return model.eval()


@torch.no_grad()
def run(case: Case) -> dict[str, Tensor]:
    """The published state is what went into each layer's attention, after one zero vector."""
    model = model_of(case.config, case.weights)
    tokens = case.input("codes")
    previous = previous_tokens(tokens)
    heard: list[list[Tensor]] = []
    hooks = []
    for layer in model.transformer.layers:
        inputs = [torch.zeros(len(tokens), 1, model.config.transformer.width)]

        def listen(_: nn.Module, args: tuple[Any, ...], inputs: list[Tensor] = inputs) -> None:
            inputs.append(args[0])

        hooks.append(layer.attention.register_forward_pre_hook(listen))
        heard.append(inputs)
    state = model.init_state(len(tokens))
    steps = [model.probabilities(frame, state) for frame in previous.split(1, dim=-1)]
    for hook in hooks:
        hook.remove()
    computed = {
        "probs_streaming": torch.cat(steps, dim=-1),
        "probs_full": model.probabilities(previous),
    }
    for index, inputs in enumerate(heard):
        kept = torch.cat(inputs, dim=1)[:, -case.config["past_context"] :]
        computed[f"final_state.{index}"] = kept
    if case.recorded("probs_fewer_codebooks"):
        _, _, codebooks, frames = case.io["probs_fewer_codebooks"].shape
        fewer = 1 + tokens[:, :codebooks, :frames]
        computed["probs_fewer_codebooks"] = model.probabilities(fewer)
    return computed


ADAPTERS = {"encodec_lm": run}
