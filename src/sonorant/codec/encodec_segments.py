"""EnCodec on segments: the 48 kHz stereo model, and any other that codes its sound piece by piece.

Source: "High Fidelity Neural Audio Compression" (arXiv 2210.13438, section 3.2): one-second
segments with one hundredth of overlap, each divided by its volume, coded on its own, and joined
again by overlap-add with triangular weights. Volume: root mean square over time of the mean of the
channels, plus 1e-8, as in the published package.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor, nn

from sonorant.audio import Audio
from sonorant.codec.encodec import EncodecConfig, EncodecCore, common_count
from sonorant.codec.encoded import Encoded, join
from sonorant.errors import ConfigError, ShapeError
from sonorant.nn.state import State, StreamingModule

VOLUME_FLOOR = 1e-8  # the published package; keeps silence from dividing by zero
SEGMENTS_AT_ONCE = 4  # segments coded as one batch: more is not faster on CPU, and takes memory


class SegmentedEncodec(EncodecCore, StreamingModule):
    """EnCodec whose sound is coded in overlapping segments.

    Live it waits for a whole segment (its latency, one second at 48 kHz), then codes it; tokens and
    sound equal the offline ones. State of its own: `waiting` [batch, channels, segment] and
    `waiting_filled` [batch, 1], the sound not yet coded; `joined` [batch, channels + 1, samples],
    weighted sound and, in its last row, weights that the next segments still add to;
    `joined_filled` [batch, 1], how much of it is used; `unfinished` [batch, 1], whether the last
    segment was shorter than a whole one; `first_length` [batch, 1], the decoded length of the
    first segment, which sets the weights. All rows move together.
    """

    system: ClassVar[str] = "encodec_segments"

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__(config)
        seconds = config.segment_seconds
        self.segment_samples = None if seconds is None else int(seconds * config.sample_rate)
        if self.segment_samples is not None and self.segment_samples < 1:
            raise ConfigError(f"segments of {seconds} s hold no sample; make them longer")
        self.frame_samples = self.segment_samples or self.hop_samples

    @property
    def stride_samples(self) -> int | None:
        """Samples from one segment's start to the next."""
        if self.segment_samples is None:
            return None
        return max(1, int((1 - self.config.overlap) * self.segment_samples))

    def segment_lengths(self, samples: int) -> list[int]:
        """Length in samples of each segment of a sound; the last ones may be short."""
        if self.segment_samples is None or self.stride_samples is None:
            return [samples]
        offsets = range(0, samples, self.stride_samples)
        return [min(self.segment_samples, samples - offset) for offset in offsets]

    @torch.no_grad()
    def encode_batch(self, x: Tensor, bandwidth_kbps: float | None = None) -> Encoded:
        """Tokens and volumes of sounds `[batch, channels, time]` at the codec's rate."""
        self._check_sound(x)
        stride = self.stride_samples or x.shape[-1]
        segments = [
            x[..., index * stride :][..., :length]
            for index, length in enumerate(self.segment_lengths(x.shape[-1]))
        ]
        return self._encode_segments(segments, x.shape[-1], bandwidth_kbps)

    @torch.no_grad()
    def decode_batch(self, encoded: Encoded) -> Tensor:
        """Sounds `[batch, channels, encoded.samples]` of tokens."""
        return self.decode_tokens(encoded)[..., : encoded.samples]

    @torch.no_grad()
    def decode_tokens(self, encoded: Encoded) -> Tensor:
        """Sounds of all segments joined, with the padding of the last frame."""
        pieces = self.decode_segments(encoded)
        if self.stride_samples is None:
            return pieces[0]
        weight = triangle(pieces[0].shape[-1], like=pieces[0])
        batch, channels, _ = pieces[0].shape
        total = max(i * self.stride_samples + piece.shape[-1] for i, piece in enumerate(pieces))
        joined = pieces[0].new_zeros(batch, channels, total)
        weights = weight.new_zeros(total)
        for index, piece in enumerate(pieces):
            start = index * self.stride_samples
            stop = start + piece.shape[-1]
            joined[..., start:stop] += weight[: piece.shape[-1]] * piece
            weights[start:stop] += weight[: piece.shape[-1]]
        if not bool(weights.all()):
            raise ShapeError(f"segments of {list(encoded.segment_frames)} frames leave gaps")
        return joined / weights

    def decode_segments(self, encoded: Encoded) -> list[Tensor]:
        """The sound of each segment on its own, at its volume."""
        self._check_tokens(encoded.tokens)
        frames = encoded.segment_frames or (encoded.frames,)
        if sum(frames) != encoded.frames or not 1 <= min(frames) <= max(frames) <= frames[0]:
            raise ShapeError(f"{encoded.frames} frames cannot be segments of {list(frames)}")
        if self.config.normalize != (encoded.scales is not None):
            raise ShapeError("tokens of a normalising codec, and only they, come with scales")
        stated = (encoded.tokens.shape[0], len(frames))
        if encoded.scales is not None and encoded.scales.shape != stated:
            raise ShapeError(
                f"scales must be [batch, segments] = {list(stated)}, got "
                f"{list(encoded.scales.shape)}"
            )
        latents = self.quantizer.decode(encoded.tokens).split(list(frames), dim=-1)
        sounds = _in_batches(latents, self.decoder)
        if encoded.scales is None:
            return sounds
        return [sound * encoded.scales[:, i, None, None] for i, sound in enumerate(sounds)]

    def _encode_segments(
        self, segments: list[Tensor], samples: int, bandwidth_kbps: float | None
    ) -> Encoded:
        codebooks = self.codebooks_for(bandwidth_kbps)
        scales = None
        if self.config.normalize:
            volumes = [volume(segment) for segment in segments]
            segments = [
                segment / scale[:, None, None]
                for segment, scale in zip(segments, volumes, strict=True)
            ]
            scales = torch.stack(volumes, dim=1)
        latents = _in_batches(segments, self.encoder)
        return Encoded(
            tokens=self.quantizer.encode(torch.cat(latents, dim=-1), codebooks),
            samples=samples,
            scales=scales,
            segment_frames=tuple(latent.shape[-1] for latent in latents),
        )

    @property
    def streams(self) -> bool:
        return self.segment_samples is not None

    def fresh_state(self, batch_size: int) -> dict[str, Tensor]:
        if self.segment_samples is None:
            raise ConfigError("a model that codes the sound as one segment cannot run live")
        like = next(self.parameters())
        decoded = self.frames_of(self.segment_samples) * self.hop_samples
        room = decoded + self.segment_samples
        counter = like.new_zeros(batch_size, 1, dtype=torch.long)
        return {
            "waiting": like.new_zeros(batch_size, self.channels, self.segment_samples),
            "waiting_filled": counter,
            "joined": like.new_zeros(batch_size, self.channels + 1, room),
            "joined_filled": counter.clone(),
            "unfinished": counter.bool(),
            "first_length": counter.clone(),
        }

    @torch.no_grad()
    def encode_step(
        self, chunk: Audio | Tensor, state: State, bandwidth_kbps: float | None = None
    ) -> Encoded:
        """Tokens of the segments that live sound of any length completes; often none."""
        slot, segment, stride = state[self], self._segment(), self._stride()
        held = common_count(slot.waiting_filled, state)
        new = self._chunk(chunk)
        self._check_rows(new, state)
        x = torch.cat([slot.waiting[..., :held], new], dim=-1)
        segments = []
        while x.shape[-1] >= segment:
            segments.append(x[..., :segment])
            x = x[..., stride:]
        state.update(slot.waiting[..., : x.shape[-1]], x)
        state.update(slot.waiting_filled, torch.full_like(slot.waiting_filled, x.shape[-1]))
        return self._encode_live(segments, stride * len(segments), state, bandwidth_kbps)

    @torch.no_grad()
    def encode_flush(
        self,
        state: State,
        chunk: Audio | Tensor | None = None,
        bandwidth_kbps: float | None = None,
    ) -> Encoded:
        """Tokens of all that is left, with a last chunk of any length. The stream is then over."""
        slot, stride = state[self], self._stride()
        done = None if chunk is None else self.encode_step(chunk, state, bandwidth_kbps)
        held = common_count(slot.waiting_filled, state)
        x = slot.waiting[..., :held].clone()
        segments = [x[..., start:] for start in range(0, held, stride)]
        rest = self._encode_live(segments, held, state, bandwidth_kbps)
        return rest if done is None else join(done, rest)

    @torch.no_grad()
    def decode_step(self, encoded: Encoded, state: State) -> Tensor:
        """Live sound `[batch, channels, samples]` that no later segment can change."""
        slot, stride = state[self], self._stride()
        self._check_rows(encoded.tokens, state)
        ready = []
        for piece in self.decode_segments(encoded) if encoded.frames else []:
            if common_count(slot.unfinished, state):
                ready.append(self._take(stride, state))
            first = common_count(slot.first_length, state) or piece.shape[-1]
            if piece.shape[-1] > first:
                raise ShapeError("no segment of a stream is longer than its first one")
            state.update(slot.first_length, torch.full_like(slot.first_length, first))
            self._add(piece, triangle(first, like=piece), state)
            whole = piece.shape[-1] >= self._segment()
            state.update(slot.unfinished, torch.full_like(slot.unfinished, not whole))
            if whole:
                ready.append(self._take(stride, state))
        return torch.cat([slot.joined[:, :-1, :0], *ready], dim=-1)

    @torch.no_grad()
    def decode_flush(self, state: State) -> Tensor:
        """The sound that only the end of the stream makes final."""
        return self._take(common_count(state[self].joined_filled, state), state)

    def _segment(self) -> int:
        if self.segment_samples is None:
            raise ConfigError("a model that codes the sound as one segment cannot run live")
        return self.segment_samples

    def _stride(self) -> int:
        self._segment()
        return self.stride_samples or 1

    def _encode_live(
        self, segments: list[Tensor], samples: int, state: State, bandwidth_kbps: float | None
    ) -> Encoded:
        if segments:
            return self._encode_segments(segments, samples, bandwidth_kbps)
        like = next(self.parameters())
        rows, codebooks = state.batch_size, self.codebooks_for(bandwidth_kbps)
        scales = like.new_zeros(rows, 0) if self.config.normalize else None
        return Encoded(like.new_zeros(rows, codebooks, 0, dtype=torch.long), 0, scales)

    def _add(self, piece: Tensor, weight: Tensor, state: State) -> None:
        """Add a decoded segment at the start of what is still open."""
        slot, length = state[self], piece.shape[-1]
        weighted = torch.cat([piece, torch.ones_like(piece[:, :1])], dim=1) * weight[:length]
        target = slot.joined[..., :length]
        state.update(target, target + weighted)
        filled = slot.joined_filled
        state.update(filled, filled.clamp(min=length))

    def _take(self, length: int, state: State) -> Tensor:
        """Hand out the first `length` samples, and move the rest to the front."""
        slot = state[self]
        taken = slot.joined[..., :length].clone()
        rest = slot.joined[..., length:].clone()
        state.update(slot.joined[..., : rest.shape[-1]], rest)
        state.update(slot.joined[..., rest.shape[-1] :], torch.zeros_like(taken))
        state.update(slot.joined_filled, (slot.joined_filled - length).clamp(min=0))
        return taken[:, :-1] / taken[:, -1:]


def volume(x: Tensor) -> Tensor:
    """Volume `[batch]` of a segment `[batch, channels, time]`."""
    return x.mean(dim=1).pow(2).mean(dim=-1).sqrt() + VOLUME_FLOOR


def triangle(length: int, like: Tensor) -> Tensor:
    """Weights `[length]` that rise to the middle of a segment and fall again, never zero."""
    positions = torch.linspace(0, 1, length + 2, dtype=like.dtype, device=like.device)[1:-1]
    return 0.5 - (positions - 0.5).abs()


def _in_batches(pieces: Sequence[Tensor], module: nn.Module) -> list[Tensor]:
    """Run `module` on pieces `[batch, channels, time]`, neighbours of equal length together."""
    results: list[Tensor] = []
    for _, group in groupby(pieces, key=lambda piece: piece.shape[-1]):
        equal = list(group)
        for first in range(0, len(equal), SEGMENTS_AT_ONCE):
            some = equal[first : first + SEGMENTS_AT_ONCE]
            results += module(torch.cat(some)).chunk(len(some))
    return results
