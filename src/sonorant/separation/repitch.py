"""Songs at another pitch and tempo, all stems alike.

Source: Demucs (arXiv 1911.13254, section 5.2) and its package, for the ranges and the length that
is kept. They use SoundTouch; here pitch is changed by resampling (soxr) and tempo by FFmpeg's
`atempo`, which is waveform-similarity overlap-add as SoundTouch is. SoundTouch's other setting for
speech, which they use for vocals, has no counterpart.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt
import soxr  # type: ignore[import-untyped]

from sonorant.errors import DependencyError

Samples = npt.NDArray[np.float32]

KEPT_SHARE = 0.88
"""Of an extract's length, changed or not: what is left at the fastest tempo, 12 % more."""
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Repitch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often and how far.

    semitones: most that the pitch goes up or down, in whole steps.
    tempo_deviation, most_tempo: standard deviation and limit of the change of tempo, as shares.
    """

    probability: Share = 0.2
    semitones: Annotated[int, msgspec.Meta(ge=0)] = 2
    tempo_deviation: Share = 0.05
    most_tempo: Share = 0.12


def repitch(
    stems: Samples,
    sample_rate: int,
    config: Repitch,
    random: np.random.Generator,
) -> Samples:
    """Stems `[sources, channels, time]`, perhaps changed, of `KEPT_SHARE` of their length.

    Raises: DependencyError without PyAV.
    """
    kept = int(KEPT_SHARE * stems.shape[-1])
    if random.random() >= config.probability:
        return stems[..., :kept]
    semitones = int(random.integers(-config.semitones, config.semitones + 1))
    drawn = config.tempo_deviation * random.standard_normal()
    change = float(np.clip(drawn, -config.most_tempo, config.most_tempo))
    changed = [change_sound(stem, sample_rate, semitones, 1 + change)[:, :kept] for stem in stems]
    return np.stack([np.pad(each, ((0, 0), (0, kept - each.shape[1]))) for each in changed])


def change_sound(samples: Samples, sample_rate: int, semitones: float, tempo: float) -> Samples:
    """`[channels, time]` with the pitch moved, and `tempo` times as fast.

    Raises: DependencyError without PyAV.
    """
    faster = 2 ** (semitones / 12)
    resampled = soxr.resample(samples.T, sample_rate * faster, sample_rate).T
    return _stretched(np.ascontiguousarray(resampled), sample_rate, tempo / faster)


def _stretched(samples: Samples, sample_rate: int, tempo: float) -> Samples:
    """The same pitch, `tempo` times as fast (0.5 to 100, as `atempo` takes it)."""
    if not samples.any():
        return np.zeros((len(samples), round(samples.shape[1] / tempo)), np.float32)
    av = _av()
    layout = "mono" if len(samples) == 1 else "stereo"
    graph = av.filter.Graph()
    source = graph.add_abuffer(sample_rate=sample_rate, format="fltp", layout=layout)
    stretch = graph.add("atempo", f"{tempo:.6f}")
    # atempo takes interleaved samples: the graph converts before and after it.
    back = graph.add("aformat", f"sample_fmts=fltp:channel_layouts={layout}")
    sink = graph.add("abuffersink")
    for one, next_ in ((source, stretch), (stretch, back), (back, sink)):
        one.link_to(next_)
    graph.configure()
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate, frame.pts = sample_rate, 0
    graph.push(frame)
    graph.push(None)
    pieces = []
    while True:
        try:
            pieces.append(graph.pull().to_ndarray())
        except (EOFError, BlockingIOError):
            break
    stretched: Samples = np.concatenate(pieces, axis=1)
    return stretched


def _av() -> Any:
    try:
        import av
        import av.filter
    except ImportError as error:
        raise DependencyError("repitch needs PyAV: pip install 'sonorant[formats]'") from error
    return av
