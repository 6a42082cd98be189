"""Separate sound while it comes in, with a delay that one chooses.

The networks know segments of several seconds, and `separate_pieces` waits for whole ones. Here each
step looks at the last segment of sound and gives out the newest `hop` of it but for `lookahead`
seconds, which are there for the network to see what follows. A step costs as much as a segment, so
that a short hop wants a fast machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sonorant.errors import AudioError, ConfigError, ShapeError
from sonorant.separation.apply import apply, stem_names
from sonorant.separation.mixture import LevelSums
from sonorant.separation.separator import Separator
from sonorant.separation.settings import Settings

HOP_SECONDS = 1.0
LOOKAHEAD_SECONDS = 0.5
FADE_SECONDS = 0.05
"""From one step's stems to the next one's; at most the lookahead."""


class LiveSeparator:
    """One stream of sound into stems.

    stems: some of the model's; None for all. hop_seconds, lookahead_seconds: a sample goes out at
    most their sum after it came in, plus the time that a step takes. window_seconds: of sound that
    the network looks at, None for the model's segment; shorter ones are faster and worse.
    Raises: ConfigError for times that do not fit, or an unknown stem.
    """

    def __init__(
        self,
        model: Separator,
        stems: Sequence[str] | None = None,
        *,
        hop_seconds: float = HOP_SECONDS,
        lookahead_seconds: float = LOOKAHEAD_SECONDS,
        window_seconds: float | None = None,
    ) -> None:
        rate = model.sample_rate
        for seconds in (hop_seconds, lookahead_seconds, window_seconds or 0.0):
            if not 0 <= seconds < math.inf:
                raise ConfigError(f"a time of {seconds} s is none to separate live with")
        self.model, self.stems = model, stem_names(model, stems)
        self.hop_samples, self._lookahead = int(hop_seconds * rate), int(lookahead_seconds * rate)
        self._fade = min(int(FADE_SECONDS * rate), self._lookahead)
        self._window = int(window_seconds * rate) if window_seconds else model.segment_samples
        longest = model.longest_samples
        if longest is not None and self._window > longest:
            raise ConfigError(f"the window can have at most {longest / rate:g} s with this model")
        if self.hop_samples < 1 or self._lookahead < 0 or self.latency_samples > self._window:
            raise ConfigError(
                f"a hop of {hop_seconds:g} s and {lookahead_seconds:g} s of lookahead do not fit "
                f"into the window of {self._window / rate:g} s"
            )
        self._level = LevelSums()
        self._held = torch.zeros(model.audio_channels, 0)  # the sound in the window
        self._waiting = self._held  # what is not yet a whole hop
        self._received = self._given = 0
        self._tail: Tensor | None = None  # how the last step's stems go on

    @property
    def latency_samples(self) -> int:
        """How long a sample waits at most, without the time that computing takes."""
        return self.hop_samples + self._lookahead

    def push(self, samples: Tensor) -> Tensor:
        """The stems `[stems, channels, time']` that the next samples `[channels, time]` make ready.

        Raises: ShapeError for samples of another shape; AudioError for some that are not finite,
        of which nothing is taken.
        """
        if samples.dim() != 2 or samples.shape[0] != self.model.audio_channels:
            raise ShapeError(
                f"live sound must be [{self.model.audio_channels}, time], got {list(samples.shape)}"
            )
        if not bool(samples.isfinite().all()):
            wrong = int((~samples.isfinite()).any(dim=0).nonzero()[0])
            at = self._received + self._waiting.shape[1] + wrong
            raise AudioError(f"the sound is not finite at sample {at}")
        self._waiting = torch.cat([self._waiting, samples], dim=1)
        ready = []
        while self._waiting.shape[1] >= self.hop_samples:
            hop = self._waiting[:, : self.hop_samples]
            self._waiting = self._waiting[:, self.hop_samples :]
            ready.append(self._step(hop, self._lookahead))
        return torch.cat([self._nothing(), *ready], dim=-1)

    def flush(self) -> Tensor:
        """The rest of the stems. The stream is then over."""
        rest, self._waiting = self._waiting, self._waiting[:, :0]
        if self._received + rest.shape[1] == self._given:
            return self._nothing()
        return self._step(rest, lookahead=0)

    def _step(self, new: Tensor, lookahead: int) -> Tensor:
        """Stems up to `lookahead` samples before the end of the sound."""
        self._received += new.shape[1]
        self._level.add(new)
        held = torch.cat([self._held, new], dim=1)
        self._held = held[:, max(0, held.shape[1] - self._window) :]
        count = max(0, self._received - lookahead - self._given)
        if not count:
            return self._nothing()
        level = self._level.level()
        mix = level.normalize(self._held)[None]
        stems = level.restore(apply(self.model, mix, Settings(split=False), self.stems)[0])
        end = stems.shape[-1] - lookahead
        piece = self._faded(stems[..., end - count : end])
        self._tail = stems[..., end : end + self._fade]
        self._given += count
        return piece

    def _faded(self, piece: Tensor) -> Tensor:
        """The piece, beginning with what the step before had there."""
        if self._tail is None or not self._fade:
            return piece
        length = min(self._tail.shape[-1], piece.shape[-1])
        share = torch.arange(1, length + 1) / (length + 1)
        start = self._tail[..., :length] * (1 - share) + piece[..., :length] * share
        return torch.cat([start, piece[..., length:]], dim=-1)

    def _nothing(self) -> Tensor:
        return torch.zeros(len(self.stems), self.model.audio_channels, 0)
