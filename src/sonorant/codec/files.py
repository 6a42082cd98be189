"""From sound file to small file and back, block by block: memory does not grow with the sound.

Compressing converts the sound to the codec's rate and channels. Our own container gives back the
rate, length and channels it had; an `.ecdc` file, chosen by that ending, the codec's. Files appear
whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from sonorant.audio import Audio, AudioInfo, AudioWriter, blocks, info
from sonorant.audio.sound import Converter, Samples, to_numpy
from sonorant.codec.codec import Codec
from sonorant.codec.container import Block, ContainerReader, ContainerWriter
from sonorant.codec.container_layout import FINGERPRINT_BYTES, Header
from sonorant.codec.ecdc import SUFFIX, EcdcReader, EcdcWriter
from sonorant.codec.encodec_segments import SegmentedEncodec
from sonorant.codec.encoded import Encoded
from sonorant.codec.entropy_coder import EntropyCoder
from sonorant.codec.entropy_coding import EntropyCore
from sonorant.errors import AudioError, CheckpointError, FormatError
from sonorant.hub.checkpoint import CONFIG_FILE
from sonorant.hub.table import known
from sonorant.model import Model, load

Progress = Callable[[float, float], None]
"""Called with the seconds done and the seconds in all."""
Decoder = Callable[[Iterable[Block], Codec], Iterator[Samples]]
"""Turns blocks of tokens into the codec's sound, `[channels, time]` at its rate, piece by piece."""

STEP_FRAMES = 75  # frames coded at once: one second of the 24 kHz models
ENTROPY_FOLDER = "entropy"
"""Where a codec in a folder has its entropy model."""


def load_codec(name_or_path: str | Path) -> Codec:
    """Load a model that can compress. Raises: CheckpointError if it is none, and as `load`."""
    model = load(name_or_path)
    if not isinstance(model, Codec):
        raise CheckpointError(f"{name_or_path} is a model of {model.system!r}, which is no codec")
    return model


def load_entropy_model(codec: Codec, name_or_path: str | Path | None = None) -> EntropyCore:
    """The entropy model that belongs to a codec.

    It lies in the folder `entropy` inside the codec's own, or the table names it.
    name_or_path: what the codec was loaded by, where it is not one of the table's.
    Raises: CheckpointError if the codec has none, or one that does not fit; and as `load`.
    """
    name = _entropy_model_of(codec, name_or_path)
    model = load(name)
    if not isinstance(model, EntropyCore):
        raise CheckpointError(f"{name} is a model of {model.system!r}, not an entropy model")
    return model


def _entropy_model_of(codec: Codec, name_or_path: str | Path | None) -> str | Path:
    entry = known().models.get(codec.name or "")
    folders = [Path(name_or_path)] if name_or_path is not None else []
    if entry is not None and entry.package_folder is not None:
        folders.append(entry.package_folder)
    for folder in folders:
        own = (folder.parent if folder.is_file() else folder) / ENTROPY_FOLDER
        if (own / CONFIG_FILE).is_file():
            return own
    if entry is not None and entry.entropy is not None:
        return entry.entropy
    raise CheckpointError(
        f"{name_or_path or codec.name or 'this codec'} has no entropy model; compress without "
        f"entropy coding, or train one and put it into the folder {ENTROPY_FOLDER!r} inside the "
        "codec's own (recipes/entropy-24khz-small.yaml)"
    )


def fingerprint(model: Model) -> bytes:
    """16 bytes that tell this model from every other: of its config and weights, by SHA-256."""
    digest = hashlib.sha256(msgspec.json.encode(model.config))
    for name, tensor in sorted(model.saved_tensors().items()):
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
    entropy: EntropyCore | None = None,
) -> None:
    """Write the container or `.ecdc` file `target` with the sound of the file `source`.

    bandwidth_kbps: None for all codebooks. mix_down: make more than two channels one, by their
    mean, instead of refusing them. entropy: the codec's entropy model (`load_entropy_model`), to
    code the tokens with; None packs them.
    Raises: AudioError if the sound cannot be used, ConfigError for a bandwidth that the model does
    not have, CheckpointError for models that cannot write such a file, FormatError if the target
    cannot be written.
    """
    found = info(source)
    if found.channels > 2 and not mix_down:
        raise AudioError(
            f"{source} has {found.channels} channels; the codec takes one or two: mix it down "
            "first, or allow it (--mix-down)"
        )
    codebooks = model.codebooks_for(bandwidth_kbps)
    with _writer(target, found, model, codebooks, entropy) as writer:
        for encoded, seconds in _encoded(source, found, model, bandwidth_kbps):
            writer.write(encoded)
            _tell(progress, seconds, found.duration_seconds)
        if isinstance(writer, EcdcWriter):
            writer.finish()
        else:
            writer.finish(found.frames)


