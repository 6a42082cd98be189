"""`.ecdc` files and the range coder under them, byte for byte.

Bytes are compared where the probabilities are given. Those of our own entropy model are compared as
numbers only: the same bytes from them would need the recording machine's rounding.
"""

import io
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from sonorant.codec.bits import pack_bits
from sonorant.codec.checkpoints import build, from_original
from sonorant.codec.ecdc import SCALE, EcdcReader, EcdcWriter
from sonorant.codec.encodec import EncodecCore
from sonorant.codec.encoded import Encoded
from sonorant.codec.entropy_coding import previous_tokens
from sonorant.codec.entropy_published import PublishedProbabilities
from sonorant.codec.range_coder import (
    RANGE_BITS,
    RangeDecoder,
    RangeEncoder,
    published_counts,
    shares,
)
from tests.parity.adapters.encodec import config_of
from tests.parity.adapters.entropy import model_of as entropy_of
from tests.parity.runner import Case


def arithmetic_coder(case: Case) -> dict[str, Tensor]:
    config = case.config
    counts = published_counts(
        case.input("pdf"), config["total_range_bits"], config["roundoff"], config["min_range"]
    )
    symbols = case.input("symbols")
    encoder = RangeEncoder(config["total_range_bits"])
    registers = []
    for share in shares(counts.numpy(), symbols.numpy()):
        encoder.push([share])
        registers.append((encoder.low, encoder.high, encoder.waiting_bits - 1))
    encoder.flush()
    low, high, max_bit = torch.tensor(registers).unbind(1)
    data = encoder.take()
    assert decoded(data, counts, config["total_range_bits"]) == symbols.tolist()
    computed = {
        "cdf": counts,
        "low_after": low,
        "high_after": high,
        "max_bit_after": max_bit,
        "bytes": byte_tensor(data),
    }
    for match in case.names(r"pack(\d+)\.values"):
        values = case.input(match[0]).numpy()
        computed[f"pack{match[1]}.bytes"] = byte_tensor(
            pack_bits(values, int(match[1]), first="little")
        )
    return computed


def byte_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def decoded(data: bytes, counts: Tensor, range_bits: int = RANGE_BITS) -> list[int]:
    """The symbols that bytes hold, given where the shares of each end [symbols, size]."""
    stream = io.BytesIO(data)
    decoder = RangeDecoder(lambda: stream.read(1), range_bits)
    symbols = [decoder.pull(row) for row in counts.numpy()]
    decoder.finish()
    assert not stream.read(), "the decoder leaves bytes unread"
    return symbols


@torch.no_grad()
def run(case: Case) -> dict[str, Tensor]:
    """Our tokens, probabilities and file of the recorded sound, and the recorded file decoded."""
    codec = codec_of(case)
    x = case.input("x")
    recorded = case.folder / "stream.ecdc"
    encoded = codec.encode_batch(x[None])
    # Fewer codebooks are simply the first ones.
    fewer = encoded.tokens[:, : EcdcReader(recorded).header.codebooks]
    encoded = replace(encoded, tokens=fewer)
    if "lm" in case.config:
        body = coded_body(case, encoded)
        header = EcdcReader(recorded).header.pack()
        assert header + body == recorded.read_bytes(), "other bytes than the recorded file"
    else:
        with TemporaryDirectory() as folder:
            ours = Path(folder) / "ours.ecdc"
            with EcdcWriter(ours, codec, encoded.codebooks, None) as writer:
                writer.write(encoded)
                writer.finish()
            assert ours.read_bytes() == recorded.read_bytes(), "other bytes than the recorded file"
        blocks = list(EcdcReader(recorded).blocks(codec))
        tokens = torch.cat([block.tokens for block in blocks], dim=-1)
        assert torch.equal(tokens, encoded.tokens), "other tokens than the recorded file"
        assert [block.scale for block in blocks] == scales_of(encoded)
    computed = {"decoded": codec.decode_batch(encoded)[0]}
    for index, (tokens, scale) in enumerate(segments_of(encoded)):
        computed[f"frame{index}.codes"] = tokens
        if scale is not None:
            computed[f"frame{index}.scale"] = torch.tensor([[scale]])
        if case.recorded(f"frame{index}.lm_probs"):
            computed[f"frame{index}.lm_probs"] = probabilities(case, tokens)
    return computed


def codec_of(case: Case) -> EncodecCore:
    weights = {key: tensor for key, tensor in case.weights.items() if not key.startswith("lm.")}
    codec = build(config_of(case.config))
    codec.load_state_dict(from_original(codec, weights))
    codec.name = EcdcReader(case.folder / "stream.ecdc").header.model
    return codec.eval()


def scales_of(encoded: Encoded) -> list[float | None]:
    frames = encoded.segment_frames or (encoded.frames,)
    return [None] * len(frames) if encoded.scales is None else encoded.scales[0].tolist()


def segments_of(encoded: Encoded) -> list[tuple[Tensor, float | None]]:
    """Tokens [1, codebooks, frames] and volume of each segment."""
    frames = list(encoded.segment_frames or (encoded.frames,))
    return list(zip(encoded.tokens.split(frames, dim=-1), scales_of(encoded), strict=True))


def coded_body(case: Case, encoded: Encoded) -> bytes:
    """What follows the header, coded with the recorded probabilities; decoding it is checked."""
    body = b""
    for index, (tokens, scale) in enumerate(segments_of(encoded)):
        recorded = case.io[f"frame{index}.lm_probs"][0].permute(
            2, 1, 0
        )  # [frames, codebooks, size]
        counts = published_counts(recorded).flatten(0, 1)
        symbols = tokens[0].t().flatten()
        encoder = RangeEncoder()
        encoder.push(shares(counts.numpy(), symbols.numpy()))
        encoder.flush()
        coded = encoder.take()
        assert decoded(coded, counts) == symbols.tolist()
        body += (b"" if scale is None else SCALE.pack(scale)) + coded
    return body


def probabilities(case: Case, tokens: Tensor) -> Tensor:
    """Those of our entropy model, frame by frame: [1, codebook_size, codebooks, frames]."""
    weights = {
        key.removeprefix("lm."): tensor
        for key, tensor in case.weights.items()
        if key.startswith("lm.")
    }
    steps = PublishedProbabilities(entropy_of(case.config["lm"], weights))
    frames = [steps.step(previous) for previous in previous_tokens(tokens)[0].unbind(-1)]
    return torch.stack(frames, dim=-1).transpose(0, 1)[None]


ADAPTERS = {"arithmetic_coder": arithmetic_coder, "ecdc24": run, "ecdc48": run}
