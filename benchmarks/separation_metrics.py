"""BSSEval: our speed beside the `museval` package, and whether the numbers are the same.

Four stereo stems at 44.1 kHz, frames of a second, filters of 512 taps; the stems are cut from the
clips that come with Sonorant, with an echo in the right channel, rounded to 16 bits. Both sides run
in one process, in turn; the least time of the runs counts. Needs the peer: `pip install museval`.

    python benchmarks/separation_metrics.py              # 30 s, one run of museval and five of ours
    python benchmarks/separation_metrics.py --seconds 10 --threads 1
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import sonorant
from sonorant.separation.bss_eval import BssEvalConfig, bss_eval

RATE = 44100
CLIPS = Path(sonorant.__file__).parent / "clips"
STARTS = (("music", 0), ("music", 3), ("speech", 0), ("sound", 0))  # file, seconds
LEAKAGE, NOISE = 0.1, 0.003
SCORES = ("sdr", "isr", "sir", "sar")


def stems(seconds: int) -> Tensor:
    """`[4, 2, time]`, without a silent frame."""
    made = []
    for name, start in STARTS:
        mono = sonorant.read(CLIPS / f"{name}.flac").to(RATE, channels=1).samples[0]
        times = math.ceil((seconds + start) * RATE / len(mono))
        left = mono.repeat(times)[start * RATE : (start + seconds) * RATE]
        right = 0.6 * left.roll(37) + 0.2 * left.roll(1000)
        made.append(torch.stack([left, right]))
    return (torch.stack(made) * 32767).round().double() / 32768


def least(run: Callable[[], Any], repeats: int) -> tuple[float, float, Any]:
    """Seconds on the clock and of the processor, and what the last run returned."""
    clock = processor = math.inf
    for _ in range(repeats):
        begun, used = time.perf_counter(), time.process_time()
        result = run()
        clock = min(clock, time.perf_counter() - begun)
        processor = min(processor, time.process_time() - used)
    return clock, processor, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--threads", type=int, help="of ours; OMP_NUM_THREADS says those of both")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    true = stems(arguments.seconds)
    torch.manual_seed(0)
    guess = true + LEAKAGE * true.sum(0) + NOISE * torch.randn_like(true)
    config = BssEvalConfig(window_samples=RATE, hop_samples=RATE)
    peer = import_module("museval.metrics").bss_eval
    both = [each.mT.contiguous().numpy() for each in (true, guess)]
    ours = least(lambda: bss_eval(true, guess, config), arguments.repeats)
    theirs = least(lambda: peer(*both, window=RATE, hop=RATE), 1)
    print(f"{arguments.seconds} s of {len(true)} stereo stems, {torch.get_num_threads()} threads")
    for name, (clock, processor, _) in (("sonorant", ours), ("museval", theirs)):
        print(f"{name:10s} {clock:8.2f} s, {processor:8.2f} s of processor time")
    print(f"ratio      {theirs[0] / ours[0]:8.1f}    {theirs[1] / ours[1]:8.1f}")
    for index, score in enumerate(SCORES):
        difference = np.abs(getattr(ours[2], score).numpy() - theirs[2][index])
        print(f"{score.upper()}: largest difference {np.nanmax(difference):.1e} dB")


if __name__ == "__main__":
    main()