def open_compressed(source: str | Path) -> ContainerReader | EcdcReader:
    """A file to decompress; its ending says which kind it is. Raises: FormatError if damaged."""
    return EcdcReader(source) if Path(source).suffix.lower() == SUFFIX else ContainerReader(source)


def decompress_file(
    source: str | Path,
    target: str | Path,
    model: Codec | None = None,
    progress: Progress | None = None,
    entropy: EntropyCore | None = None,
    decoder: Decoder | None = None,
) -> None:
    """Write the sound of the file `source` to the sound file `target`.

    From a container it comes back at its original rate, from an `.ecdc` file at the codec's.
    model: None loads the one that the file names. entropy: None loads the one that belongs to the
    model, where the file was coded with one. decoder: makes the sound in place of the codec.
    Raises: FormatError if the file is damaged or of another model; AudioError if the target cannot
    be written; CheckpointError if a model cannot be loaded.
    """
    reader = open_compressed(source)
    model = model or _named_codec(reader)
    if reader.coded and entropy is None:
        entropy = load_entropy_model(model)
    if isinstance(reader, EcdcReader):
        sound = _sound_of_ecdc(reader, model, entropy, decoder or _decoded)
    else:
        sound = _sound_of_container(reader, model, entropy, decoder or _decoded)
    done = 0
    with AudioWriter(target, sound.sample_rate, sound.channels) as writer:
        for piece in sound.pieces:
            writer.write(torch.from_numpy(piece.copy()))
            done += piece.shape[-1]
            _tell(progress, done / sound.sample_rate, reader.duration_seconds)


@dataclass(frozen=True)
class _Sound:
    """What decompressing gives back: pieces `[channels, time]`, not computed before asked for."""

    sample_rate: int
    channels: int
    pieces: Iterator[Samples]


def _sound_of_container(
    reader: ContainerReader, model: Codec, entropy: EntropyCore | None, decoder: Decoder
) -> _Sound:
    _check_model(reader, model)
    header, totals = reader.header, reader.totals
    coder = None
    if reader.coded and entropy is not None:
        _check_entropy(reader, entropy)
        coder = EntropyCoder(entropy)
    rate, channels = header.source_sample_rate, header.source_channels
    converter = Converter(header.sample_rate, rate, model.channels, channels)
    tokens = reader.blocks(coder)
    if isinstance(model, SegmentedEncodec):
        tokens = _in_segments(tokens, model, totals.samples, reader.path)
    decoded = decoder(tokens, model)
    coded = _exactly(totals.samples, decoded, spare=0, name=reader.path)
    # Rounding at two rates may leave the sound some samples short.
    spare = 2 + 2 * rate // header.sample_rate
    pieces = _exactly(totals.source_samples, converter.stream(coded), spare, name=reader.path)
    return _Sound(rate, channels, pieces)


def _in_segments(
    tokens: Iterator[Block], model: SegmentedEncodec, samples: int, path: Path
) -> Iterator[Block]:
    """The blocks of a sound of so many samples, each known to be the segment that is due.

    Raises: FormatError for one that is longer, or shorter and not the last.
    """
    stride, segment = model.stride_samples or samples, model.segment_samples or samples
    is_short = False
    for start, block in zip(count(0, stride), tokens, strict=False):
        frames, due = block.tokens.shape[-1], model.frames_of(min(segment, samples - start))
        if is_short or frames > due:
            raise FormatError(f"{path} is damaged: its segments are not those of {samples} samples")
        is_short = frames < due
        yield block


