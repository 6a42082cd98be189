"""From sound file to container and back, block by block: memory does not grow with the sound.

Compressing converts the sound to the codec's rate and channels, decompressing gives back the rate,
length and channels it had. Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from sonorant.audio import Audio, AudioInfo, AudioWriter, blocks, info
from sonorant.audio.sound import Converter, Samples, to_numpy
from sonorant.codec.codec import TRAINING_BUFFERS, Codec
from sonorant.codec.container import (
    FINGERPRINT_BYTES,
    Block,
    ContainerReader,
    ContainerWriter,
    Header,
)
from sonorant.codec.encoded import Encoded
from sonorant.errors import AudioError, CheckpointError, FormatError
from sonorant.hub.table import known
from sonorant.model import load

Progress = Callable[[float, float], None]
"""Called with the seconds done and the seconds in all."""

STEP_FRAMES = 75  # frames coded at once: one second of the 24 kHz models


def load_codec(name_or_path: str | Path) -> Codec:
    """Load a model that can compress. Raises: CheckpointError if it is none, and as `load`."""
    model = load(name_or_path)
    if not isinstance(model, Codec):
        raise CheckpointError(f"{name_or_path} is a model of {model.system!r}, which is no codec")
    return model


def fingerprint(model: Codec) -> bytes:
    """16 bytes that tell this codec from every other: of its config and weights, by SHA-256."""
    digest = hashlib.sha256(msgspec.json.encode(model.config))
    for name, tensor in sorted(model.saved_tensors().items()):
        if name.rsplit(".", 1)[-1] not in TRAINING_BUFFERS:
            digest.update(f"{name} {list(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.digest()[:FINGERPRINT_BYTES]


def compress_file(
    source: str | Path,
    target: str | Path,
    model: Codec,
    bandwidth_kbps: float | None = None,
    progress: Progress | None = None,
    mix_down: bool = False,
) -> None:
    """Write the container `target` with the sound of the file `source`.

    bandwidth_kbps: None for all codebooks. mix_down: make more than two channels one, by their
    mean, instead of refusing them.
    Raises: AudioError if the sound cannot be used, ConfigError for a bandwidth that the model does
    not have, FormatError if the target cannot be written.
    """
    found = info(source)
    if found.channels > 2 and not mix_down:
        raise AudioError(
            f"{source} has {found.channels} channels; the codec takes one or two: mix it down "
            "first, or allow it (--mix-down)"
        )
    header = _header_of(found, model, model.codebooks_for(bandwidth_kbps))
    state = model.init_state()
    length = STEP_FRAMES * model.hop_samples
    done = 0
    with ContainerWriter(target, header) as writer:
        rest = None
        for chunk in _chunks(source, found, model, length):
            done += chunk.samples.shape[-1]
            if chunk.samples.shape[-1] < length:
                rest = chunk
                break
            writer.write(model.encode_step(chunk, state, bandwidth_kbps))
            _tell(progress, done / model.sample_rate, found.duration_seconds)
        writer.write(model.encode_flush(state, rest, bandwidth_kbps))
        writer.finish(found.frames)
    _tell(progress, found.duration_seconds, found.duration_seconds)


def decompress_file(
    source: str | Path,
    target: str | Path,
    model: Codec | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the sound of the container `source` to the sound file `target`, at its original rate.

    model: None loads the one that the container names.
    Raises: FormatError if the container is damaged or of another model; AudioError if the target
    cannot be written.
    """
    reader = ContainerReader(source)
    model = model or _named_codec(reader)
    _check_model(reader, model)
    header, totals = reader.header, reader.totals
    converter = Converter(
        header.sample_rate, header.source_sample_rate, model.channels, header.source_channels
    )
    coded = _exactly(totals.samples, _decoded(reader, model), spare=0, name=reader.path)
    # Rounding at two rates may leave the sound some samples short.
    spare = 2 + 2 * header.source_sample_rate // header.sample_rate
    sound = _exactly(totals.source_samples, converter.stream(coded), spare, name=reader.path)
    done = 0
    with AudioWriter(target, header.source_sample_rate, header.source_channels) as writer:
        for piece in sound:
            writer.write(torch.from_numpy(piece.copy()))
            done += piece.shape[-1]
            _tell(progress, done / header.source_sample_rate, reader.duration_seconds)


