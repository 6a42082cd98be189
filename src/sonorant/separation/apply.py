"""Separate sounds of any length with a network that knows segments of some seconds.

Source: Demucs (arXiv 1911.13254, section 4.3 on shifts) and its package, on segments and bags.
A sound is cut into overlapping segments, each is separated on its own, and they are faded over.
Every model, and every shift of one, is a pass: it has its own grid of segments, and the stems are
the weighted mean of all passes. All passes advance together, so that the start of the stems is
ready, and the start of the sound forgotten, while the rest is still to come.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from sonorant.dsp.overlap_add import OverlapAdder, triangular_weights
from sonorant.errors import AudioError, ConfigError, ShapeError
from sonorant.separation.settings import DEFAULTS, Progress, Settings

if TYPE_CHECKING:
    from sonorant.separation.separator import Separator

MAX_SHIFT_SECONDS = 0.5
"""Of the shift trick (arXiv 1911.13254, section 4.3)."""


def apply(
    model: Separator,
    mix: Tensor,
    settings: Settings = DEFAULTS,
    stems: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Stems `[batch, stems, channels, time]` of mixtures `[batch, channels, time]`.

    mix: at the model's rate and channels. stems: some of `model.sources`; None for all. Networks
    that contribute to none of them are not run.
    Raises: ConfigError for settings the model cannot have, unknown stems; ShapeError for a mixture
    of another shape; AudioError if what the model gives is not finite.
    """
    if mix.dim() != 3 or mix.shape[1] != model.audio_channels or not mix.shape[-1]:
        raise ShapeError(
            f"this separator takes [batch, {model.audio_channels}, time], got {list(mix.shape)}"
        )
    wanted = stem_names(model, stems)
    length = mix.shape[-1]
    separated = mix.new_empty(len(mix), len(wanted), mix.shape[1], length)
    done = 0
    for piece in separate_pieces(model, [mix], settings, wanted):
        separated[..., done : done + piece.shape[-1]] = piece
        done += piece.shape[-1]
        if progress is not None:
            progress(done / model.sample_rate, length / model.sample_rate)
    return separated


def separate_pieces(
    model: Separator,
    pieces: Iterable[Tensor],
    settings: Settings = DEFAULTS,
    stems: Sequence[str] | None = None,
    first: int = 0,
) -> Iterator[Tensor]:
    """`apply` to a mixture that comes in pieces `[batch, channels, time]` of any lengths.

    The stems come in pieces too, as soon as no later segment can change them. Without shifts, a
    sample is final once the sound has come `delay_samples` further.
    first: the sample of the sound with which the stems begin, to go on where one has stopped.
    Memory does not grow with the sound, unless settings say not to split it.
    Raises: as `apply`; AudioError if what the model gives is not finite.
    """
    names = stem_names(model, stems)
    mixture = _Mixture(pieces)
    if not mixture.reaches(1):
        return
    whole = None if settings.split else mixture.read_all()
    wanted = [model.sources.index(name) for name in names]
    passes = _plan(model, settings, wanted, first, whole)
    running = list(passes)
    mixture.forget(min((each.earliest for each in passes), default=0))
    while running:
        now = min(running, key=lambda each: each.start)
        now.advance(mixture)
        running = [each for each in running if not each.finished]
        mixture.forget(min((each.earliest for each in running), default=0))
        ready = min(each.ready for each in passes)
        if ready:
            separated = torch.stack([each.take(ready) for each in passes]).sum(dim=0)
            if not bool(separated.isfinite().all()):
                raise AudioError(
                    f"{model.name or 'the model'} gives stems that are not finite; its weights are "
                    "damaged, or the sound is louder than numbers go"
                )
            yield separated


