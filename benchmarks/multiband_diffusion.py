"""Multi-Band Diffusion's network beside AudioCraft's: calls per second of processor time.

    python benchmarks/multiband_diffusion.py --seconds 1 --repeats 5

Both have the same weights and run in turns; the fastest of the repeats counts. Processor time, so
that other work on the machine disturbs little. AudioCraft's network is imported on its own
(`pip install --no-deps audiocraft==1.3.0 einops julius omegaconf`), as the whole package needs a
torch of its own. The published size has hidden 48 and growth 4; where 2 GB are too much, take less
with --hidden and --growth.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sonorant.codec.diffusion_checkpoints import published_config, published_tensors
from sonorant.codec.diffusion_unet import UNetConfig
from sonorant.codec.multiband_diffusion import BandConfig, DiffusionBand

SAMPLE_RATE, FRAME_RATE = 24_000, 75


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="length of the sound")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=48)
    parser.add_argument("--growth", type=float, default=4.0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    band = DiffusionBand(
        BandConfig(unet=UNetConfig(hidden=options.hidden, growth=options.growth)), SAMPLE_RATE
    ).eval()
    x = torch.randn(options.batch, 1, int(options.seconds * SAMPLE_RATE))
    condition = torch.randn(options.batch, 128, int(options.seconds * FRAME_RATE))
    ours: Callable[[], Tensor] = lambda: band.unet(x, 500, condition)  # noqa: E731
    peer = audiocraft_network(band)
    theirs: Callable[[], Tensor] = lambda: peer(x, 500, condition).sample  # noqa: E731
    with torch.inference_mode():
        error = float((ours() - theirs()).abs().max())
        times = fastest([ours, theirs], options.repeats)
    parameters = sum(tensor.numel() for tensor in band.unet.parameters())
    print(
        f"{parameters / 1e6:.1f} M parameters, {options.batch} x {options.seconds:g} s, "
        f"{options.threads} thread(s), largest difference {error:.1e}"
    )
    for name, seconds in zip(("sonorant", "audiocraft"), times, strict=True):
        print(f"{name:>10}: {1 / seconds:.3f} calls/s ({seconds:.2f} s)")
    print(f"     ratio: {times[1] / times[0]:.2f} times AudioCraft's speed")


def audiocraft_network(band: DiffusionBand) -> Any:
    """AudioCraft's network with the same weights, without importing the rest of its package."""
    found = importlib.util.find_spec("audiocraft")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("audiocraft is not installed; see the head of this file")
    root = Path(found.submodule_search_locations[0])
    for name, folder in (("", root), (".models", root / "models"), (".modules", root / "modules")):
        package = types.ModuleType("audiocraft" + name)
        package.__path__ = [str(folder)]
        sys.modules[package.__name__] = package
    # Its attention asks for xformers at import; this network never calls it.
    xformers, operations = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    xformers.ops = operations  # type: ignore[attr-defined]
    sys.modules |= {"xformers": xformers, "xformers.ops": operations}
    published = published_config(band.config)
    network = importlib.import_module("audiocraft.models.unet").DiffusionUnet(
        chin=published["channels"],
        num_steps=published["schedule"]["num_steps"],
        **published["diffusion_unet"],
    )
    network.load_state_dict(published_tensors(band)[0])
    return network.eval()


def fastest(calls: list[Callable[[], Tensor]], repeats: int) -> list[float]:
    """Processor seconds of each, the fewest of `repeats` rounds in which all take turns."""
    best = [float("inf")] * len(calls)
    for _ in range(repeats):
        for index, call in enumerate(calls):
            start = time.process_time()
            call()
            best[index] = min(best[index], time.process_time() - start)
    return best


if __name__ == "__main__":
    main()
