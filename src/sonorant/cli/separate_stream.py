"""The live part of `sonorant separate`: raw samples in, raw stems out."""

from __future__ import annotations

import io
import sys
import time
from typing import TYPE_CHECKING, cast

import click
import numpy as np
import torch

from sonorant.errors import SonorantError
from sonorant.separation.live import LiveSeparator

if TYPE_CHECKING:
    from sonorant.separation.files import Selection
    from sonorant.separation.separator import Separator

FORMATS = {"f32le": "<f4", "s16le": "<i2"}
"""Names that ffmpeg has, and numpy's."""
FULL_SCALE = 2**15  # of 16-bit samples
READ_BYTES = 2**16  # at once, or as many as are there


class RawSamples:
    """Raw samples of one of `FORMATS`, channels next to each other in every frame."""

    def __init__(self, form: str, channels: int) -> None:
        self._kind, self._channels = np.dtype(FORMATS[form]), channels
        self._whole = self._kind.kind == "i"

    @property
    def frame_bytes(self) -> int:
        return self._channels * self._kind.itemsize

    def decoded(self, data: bytes) -> torch.Tensor:
        """Samples `[channels, time]`; what is no whole frame is left out."""
        whole = data[: len(data) // self.frame_bytes * self.frame_bytes]
        frames = np.frombuffer(whole, self._kind).reshape(-1, self._channels)
        samples = torch.from_numpy(frames.T.astype(np.float32))
        return samples / FULL_SCALE if self._whole else samples

    def encoded(self, stems: torch.Tensor) -> bytes:
        """The bytes of stems `[stems, channels, time]`, all channels of one frame together."""
        frames = stems.flatten(0, 1).T
        if self._whole:
            frames = (frames * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1)
        return frames.contiguous().numpy().astype(self._kind).tobytes()


def separate_stream(
    model: Separator,
    selection: Selection,
    form: str,
    hop_seconds: float,
    lookahead_seconds: float,
    window_seconds: float | None,
) -> None:
    """Separate the standard input into the standard output, until it ends."""
    if selection.rest == "minus":
        raise SonorantError("a live stream has no minus_STEM; use --other-method add or none")
    live = LiveSeparator(
        model,
        selection.needed(model),
        hop_seconds=hop_seconds,
        lookahead_seconds=lookahead_seconds,
        window_seconds=window_seconds,
    )
    rate, raw = model.sample_rate, RawSamples(form, model.audio_channels)
    click.echo(
        f"live: {model.audio_channels} channels at {rate} Hz, {form}; out come "
        f"{', '.join(selection.names(model))}; latency {live.latency_samples / rate:.2f} s and the "
        "time that computing takes",
        err=True,
    )
    told, held = False, b""
    source = cast(io.BufferedReader, sys.stdin.buffer)
    while data := source.read1(READ_BYTES):
        begin = time.perf_counter()
        held += data
        samples = raw.decoded(held)
        held = held[samples.shape[1] * raw.frame_bytes :]  # the start of a frame
        stems = live.push(samples)
        took = time.perf_counter() - begin
        _send(raw.encoded(selection.chosen(stems, samples)))
        if took > max(hop_seconds, samples.shape[1] / rate) and not told:
            told = True
            click.echo(
                f"slower than the sound: a step of {hop_seconds:g} s took {took:.1f} s; a longer "
                "--hop or a shorter --segment is faster",
                err=True,
            )
    rest = live.flush()
    _send(raw.encoded(selection.chosen(rest, rest[0])))


def _send(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
