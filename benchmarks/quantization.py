"""Quantised weights: packing and unpacking a large model beside the `diffq` package.

Linear layers of 4096 x 4096 random weights. Both sides quantise and pack the same weights to the
published format and restore them from it, in one process, in turn, on one thread; the least
processor time of several runs counts, since that of one thread depends little on what else the
machine does. That both states are the same is checked. Below stand our own files, which are written
to memory and read from the disk. Needs the peer, which compiles an extension: `pip install cython
setuptools && pip install --no-build-isolation diffq`.

    python benchmarks/quantization.py                   # 300 million weights; 8 GB of memory
    python benchmarks/quantization.py --millions 50
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
from safetensors.torch import save_file
from torch import Tensor, nn

from sonorant.quantization import DiffQ, Quantizer, UniformQuantizer
from sonorant.quantization.packed import read_packed
from sonorant.quantization.published import CLASSES, packed_state, published_quantizer
from sonorant.quantization.published import restore_published as restore

WIDTH = 4096
KINDS: dict[str, tuple[type[Quantizer], str, dict[str, Any]]] = {
    "uniform, 8 bits": (UniformQuantizer, "UniformQuantizer", {"bits": 8}),
    "uniform, 4 bits": (UniformQuantizer, "UniformQuantizer", {"bits": 4}),
    "DiffQ, groups of 8, 2 to 14 bits": (DiffQ, "DiffQuantizer", {"group_size": 8, "max_bits": 14}),
}


def network(layers: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
    for layer in model:
        layer.weight.data.normal_(generator=generator)
    return model.eval()


def spread_bits(model: nn.Module) -> None:
    """Learned bits of all widths, the same for both sides."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("_diffq"):
            parameter.data.normal_(std=2, generator=generator)


def least_seconds(jobs: dict[str, Callable[[], Any]], runs: int) -> dict[str, float]:
    """Processor time of each job, the least of several runs, in turn."""
    least = dict.fromkeys(jobs, float("inf"))
    for _ in range(runs):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            least[name] = min(least[name], time.process_time() - start)
    return least


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def measure(kind: str, layers: int, runs: int, folder: Path) -> None:
    made, theirs_name, options = KINDS[kind]
    model = network(layers)
    ours = published_quantizer(model, CLASSES[made], options)
    spread_bits(model)
    state = packed_state(ours, options)
    pack: dict[str, Callable[[], Any]] = {"sonorant": lambda: packed_state(ours, options)}
    unpack: dict[str, Callable[[], Any]] = {"sonorant": lambda: restore(ours, state)}
    try:
        package = import_module("diffq")
    except ImportError:
        print("diffq is not installed, so there is nothing to compare with")
    else:
        peer_model = network(layers)
        peer = getattr(package, theirs_name)(peer_model, **options)
        spread_bits(peer_model)
        peer_state = peer.get_quantized_state()
        assert same(state["quantized"], peer_state["quantized"]), "the states differ"
        pack["diffq"] = peer.get_quantized_state
        unpack["diffq"] = lambda: peer.restore_quantized_state(peer_state)
    pack["sonorant, own file"] = lambda: write(ours, folder)
    pack["sonorant, own file"]()
    unpack["sonorant, own file"] = lambda: read_packed(folder / "model.safetensors")
    report(kind, least_seconds(pack, runs), least_seconds(unpack, runs))


def write(quantizer: Quantizer, folder: Path) -> None:
    made = quantizer.stored(quantizer.model.state_dict())
    save_file(made.tensors, folder / "model.safetensors", made.metadata)


def report(kind: str, packing: dict[str, float], unpacking: dict[str, float]) -> None:
    print(f"\n| {kind} | pack | unpack |\n|---|---:|---:|")
    for name in packing:
        print(f"| {name} | {packing[name]:.1f} s | {unpacking[name]:.1f} s |")
    if "diffq" in packing:
        ratios = (times["diffq"] / times["sonorant"] for times in (packing, unpacking))
        print(f"| **diffq / ours** | {' | '.join(f'**{ratio:.2f}**' for ratio in ratios)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--millions", type=float, default=300, help="of weights")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kind", choices=KINDS, action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    layers = max(1, round(options.millions * 1e6 / WIDTH**2))
    print(f"{layers * WIDTH**2 / 1e6:.0f} million weights")
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kind or KINDS:
            measure(kind, layers, options.runs, Path(folder))


if __name__ == "__main__":
    main()
