"""Entropy coding: our speed beside the `encodec` package, and whether our files are the same.

The published entropy model at its official size and the compact one at ours, random weights, tokens
of chance, one thread. Both sides code the same tokens in one process, in turn, the codec's own work
left out; the least processor time of several runs counts, since that of one thread depends little
on what else the machine does. Needs the peer beside: `pip install einops && pip install --no-deps
encodec`.

    python benchmarks/entropy.py                  # 150 frames of 8 codebooks
    python benchmarks/entropy.py --frames 600
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import types
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sonorant.codec.ecdc import EcdcReader, EcdcWriter
from sonorant.codec.encodec import ENCODEC_24KHZ, Encodec
from sonorant.codec.encoded import Encoded
from sonorant.codec.entropy_checkpoints import to_original
from sonorant.codec.entropy_coder import EntropyCoder
from sonorant.codec.entropy_coding import ENTROPY_24KHZ, EntropyModel
from sonorant.codec.entropy_compact import CompactEntropyConfig, CompactEntropyModel

CODEBOOKS = 8  # 6 kb/s
NAME = "encodec_24khz"
Pair = tuple[Callable[[], Any], Callable[[], Any]]
"""What encodes, and what decodes."""


def peer(model: EntropyModel, tokens: Tensor) -> tuple[Callable[[], bytes], Callable[[bytes], Any]]:
    """The package's `compress` and `decompress`, with the codec's work taken out."""
    stand_in = "torchaudio" not in sys.modules
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    package = import_module("encodec")
    compress = import_module("encodec.compress")
    network = import_module("encodec.model")
    if stand_in:
        del sys.modules["torchaudio"]
    codec = package.EncodecModel.encodec_model_24khz(pretrained=False).eval()
    codec.name = NAME
    config = model.config
    lm = network.LMModel(
        config.codebooks, config.codebook_size, num_layers=5, dim=200, past_context=262
    )
    lm.load_state_dict(to_original(model))
    samples = tokens.shape[-1] * 320
    codec.encode = lambda _: [(tokens, None)]
    codec.decode = lambda frames: torch.zeros(1, 1, samples)
    codec.get_lm_model = lambda: lm.eval()
    sys.modules["encodec.compress"].MODELS[NAME] = lambda *_: codec
    sound = torch.zeros(1, samples)
    return (
        lambda: compress.compress(codec, sound, use_lm=True),
        lambda data: compress.decompress(data),
    )


def ecdc(model: EntropyModel, tokens: Tensor, path: Path) -> Pair:
    codec = Encodec(ENCODEC_24KHZ)
    codec.name = NAME

    def write() -> None:
        with EcdcWriter(path, codec, CODEBOOKS, model) as writer:
            writer.write(Encoded(tokens, tokens.shape[-1] * 320))
            writer.finish()

    return write, lambda: list(EcdcReader(path).blocks(codec, model))


def exact(model: EntropyModel | CompactEntropyModel, tokens: Tensor) -> Pair:
    frames = tokens[0].t().numpy()
    coded = EntropyCoder(model).encode(frames)
    return (
        lambda: EntropyCoder(model).encode(frames),
        lambda: EntropyCoder(model).decode(coded, *frames.shape),
    )


def processor_seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokens = torch.randint(1024, (1, CODEBOOKS, arguments.frames))
    model = EntropyModel(ENTROPY_24KHZ).eval()
    compact = CompactEntropyModel(CompactEntropyConfig()).eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "a.ecdc"
        compress, decompress = peer(model, tokens)
        theirs = compress()
        jobs: dict[str, Pair] = {
            "encodec": (compress, lambda: decompress(theirs)),
            "sonorant .ecdc": ecdc(model, tokens, path),
            "sonorant .snr": exact(model, tokens),
            "sonorant .snr, compact model": exact(compact, tokens),
        }
        best = {name: [float("inf")] * 2 for name in jobs}
        for _ in range(arguments.repeats):
            for name, pair in jobs.items():
                for index, run in enumerate(pair):
                    best[name][index] = min(best[name][index], processor_seconds(run))
        same = path.read_bytes() == theirs
    count = tokens.numel()
    for name, (encode, decode) in best.items():
        ratios = [best["encodec"][i] / best[name][i] for i in (0, 1)]
        print(
            f"{name:30s} encode {count / encode:7.0f}, decode {count / decode:7.0f} tokens/s; "
            f"{ratios[0]:.2f} and {ratios[1]:.2f} times the package"
        )
    print(f"the .ecdc files are {'the same' if same else 'NOT the same'}, byte for byte")


if __name__ == "__main__":
    main()
