"""Mimi of the moshi and transformers packages: stages, tokens, sound, live sessions with masks."""

import re

import torch
from torch import Tensor

from sonorant.codec import mimi_configs
from sonorant.codec.mimi import Mimi
from sonorant.codec.mimi_checkpoints import from_moshi, from_transformers
from tests.parity.runner import Case


def moshi_model(case: Case) -> Mimi:
    config = mimi_configs.from_moshi(case.config)
    model = Mimi(config)
    model.load_state_dict(from_moshi(config, case.weights))
    return model.eval()


def transformers_model(case: Case) -> Mimi:
    config = mimi_configs.from_transformers(case.config)
    model = Mimi(config)
    model.load_state_dict(from_transformers(config, case.weights))
    return model.eval()


def stages(model: Mimi, x: Tensor) -> dict[str, Tensor]:
    """What every part gives, whole sounds at once."""
    seanet = model.encoder(x)
    encoded = model.encoder_transformer(seanet.transpose(1, 2)).transpose(1, 2)
    tokens = model.encode_batch(x).tokens
    quantized = model.quantizer.decode(tokens)
    upsampled = model.upsample(quantized)
    return {
        "enc.seanet": seanet,
        "enc.transformer": encoded,
        "enc.latent": model.downsample(encoded),
        "codes": tokens,
        "dec.latent": quantized,
        "dec.upsample": upsampled,
        "dec.transformer": model.decoder_transformer(upsampled.transpose(1, 2)).transpose(1, 2),
        "decoded": model.decode_tokens(tokens),
    }


def live(model: Mimi, x: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Tokens and sound, `frames` frames per call."""
    state = model.init_state(x.shape[0])
    steps = [model.encode_step(part, state) for part in x.split(frames * model.hop_samples, -1)]
    sounds = [model.decode_step(step, state) for step in steps]
    return torch.cat([step.tokens for step in steps], -1), torch.cat(sounds, -1)


def masked(model: Mimi, x: Tensor, active: Tensor, resets: Tensor) -> tuple[Tensor, Tensor]:
    """One frame per call, with rows that pause and rows that start again."""
    state = model.init_state(x.shape[0])
    tokens, sounds = [], []
    for step, chunk in enumerate(x.split(model.hop_samples, -1)):
        if resets[step].any():
            state.reset(resets[step])
        state.set_active(active[step])
        encoded = model.encode_step(chunk, state)
        tokens.append(encoded.tokens)
        sounds.append(model.decode_step(encoded, state))
    return torch.cat(tokens, -1), torch.cat(sounds, -1)


@torch.no_grad()
def moshi(case: Case) -> dict[str, Tensor]:
    model = moshi_model(case)
    as_published = model.with_published_ring()
    x = case.input("x")
    computed = stages(model, x)
    for match in case.names(r"(\w+)\.x_len"):
        odd = x[:1, :, : int(case.input(match[0]))]
        computed[f"{match[1]}.codes"] = tokens = model.encode_batch(odd).tokens
        computed[f"{match[1]}.decoded"] = model.decode_tokens(tokens)
    for match in case.names(r"nq(\d+)\.codes"):
        few = model.encode_batch(x, model.bandwidth_of(int(match[1]))).tokens
        computed[match[0]] = few
        computed[f"nq{match[1]}.decoded"] = model.decode_tokens(few)
    for match in case.names(r"stream(\d*)\.codes"):
        length = case.io[match[0]].shape[-1] * model.hop_samples
        tokens, sound = live(as_published, x[..., :length], int(match[1] or 1))
        computed[match[0]], computed[f"stream{match[1]}.decoded"] = tokens, sound
    if case.recorded("mask.codes"):
        active = case.input("mask.exec_mask").bool()
        resets = case.input("mask.reset_before").bool()
        tokens, sound = masked(as_published, x, active, resets)
        computed["mask.codes"], computed["mask.decoded"] = tokens, sound
    return computed


def odd_length(case: Case) -> int:
    """The README says it as frames * hop + rest, or as one number."""
    stated = re.search(r"odd\.\w+`.*?length (\d+)(?:\*(\d+)\+(\d+))?", case.readme)
    assert stated is not None, "the README does not state the odd length"
    frames, hop, rest = (int(number or 0) for number in stated.groups())
    return frames * hop + rest if hop else frames


@torch.no_grad()
def transformers(case: Case) -> dict[str, Tensor]:
    model = transformers_model(case)
    x = case.input("input_values")
    tokens = model.encode_batch(x).tokens
    computed = {"audio_codes": tokens, "audio_values": model.decode_tokens(tokens)}
    for match in case.names(r"nq(\d+)\.audio_codes"):
        computed[match[0]] = model.encode_batch(x, model.bandwidth_of(int(match[1]))).tokens
    if case.recorded("odd.audio_codes"):
        odd = x[:1, :, : odd_length(case)]
        # Transformers pads every convolution's last frame, moshi the sound.
        computed["odd.audio_codes"] = model.quantizer.encode(model.to_latent(odd))
        computed["odd.moshi_codes"] = model.encode_batch(odd).tokens
    return computed


def run(case: Case) -> dict[str, Tensor]:
    return transformers(case) if case.config.get("model_type") == "mimi" else moshi(case)


ADAPTERS = {"mimi": run}
