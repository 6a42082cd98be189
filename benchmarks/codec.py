"""EnCodec: our speed and memory beside the `encodec` and `transformers` packages.

Every model has the official size and random weights; all do the same work in one process, in turn,
and the best of several runs counts. Needs the peers beside:
`pip install transformers einops && pip install --no-deps encodec`.

    python benchmarks/codec.py                    # speed: 10 s and 60 s, one and two threads
    python benchmarks/codec.py --seconds 10 --threads 1
    python benchmarks/codec.py --model 48khz      # stereo, in segments of a second
    python benchmarks/codec.py --hour             # peak memory of compressing an hour-long file
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import types
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from sonorant.codec.checkpoints import build
from sonorant.codec.encodec import ENCODEC_24KHZ, ENCODEC_48KHZ, EncodecCore
from sonorant.model import fold_weight_norm

BANDWIDTH_KBPS = 6.0
LIVE_FRAMES = 4
CONFIGS = {"24khz": ENCODEC_24KHZ, "48khz": ENCODEC_48KHZ}
TRANSFORMERS = {  # what its config says of the 48 kHz model, and not of its default
    "24khz": {},
    "48khz": {
        "sampling_rate": 48000,
        "audio_channels": 2,
        "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
        "normalize": True,
        "chunk_length_s": 1.0,
        "overlap": 0.01,
        "use_causal_conv": False,
        "norm_type": "time_group_norm",
    },
}


def ours(name: str) -> EncodecCore:
    model = build(CONFIGS[name]).eval()
    for layer in model.quantizer.layers:
        layer.embed.normal_()
    fold_weight_norm(model)
    return model


def encodec_peer(name: str) -> Any:
    """The `encodec` package's model; it imports torchaudio for files only, which are not timed."""
    stand_in = "torchaudio" not in sys.modules
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    models = import_module("encodec").EncodecModel
    model = getattr(models, f"encodec_model_{name}")(pretrained=False)
    if stand_in:
        del sys.modules["torchaudio"]
    model.set_target_bandwidth(BANDWIDTH_KBPS)
    return model.eval()


def transformers_peer(name: str) -> Any:
    package = import_module("transformers")
    return package.EncodecModel(package.EncodecConfig(**TRANSFORMERS[name])).eval()


def best_of(run: Callable[[], Any], repeats: int) -> float:
    """Shortest wall time in seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def offline(name: str, seconds: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Encode and decode time by package."""
    model, peer, port = ours(name), encodec_peer(name), transformers_peer(name)
    x = torch.randn(1, model.channels, seconds * model.sample_rate) * 0.1
    encoded = model.encode_batch(x, BANDWIDTH_KBPS)
    frames = peer.encode(x)
    codes = port.encode(x, bandwidth=BANDWIDTH_KBPS)
    rest = {"last_frame_pad_length": codes.last_frame_pad_length} if model.segmented else {}
    jobs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "sonorant": (
            lambda: model.encode_batch(x, BANDWIDTH_KBPS),
            lambda: model.decode_batch(encoded),
        ),
        "encodec": (lambda: peer.encode(x), lambda: peer.decode(frames)),
        "transformers": (
            lambda: port.encode(x, bandwidth=BANDWIDTH_KBPS),
            lambda: port.decode(codes.audio_codes, codes.audio_scales, **rest),
        ),
    }
    times = {name: [float("inf"), float("inf")] for name in jobs}
    for _ in range(repeats):  # in turn, so that a slow moment of the machine hits all alike
        for name, job in jobs.items():
            for direction in (0, 1):
                times[name][direction] = min(times[name][direction], best_of(job[direction], 1))
    return {name: (encode, decode) for name, (encode, decode) in times.items()}


@torch.no_grad()
def live(name: str, seconds: int) -> tuple[float, float]:
    """Encode and decode time in blocks of four frames, the exact start included."""
    model = ours(name)
    state = model.init_state()
    block = LIVE_FRAMES * model.hop_samples
    sound = torch.randn(1, model.channels, seconds * model.sample_rate) * 0.1
    chunks = sound.split(block, dim=-1)
    chunks = [chunk for chunk in chunks if chunk.shape[-1] == block]
    start = time.perf_counter()
    encoded = [model.encode_step(chunk, state, BANDWIDTH_KBPS) for chunk in chunks]
    middle = time.perf_counter()
    for step in encoded:
        model.decode_step(step, state)
    return middle - start, time.perf_counter() - middle


def hour() -> None:
    """Compress and decompress an hour of noise from file to file; print time and peak memory."""
    from sonorant.audio import Audio, AudioWriter
    from sonorant.codec.files import compress_file, decompress_file

    with tempfile.TemporaryDirectory() as folder:
        source, packed, back = (Path(folder) / name for name in ("in.wav", "a.snr", "out.wav"))
        with AudioWriter(source, 24000, 1) as writer:
            for _ in range(3600):
                writer.write(Audio((torch.randn(1, 24000) * 0.1).clamp(-1, 1), 24000))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        start = time.perf_counter()
        compress_file(source, packed, ours("24khz"), bandwidth_kbps=BANDWIDTH_KBPS)
        middle = time.perf_counter()
        decompress_file(packed, back, ours("24khz"))
        end = time.perf_counter()
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"one hour: compress {middle - start:.0f} s, decompress {end - middle:.0f} s")
        print(f"peak memory: {before:.0f} MiB before, {after:.0f} MiB after")


def report(model: str, seconds: int, threads: int, repeats: int) -> None:
    torch.set_num_threads(threads)
    times = offline(model, seconds, repeats)
    print(
        f"\nEnCodec {model}, {seconds} s of audio, {threads} thread(s), {BANDWIDTH_KBPS:g} kb/s, "
        f"best of {repeats}"
    )
    for name, (encode, decode) in times.items():
        print(f"  {name:13s} encode {encode:6.2f} s   decode {decode:6.2f} s")
    peers = [times[name] for name in times if name != "sonorant"]
    ratios = [min(peer[i] for peer in peers) / times["sonorant"][i] for i in (0, 1)]
    print(f"  faster peer / ours: encode {ratios[0]:.2f}, decode {ratios[1]:.2f}")
    encode, decode = live(model, seconds)
    print(
        f"  live, {LIVE_FRAMES}-frame blocks: encode {seconds / encode:.2f}x, "
        f"decode {seconds / decode:.2f}x, both {seconds / (encode + decode):.2f}x real time"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=CONFIGS, default="24khz")
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 60])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--hour", action="store_true")
    arguments = parser.parse_args()
    if arguments.hour:
        hour()
        return
    for threads in arguments.threads:
        for seconds in arguments.seconds:
            report(arguments.model, seconds, threads, arguments.repeats)


if __name__ == "__main__":
    main()
