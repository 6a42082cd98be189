"""EnCodec, original layout: causal and segmented models, latents, tokens, sound, layer by layer."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from sonorant.codec.checkpoints import build, from_original
from sonorant.codec.encodec import Encodec, EncodecConfig, EncodecCore
from sonorant.codec.encodec_segments import SegmentedEncodec, volume
from sonorant.codec.encoded import Encoded
from sonorant.nn.quantizer import QuantizerConfig
from sonorant.nn.seanet import SEANetConfig
from tests.parity.runner import Case


def config_of(published: dict[str, Any]) -> EncodecConfig:
    seanet = published["seanet"]
    return EncodecConfig(
        sample_rate=published["sample_rate"],
        target_bandwidths_kbps=tuple(published["target_bandwidths"]),
        seanet=SEANetConfig(
            channels=seanet["channels"],
            dimension=seanet["dimension"],
            base_filters=seanet["n_filters"],
            ratios=tuple(seanet["ratios"]),
            residual_layers=seanet["n_residual_layers"],
            kernel_size=seanet["kernel_size"],
            last_kernel_size=seanet["last_kernel_size"],
            residual_kernel_size=seanet["residual_kernel_size"],
            dilation_base=seanet["dilation_base"],
            compress=seanet["compress"],
            lstm_layers=seanet["lstm"],
            skip="identity" if seanet["true_skip"] else "convolution",
            causal=seanet["causal"],
            pad_mode={"constant": "zero"}.get(seanet["pad_mode"], seanet["pad_mode"]),
            norm=seanet["norm"],
            trim_right_ratio=seanet["trim_right_ratio"],
        ),
        quantizer=QuantizerConfig(
            dimension=seanet["dimension"],
            codebooks=published["n_q"],
            codebook_size=published["bins"],
        ),
        segment_seconds=published["segment"],
        overlap=published["overlap"],
        normalize=published["normalize"],
    )


def model_of(case: Case) -> EncodecCore:
    model = build(config_of(case.config))
    model.load_state_dict(from_original(model, case.weights))
    return model.eval()


def layer_outputs(module: nn.Module, x: Tensor, prefix: str) -> dict[str, Tensor]:
    outputs = {}
    for index, layer in enumerate(module.layers):  # type: ignore[arg-type]
        x = layer(x)
        outputs[f"{prefix}.{index}"] = x
    return outputs


def normalized(model: EncodecCore, x: Tensor) -> Tensor:
    """What the encoder sees of one segment."""
    return x / volume(x)[:, None, None] if model.config.normalize else x


def untrimmed(model: EncodecCore, encoded: Encoded) -> Tensor:
    """The decoded sound with the padding of the last frame."""
    if isinstance(model, SegmentedEncodec):
        return model.decode_tokens(encoded)
    assert isinstance(model, Encodec)
    return model.decode_tokens(encoded.tokens)


@torch.no_grad()
def whole(case: Case) -> dict[str, Tensor]:
    model = model_of(case)
    x = case.input("x")
    encoded = model.encode_batch(x)
    computed = {
        "latent": model.encoder(normalized(model, x)),
        "codes": encoded.tokens,
        "quantized": model.quantizer.decode(encoded.tokens),
        "decoded": untrimmed(model, encoded),
        "forward": model.decode_batch(encoded),
    }
    if encoded.scales is not None:
        computed["scale"] = encoded.scales
    for match in case.names(r"bw([\d.]+)\.codes"):
        narrow = model.encode_batch(x, bandwidth_kbps=float(match[1]))
        computed[f"bw{match[1]}.codes"] = narrow.tokens
        computed[f"bw{match[1]}.decoded"] = untrimmed(model, narrow)
    for match in case.names(r"short(\d+)\.codes"):
        short = x[:1, :, : int(match[1])]
        few = model.encode_batch(short)
        computed[f"short{match[1]}.latent"] = model.encoder(normalized(model, short))
        computed[f"short{match[1]}.codes"] = few.tokens
        computed[f"short{match[1]}.decoded"] = untrimmed(model, few)
    computed |= layer_outputs(model.encoder, normalized(model, x[:1]), "enc")
    computed |= layer_outputs(model.decoder, model.quantizer.decode(encoded.tokens[:1]), "dec")
    return computed


def silence_samples(case: Case, model: EncodecCore) -> int:
    """Length of the silent input: as the README says, else whole frames."""
    stated = re.search(r"all-zero[^|]*?(\d+) samples", case.readme)
    return int(stated[1]) if stated else case.io["silence.codes"].shape[-1] * model.hop_samples


@torch.no_grad()
def segmented(case: Case) -> dict[str, Tensor]:
    model = model_of(case)
    assert isinstance(model, SegmentedEncodec)
    x = case.input("x")
    encoded = model.encode_batch(x)
    computed = {"decoded": model.decode_tokens(encoded), "forward": model.decode_batch(encoded)}
    tokens = encoded.tokens.split(list(encoded.segment_frames), dim=-1)
    offset = 0
    lengths = model.segment_lengths(x.shape[-1])
    sounds = model.decode_segments(encoded)
    for index, length in enumerate(lengths):
        segment = x[..., offset : offset + length]
        computed[f"frame{index}.codes"] = tokens[index]
        computed[f"frame{index}.decoded"] = sounds[index]
        if encoded.scales is not None:
            scale = encoded.scales[:, index]
            computed[f"frame{index}.scale"] = scale[:, None]
            segment = segment / scale[:, None, None]
        computed[f"frame{index}.latent"] = model.encoder(segment)
        offset += model.stride_samples or length
    if case.recorded("silence.codes"):
        silent = torch.zeros(1, model.channels, silence_samples(case, model))
        encoded = model.encode_batch(silent)
        computed["silence.codes"] = encoded.tokens
        computed["silence.decoded"] = model.decode_tokens(encoded)
        if encoded.scales is not None:
            computed["silence.scale"] = encoded.scales
    for match in case.names(r"norm(\d+)"):
        part = normalized(model, x[:1, :, : int(match[1])])
        computed[match[0]] = part
        computed |= layer_outputs(model.encoder, part, "enc")
    return computed


def run(case: Case) -> dict[str, Tensor]:
    """Recorded per segment where the published model works in segments or normalises."""
    return segmented(case) if case.recorded("frame0.codes") else whole(case)


ADAPTERS = {"encodec24": run, "encodec48": run}
