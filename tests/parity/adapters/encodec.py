"""EnCodec in its published layouts: latents, tokens, sound, layer by layer."""

import re
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sonorant.codec.audiocraft_checkpoints import (
    STATE_FILE,
    config_from_audiocraft,
    load_audiocraft,
)
from sonorant.codec.checkpoints import build, from_original, from_published, to_original
from sonorant.codec.encodec import Encodec, EncodecConfig, EncodecCore
from sonorant.codec.encodec_segments import SegmentedEncodec, volume
from sonorant.codec.encoded import Encoded
from sonorant.codec.huggingface_checkpoints import config_from_huggingface, huggingface_name
from sonorant.codec.stereo import InterleavedStereo
from sonorant.nn.quantizer import QuantizerConfig
from sonorant.nn.seanet import SEANetConfig, SEANetVariant
from tests.parity.runner import Case


def config_of(published: dict[str, Any]) -> EncodecConfig:
    """Of the arguments that the encodec package's classes were made with."""
    seanet = published["seanet"]
    variant = SEANetVariant(elu_alpha=seanet.get("activation_params", {}).get("alpha", 1.0))
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
            variant=msgspec.UNSET if variant == SEANetVariant() else variant,
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


def huggingface_codes(encoded: Encoded) -> tuple[Tensor, int]:
    """Tokens as transformers has them, [segments, batch, codebooks, frames], and how many frames
    the last segment lacks."""
    segments = encoded.tokens.split(list(encoded.segment_frames or [encoded.frames]), dim=-1)
    missing = segments[0].shape[-1] - segments[-1].shape[-1]
    return torch.stack([*segments[:-1], F.pad(segments[-1], (0, missing))]), missing


def codebooks_of(case: Case) -> int:
    """As the weights say, in either layout."""
    return sum(name.endswith("codebook.embed") for name in case.weights)


@torch.no_grad()
def huggingface(case: Case) -> dict[str, Tensor]:
    model = build(config_from_huggingface(case.config, codebooks_of(case)))
    model.load_state_dict(from_published(model.eval(), case.weights, huggingface_name))
    x = case.input("input_values")
    levels = case.io["audio_codes"].shape[2]
    kbps = next(b for b in model.config.target_bandwidths_kbps if model.codebooks_for(b) == levels)
    encoded = model.encode_batch(x, kbps)
    codes, missing = huggingface_codes(encoded)
    decoded = untrimmed(model, encoded)
    computed = {
        "audio_codes": codes,
        "last_frame_pad_length": torch.tensor(missing),
        "audio_values": decoded[..., : case.io["audio_values"].shape[-1]],
    }
    if encoded.scales is not None:
        computed["audio_scales"] = encoded.scales.t()[..., None]
    if case.recorded("padding_mask"):
        masked = model.encode_batch(x * case.input("padding_mask"), kbps)
        computed["masked.audio_codes"], missing = huggingface_codes(masked)
        computed["masked.last_frame_pad_length"] = torch.tensor(missing)
        computed["masked.audio_values"] = untrimmed(model, masked)
        if masked.scales is not None:
            computed["masked.audio_scales"] = masked.scales.t()[..., None]
    if case.recorded("original.equal"):
        original = build(model.config).eval()
        original.load_state_dict(from_original(original, to_original(model)))
        same = torch.equal(original.encode_batch(x, kbps).tokens, encoded.tokens)
        computed["original.equal"] = torch.tensor(same)
    return computed


@torch.no_grad()
def audiocraft(case: Case) -> dict[str, Tensor]:
    state = case.folder / STATE_FILE
    if state.is_file():
        _, config, tensors = load_audiocraft([state])
        model = build(config)
    else:
        model = build(config_from_audiocraft(case.config))
        tensors = from_original(model, case.weights)
    model.load_state_dict(tensors)
    model.eval()
    x = case.input("x")
    encoded = model.encode_batch(x)
    latent = model.quantizer.decode(encoded.tokens)
    computed = {
        "latent": model.encoder(normalized(model, x)),
        "codes": encoded.tokens,
        "decode_latent": latent,
        "decoded": untrimmed(model, encoded),
        "forward": model.decode_batch(encoded),
    }
    if encoded.scales is not None:
        computed["scale"] = encoded.scales
    for match in case.names(r"codes_nq(\d+)"):
        kbps = model.config.target_bandwidths_kbps[int(match[1]) - 1]
        computed[match[0]] = model.encode_batch(x, kbps).tokens
    if case.recorded("stereo.x"):
        computed |= stereo(case, model)
    computed |= layer_outputs(model.encoder, normalized(model, x[:1]), "enc")
    return computed | layer_outputs(model.decoder, latent[:1], "dec")


def stereo(case: Case, model: EncodecCore) -> dict[str, Tensor]:
    """The shape of the recorded tokens says how they are interleaved, and how many books there are.

    Codebooks take turns where there are as many frames as the sound has.
    """
    x, codes = case.input("stereo.x"), case.io["stereo.codes"]
    per_timestep = codes.shape[-1] != model.frames_of(x.shape[-1])
    levels = codes.shape[1] if per_timestep else codes.shape[1] // 2
    both = InterleavedStereo(model, per_timestep)
    encoded = both.encode_batch(x, model.config.target_bandwidths_kbps[levels - 1])
    whole_frames = Encoded(encoded.tokens, model.frames_of(x.shape[-1]) * model.hop_samples)
    return {"stereo.codes": encoded.tokens, "stereo.decoded": both.decode_batch(whole_frames)}


def run(case: Case) -> dict[str, Tensor]:
    """By the layout that the config is of; then per segment where the published model works in
    segments or normalises."""
    if "model_type" in case.config:
        return huggingface(case)
    if "rvq" in case.config:
        return audiocraft(case)
    return segmented(case) if case.recorded("frame0.codes") else whole(case)


ADAPTERS = {"encodec": run, "audiocraft_encodec": run}