def _sound_of_ecdc(
    reader: EcdcReader, model: Codec, entropy: EntropyCore | None, decoder: Decoder
) -> _Sound:
    decoded = decoder(reader.blocks(model, entropy), model)
    pieces = _exactly(reader.header.samples, decoded, spare=0, name=reader.path)
    return _Sound(model.sample_rate, model.channels, pieces)


def _writer(
    target: str | Path, found: AudioInfo, model: Codec, codebooks: int, entropy: EntropyCore | None
) -> ContainerWriter | EcdcWriter:
    if entropy is not None:
        known_to_it = (entropy.config.codebooks, entropy.config.codebook_size)
        if known_to_it[0] < codebooks or known_to_it[1] != model.config.quantizer.codebook_size:
            raise CheckpointError(
                f"this entropy model knows {known_to_it[0]} codebooks of {known_to_it[1]} tokens, "
                f"not the {codebooks} of {model.config.quantizer.codebook_size} of this codec"
            )
    if Path(target).suffix.lower() == SUFFIX:
        return EcdcWriter(target, model, codebooks, entropy)
    header = _header_of(found, model, codebooks, entropy)
    return ContainerWriter(target, header, None if entropy is None else EntropyCoder(entropy))


def _chunks(source: str | Path, found: AudioInfo, model: Codec, length: int) -> Iterator[Audio]:
    """The source as the codec takes it, in chunks of `length` samples; the last may be shorter."""
    channels = 1 if found.channels > 2 else model.channels
    for chunk in blocks(source, length, sample_rate=model.sample_rate, channels=channels):
        yield chunk.to(channels=model.channels)


def _encoded(
    source: str | Path, found: AudioInfo, model: Codec, bandwidth_kbps: float | None
) -> Iterator[tuple[Encoded, float]]:
    """The source's tokens step by step, and how many seconds of it are behind them.

    Models that look ahead without segments take the whole sound at once, in memory that grows with
    its length.
    """
    length = STEP_FRAMES * model.hop_samples
    chunks = _chunks(source, found, model, length)
    if not model.streams and not model.segmented:
        whole = torch.cat([chunk.samples for chunk in chunks], dim=-1)[None]
        device = next(model.parameters()).device
        yield model.encode_batch(whole.to(device), bandwidth_kbps), found.duration_seconds
        return
    state = model.init_state()
    done, rest = 0, None
    for chunk in chunks:
        done += chunk.samples.shape[-1]
        if chunk.samples.shape[-1] < length:
            rest = chunk
            break
        yield model.encode_step(chunk, state, bandwidth_kbps), done / model.sample_rate
    yield model.encode_flush(state, rest, bandwidth_kbps), found.duration_seconds


def _header_of(
    found: AudioInfo, model: Codec, codebooks: int, entropy: EntropyCore | None = None
) -> Header:
    return Header(
        model=model.name or "",
        fingerprint=fingerprint(model),
        codebooks=codebooks,
        source_sample_rate=found.sample_rate,
        source_channels=found.channels if found.channels <= 2 else 1,
        entropy=b"" if entropy is None else fingerprint(entropy),
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


def _named_codec(reader: ContainerReader | EcdcReader) -> Codec:
    """The codec a file asks for, if the table knows it: a stranger's file must not choose
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


def _check_entropy(reader: ContainerReader, entropy: EntropyCore) -> None:
    ours = fingerprint(entropy)
    if reader.header.entropy != ours:
        raise FormatError(
            f"{reader.path} was coded with the entropy model {reader.header.entropy.hex()[:8]}, "
            f"not with the one of this codec ({ours.hex()[:8]}); use the codec and entropy model "
            "that wrote it"
        )


def _decoded(blocks_: Iterable[Block], model: Codec) -> Iterator[Samples]:
    """The sound of blocks of tokens at the codec's rate, `[channels, time]`."""
    if not model.streams and not model.segmented:
        device = next(model.parameters()).device
        tokens = torch.cat([block.tokens for block in blocks_], dim=-1).to(device)
        whole = Encoded(tokens, tokens.shape[-1] * model.hop_samples)
        yield to_numpy(model.decode_batch(whole)[0])
        return
    state = model.init_state()
    for block in blocks_:
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