def _chunks(source: str | Path, found: AudioInfo, model: Codec, length: int) -> Iterator[Audio]:
    """The source as the codec takes it, in chunks of `length` samples; the last may be shorter."""
    channels = 1 if found.channels > 2 else model.channels
    for chunk in blocks(source, length, sample_rate=model.sample_rate, channels=channels):
        yield chunk.to(channels=model.channels)


def _header_of(found: AudioInfo, model: Codec, codebooks: int) -> Header:
    return Header(
        model=model.name or "",
        fingerprint=fingerprint(model),
        codebooks=codebooks,
        source_sample_rate=found.sample_rate,
        source_channels=found.channels if found.channels <= 2 else 1,
        **_traits(model),
    )


def _traits(model: Codec) -> dict[str, Any]:
    """What every container of this model says about it."""
    return {
        "sample_rate": model.sample_rate,
        "channels": model.channels,
        "codebook_size": model.config.quantizer.codebook_size,
        "segmented": model.segmented,
        "scaled": model.scaled,
    }


def _named_codec(reader: ContainerReader) -> Codec:
    """The codec a container asks for, if the table knows it: a stranger's file must not choose
    what is read from disk or fetched from elsewhere."""
    name = reader.header.model
    if name not in known().models:
        asked = f"the model {name!r}, which is not in the table" if name else "an unnamed model"
        raise CheckpointError(f"{reader.path} was made by {asked}; say where it is (--model)")
    return load_codec(name)


def _check_model(reader: ContainerReader, model: Codec) -> None:
    header = reader.header
    ours = fingerprint(model)
    if header.fingerprint != ours:
        raise FormatError(
            f"{reader.path} was made by the model {header.model or 'without a name'} "
            f"({header.fingerprint.hex()[:8]}), not by {model.name or 'this one'} "
            f"({ours.hex()[:8]}); decompress it with the model that made it (--model)"
        )
    spare_codebooks = model.codebooks_for() - header.codebooks
    if replace(header, **_traits(model)) != header or spare_codebooks < 0:
        raise FormatError(f"{reader.path} does not describe its model as it is")


def _decoded(reader: ContainerReader, model: Codec) -> Iterator[Samples]:
    """The sound of a container at the codec's rate, `[channels, time]`."""
    state = model.init_state()
    for block in reader.blocks():
        for part in _steps(block, model):
            yield to_numpy(model.decode_step(part, state)[0])
    yield to_numpy(model.decode_flush(state)[0])


def _steps(block: Block, model: Codec) -> Iterator[Encoded]:
    """A block as the codec takes it: a segment as a whole, other tokens in short steps."""
    device = next(model.parameters()).device
    tokens = block.tokens.to(device)
    if not model.segmented:
        for part in tokens.split(STEP_FRAMES, dim=-1):
            yield Encoded(part, part.shape[-1] * model.hop_samples)
        return
    frames = tokens.shape[-1]
    if frames > model.frames_of(model.frame_samples):
        raise FormatError(f"a segment of {frames} frames is longer than this model's segments")
    scales = None if block.scale is None else torch.tensor([[block.scale]], device=device)
    yield Encoded(tokens, frames * model.hop_samples, scales, (frames,))


def _exactly(length: int, pieces: Iterable[Samples], spare: int, name: Path) -> Iterator[Samples]:
    """The first `length` samples of `pieces`; up to `spare` missing ones repeat the last.

    Raises: FormatError if more are missing.
    """
    left = length
    last: Samples | None = None
    for piece in pieces:
        if left and piece.shape[-1]:
            last = piece[:, :left]
            left -= last.shape[-1]
            yield last
    if left > spare or last is None:
        raise FormatError(f"{name} holds {length - left} samples of sound, but promises {length}")
    if left:
        yield np.repeat(last[:, -1:], left, axis=1)


def _tell(progress: Progress | None, done: float, total: float) -> None:
    if progress is not None:
        progress(min(done, total), total)