def delay_samples(model: Separator, settings: Settings = DEFAULTS) -> int:
    """How far behind the sound that comes in the stems go out, without shifts, apart from the time
    that computing takes.

    A sample waits for the last segment that holds it, and for the sound around that segment.
    """
    delays = []
    for part in model.parts():
        segment = _segment(part.model, settings)
        margin = _input_length(part.model, segment, settings) - segment
        # The first sample of a segment is final when the segment is done.
        delays.append(segment + margin - margin // 2)
    return max(delays)


def stem_names(model: Separator, stems: Sequence[str] | None) -> list[str]:
    """The stems asked for; all for None. Raises: ConfigError for one that the model has not."""
    names = list(model.sources if stems is None else stems)
    unknown = [name for name in names if name not in model.sources]
    if unknown or not names:
        raise ConfigError(
            f"{model.name or 'this model'} has no stem {', '.join(unknown) or 'of that name'}; "
            f"it has {', '.join(model.sources)}"
        )
    return names


def _plan(
    model: Separator, settings: Settings, wanted: list[int], first: int, whole: int | None
) -> list[_Pass]:
    """The passes that contribute to the wanted sources.

    whole: the length of the sound, where it is not to be cut up.
    """
    starts = random.Random(settings.seed)
    parts = model.parts()
    weights = torch.tensor([part.weights for part in parts])
    shares = weights / weights.sum(dim=0) / max(settings.shifts, 1)
    passes = []
    for part, share in zip(parts, shares[:, wanted], strict=True):
        most = int(MAX_SHIFT_SECONDS * part.model.sample_rate)
        # Parts that are not run draw as well: a stem does not depend on which others are asked for.
        shifts = [most - starts.randint(0, most) for _ in range(settings.shifts)] or [0]
        for shift in shifts if bool(share.any()) else []:
            grid = _grid(part.model, settings, shift, whole)
            passes.append(_Pass(part.model, settings, grid, (wanted, share), first))
    return passes


@dataclass(frozen=True)
class _Grid:
    """Segments of so many samples, one every `stride`, from `shift` before the sound's start."""

    segment: int
    stride: int
    shift: int

    def first_with(self, sample: int) -> int:
        """Start of the first segment that holds a sample."""
        skipped = max(0, (sample + self.shift - self.segment) // self.stride + 1)
        return skipped * self.stride - self.shift


def _grid(model: Separator, settings: Settings, shift: int, whole: int | None) -> _Grid:
    if whole is not None:
        _check_length(model, whole + shift)
        return _Grid(whole + shift, whole + shift, shift)
    segment = _segment(model, settings)
    stride = int((1 - settings.overlap) * segment)
    if stride < 1:
        raise ConfigError(
            f"segments of {segment} samples that overlap by {settings.overlap} do not advance; "
            "make them longer, or the overlap smaller"
        )
    return _Grid(segment, stride, shift)


def _segment(model: Separator, settings: Settings) -> int:
    """Samples of a segment."""
    if settings.segment_seconds is None:
        return model.segment_samples
    segment = int(model.sample_rate * settings.segment_seconds)
    _check_length(model, segment)
    return segment


def _check_length(model: Separator, samples: int) -> None:
    if model.longest_samples is not None and samples > model.longest_samples:
        raise ConfigError(
            f"{model.name or 'this model'} takes segments of at most "
            f"{model.longest_samples / model.sample_rate:g} s, got "
            f"{samples / model.sample_rate:g} s"
        )


def _input_length(model: Separator, samples: int, settings: Settings) -> int:
    """Samples of the mixture that the network gets to separate that many of them."""
    if model.pads_to_segment and settings.split and settings.segment_seconds is not None:
        return max(samples, int(model.sample_rate * settings.segment_seconds))
    return model.valid_length(samples)


class _Mixture:
    """A sound of which the start has been forgotten and the end has not come; silence around."""

    def __init__(self, pieces: Iterable[Tensor]) -> None:
        self._pieces = iter(pieces)
        self._held: list[Tensor] = []
        self._begin = self._needed = 0
        self.length = 0
        """Samples that have come; all, once it is complete."""
        self.complete = False

    def reaches(self, end: int) -> bool:
        """Wait for the sound up to `end`; False if it is over before."""
        while self.length < end and not self.complete:
            piece = next(self._pieces, None)
            if piece is None:
                self.complete = True
            else:
                self.length += piece.shape[-1]
                if self.length <= self._needed:
                    self._held, self._begin = [piece[..., :0]], self.length
                else:
                    self._held.append(piece)
        return self.length >= end

    def read_all(self) -> int:
        """Wait for the end; the length of it all."""
        self.reaches(sys.maxsize)
        return self.length

    def extract(self, start: int, end: int) -> Tensor:
        """The sound `[batch, channels, end - start]`, with zeros beyond its ends."""
        held = self._joined()
        inner = held[..., max(start - self._begin, 0) : max(end - self._begin, 0)]
        left = min(max(-start, 0), end - start)
        right = end - start - left - inner.shape[-1]
        return functional.pad(inner, (left, right)) if left or right else inner

    def forget(self, before: int) -> None:
        """Samples before this will not be asked for again."""
        self._needed = max(self._needed, before)
        held = self._joined()
        count = min(max(before - self._begin, 0), held.shape[-1])
        self._held = [held[..., count:]]
        self._begin += count

    def _joined(self) -> Tensor:
        if len(self._held) > 1:
            self._held = [torch.cat(self._held, dim=-1)]
        return self._held[0]


class _Pass:
    """One network on one grid of segments; hands out its share of the wanted stems.

    wanted: places among the model's sources, and the weight of each in the mean of all passes.
    first: the sample of the sound with which to begin handing out.
    """

    def __init__(
        self,
        model: Separator,
        settings: Settings,
        grid: _Grid,
        wanted: tuple[list[int], Tensor],
        first: int,
    ) -> None:
        self._model, self._settings, self._grid = model, settings, grid
        self._wanted, share = wanted
        self._share = share[:, None, None]
        self._widest = _input_length(model, grid.segment, settings)
        self.start = grid.first_with(first)
        """Of the next segment."""
        self.finished = False
        self._unwanted = first - self.start
        self._ready: list[Tensor] = []
        with _enough_memory(grid.segment / model.sample_rate, torch.device("cpu")):
            weights = triangular_weights(grid.segment)
            weights = (weights / weights.max()) ** settings.transition_power
        self._adder = OverlapAdder(grid.stride, weights)
        self._added = False

    @property
    def earliest(self) -> int:
        """The first sample of the mixture that it may still ask for."""
        return self.start - self._widest

    @property
    def ready(self) -> int:
        """How many samples are final."""
        return sum(piece.shape[-1] for piece in self._ready)

    def take(self, samples: int) -> Tensor:
        """The next of those that are final, `[batch, stems, channels, samples]`, as its share."""
        joined = torch.cat(self._ready, dim=-1)
        self._ready = [joined[..., samples:]]
        return joined[..., :samples] * self._share.to(joined)

    def advance(self, mixture: _Mixture) -> None:
        """Separate the next segments, as many at once as the settings say."""
        spans = self._next_spans(mixture)
        for length, equal in groupby(spans, key=self._input_length):
            for stems in self._separate(mixture, list(equal), length):
                self._hand_out(self._adder.push(stems))
                self._hand_out(self._adder.settle())
                self._added = True
        if self.finished and self._added:
            self._hand_out(self._adder.flush())

    def _next_spans(self, mixture: _Mixture) -> list[tuple[int, int]]:
        """Begin and end of the next segments; waits for the sound they need."""
        margin = self._widest - self._grid.segment
        spans: list[tuple[int, int]] = []
        while len(spans) < self._settings.batch_size:
            end = self.start + self._grid.segment
            mixture.reaches(end + margin - margin // 2)
            if mixture.complete and self.start >= mixture.length:
                self.finished = True
                break
            spans.append((self.start, min(end, mixture.length) if mixture.complete else end))
            self.start += self._grid.stride
        return spans

    def _input_length(self, span: tuple[int, int]) -> int:
        return _input_length(self._model, span[1] - span[0], self._settings)

    def _separate(
        self, mixture: _Mixture, spans: list[tuple[int, int]], length: int
    ) -> Iterator[Tensor]:
        """The wanted stems `[batch, stems, channels, end - start]` of each span."""
        weight = next(self._model.parameters())
        seconds = length / self._model.sample_rate
        with torch.no_grad(), _in_use(self._model), _enough_memory(seconds, weight.device):
            inputs = []
            for start, end in spans:
                left = start - (length - (end - start)) // 2
                inputs.append(mixture.extract(left, left + length))
            stems = self._model(torch.cat(inputs).to(weight))[:, self._wanted]
        parts = stems.to(inputs[0]).chunk(len(spans))
        for (start, end), part in zip(spans, parts, strict=True):
            excess = part.shape[-1] - (end - start)
            yield part[..., excess // 2 : excess // 2 + end - start]

    def _hand_out(self, piece: Tensor) -> None:
        dropped = min(self._unwanted, piece.shape[-1])
        self._unwanted -= dropped
        if piece.shape[-1] > dropped:
            self._ready.append(piece[..., dropped:])


@contextmanager
def _in_use(model: Separator) -> Iterator[None]:
    """The model as it is used, not as it learns: without dropout, padded to its segment."""
    learning = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(learning)


@contextmanager
def _enough_memory(seconds: float, device: torch.device) -> Iterator[None]:
    """Raises: ConfigError if there is not as much memory as segments of that many seconds take."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_full = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not is_full and "allocate memory" not in str(error):
            raise
        raise ConfigError(
            f"{device} has too little memory for segments of {seconds:g} s; choose shorter ones, "
            "fewer at once, or another device"
        ) from error
