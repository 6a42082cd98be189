"""Mimi: our speed beside `moshi`, `transformers` and `rustymimi`, live and offline.

All read the same checkpoint of the official size with random weights, written by our own export, so
they do the same work; that their tokens agree is checked first. One thread, eight codebooks, one
process, in turn; the best of several runs counts. `--after 260` measures live frames of sessions
whose rings of keys are full, 20 s in. Time is the processor time of the process, which
on a shared machine says more than the clock.
Needs the peers beside: `pip install --no-deps moshi rustymimi` and
`pip install transformers einops sentencepiece`.

    OMP_NUM_THREADS=1 RAYON_NUM_THREADS=1 NO_TORCH_COMPILE=1 python benchmarks/mimi.py
    ... --seconds 10 --rounds 10 --skip-offline
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sonorant
from sonorant.codec.encoded import Encoded
from sonorant.codec.mimi import MIMI, Mimi
from sonorant.nn.quantizer import Codebook

CODEBOOKS = 8
MODES = ("fp16", "int8")
Jobs = dict[str, tuple[Callable[[], Any], Callable[[], Any]]]
Times = dict[str, list[float]]


def random_model() -> Mimi:
    torch.manual_seed(0)
    model = Mimi(MIMI).eval()
    for module in model.modules():
        if isinstance(module, Codebook):
            module.embed.normal_()
            module.embed_sum.copy_(module.embed)
            module.usage.fill_(1)
    return model


class Peers:
    """The other packages, on the weights that we exported to `folder`."""

    def __init__(self, folder: Path) -> None:
        weights = str(folder / "moshi" / "mimi.safetensors")
        loaders = import_module("moshi.models.loaders")
        self.moshi = loaders.get_mimi(weights, device="cpu", num_codebooks=CODEBOOKS)
        self.transformers = (
            import_module("transformers").MimiModel.from_pretrained(folder / "huggingface").eval()
        )
        tokenizer = import_module("rustymimi").Tokenizer
        self.rustymimi = tokenizer(weights, num_codebooks=CODEBOOKS)

    def check(self, model: Mimi) -> None:
        """All four must give the same tokens; floats may turn a near tie."""
        x = torch.randn(1, 1, 12 * model.hop_samples) * 0.1
        ours = model.encode_batch(x, model.bandwidth_of(CODEBOOKS)).tokens
        theirs = {
            "moshi": self.moshi.encode(x),
            "transformers": self.transformers.encode(x, num_quantizers=CODEBOOKS).audio_codes,
            "rustymimi": torch.from_numpy(self.rustymimi.encode(x.numpy()).astype("int64")),
        }
        for name, tokens in theirs.items():
            print(f"tokens equal to {name}: {float((tokens == ours).float().mean()):.2%}")


def live_jobs(models: dict[str, Mimi], peers: Peers) -> Jobs:
    """Encode and decode one frame of 80 ms of a session."""
    frame = torch.randn(1, 1, 1920) * 0.1
    jobs: Jobs = {}
    for name, model in models.items():
        jobs[name] = our_step(model, frame)
    tokens = next(iter(models.values())).encode_batch(frame, 1.1).tokens
    samples, codes = frame.numpy(), tokens.numpy().astype("uint32")
    peers.moshi.streaming_forever(1)
    jobs["moshi"] = (lambda: peers.moshi.encode(frame), lambda: peers.moshi.decode(tokens))
    jobs["rustymimi"] = (
        lambda: peers.rustymimi.encode_step(samples),
        lambda: peers.rustymimi.decode_step(codes),
    )
    return jobs


def our_step(model: Mimi, frame: Tensor) -> tuple[Callable[[], Any], Callable[[], Any]]:
    state = model.init_state()
    kbps = model.bandwidth_of(CODEBOOKS)
    encoded = model.encode_step(frame, state, kbps)
    return (
        lambda: model.encode_step(frame, state, kbps),
        lambda: model.decode_step(encoded, state),
    )


def offline_jobs(model: Mimi, peers: Peers, seconds: int) -> Jobs:
    x = torch.randn(1, 1, seconds * model.sample_rate) * 0.1
    kbps = model.bandwidth_of(CODEBOOKS)
    tokens = model.encode_batch(x, kbps).tokens
    encoded = Encoded(tokens, x.shape[-1])
    samples, codes = x.numpy(), tokens.numpy().astype("uint32")
    return {
        "sonorant": (lambda: model.encode_batch(x, kbps), lambda: model.decode_batch(encoded)),
        "moshi": (lambda: peers.moshi.encode(x), lambda: peers.moshi.decode(tokens)),
        "transformers": (
            lambda: peers.transformers.encode(x, num_quantizers=CODEBOOKS),
            lambda: peers.transformers.decode(tokens),
        ),
        "rustymimi": (
            lambda: peers.rustymimi.encode(samples),
            lambda: peers.rustymimi.decode(codes),
        ),
    }


def measure(jobs: Jobs, rounds: int, after: int = 0) -> Times:
    """Seconds to encode and to decode, by name; in turn, so that all meet the same machine.

    after: how often each job has run before.
    """
    for pair in jobs.values():
        for job in pair:
            for _ in range(after):
                job()
    times = {name: [float("inf"), float("inf")] for name in jobs}
    for _ in range(rounds):
        for name, pair in jobs.items():
            for direction, job in enumerate(pair):
                start = time.process_time()
                job()
                taken = time.process_time() - start
                times[name][direction] = min(times[name][direction], taken)
    return times


def report(title: str, times: Times, ours: list[str]) -> None:
    print(f"\n{title}")
    for name, (encode, decode) in times.items():
        print(f"  {name:14s} encode {1000 * encode:8.1f} ms   decode {1000 * decode:8.1f} ms")
    for mine in ours:
        for peer in [name for name in times if name not in ours]:
            ratios = [times[peer][i] / times[mine][i] for i in (0, 1)]
            print(f"  {peer} / {mine}: encode {ratios[0]:.2f}, decode {ratios[1]:.2f}")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--skip-offline", action="store_true")
    parser.add_argument("--after", type=int, default=0, help="live frames before those measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        random_model().export(Path(folder) / "moshi", layout="moshi")
        random_model().export(Path(folder) / "huggingface", layout="huggingface")
        peers = Peers(Path(folder))
        models = {"sonorant": _load(folder)}
        peers.check(models["sonorant"])
        if not arguments.skip_offline:
            jobs = offline_jobs(models["sonorant"], peers, arguments.seconds)
            times = measure(jobs, max(2, arguments.rounds // 20))
            report(f"{arguments.seconds} s of sound, offline", times, ["sonorant"])
        for mode in MODES:
            models[f"sonorant {mode}"] = _load(folder)
            error = models[f"sonorant {mode}"].optimize(mode).total
            print(f"{mode}: linear layers are off by {error:.1e} of their size")
        times = measure(live_jobs(models, peers), arguments.rounds, arguments.after)
        report("one live frame of 80 ms", times, list(models))


def _load(folder: str) -> Mimi:
    model = sonorant.load(Path(folder) / "moshi")
    assert isinstance(model, Mimi)
    return model


if __name__ == "__main__":
    main()
