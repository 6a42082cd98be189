"""Separating a song beside demucs 4.1.0: time, memory, and whether the stems are the same.

    python benchmarks/separation.py --peer PYTHON --seconds 60 --repeats 3

PYTHON is an interpreter that has demucs (`pip install demucs==4.1.0` in an environment of its own).
We export random weights of the published size in the published layout, and both read them from
there. Every run is a process of its own, in turns, and the fastest of the repeats counts: wall
time, processor time (which other work on the machine disturbs less), and peak memory. Loading is
not counted. The bag has one network for each stem, as htdemucs_ft, and one stem is asked for, which
demucs has no way to say.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

OURS = """
import json, resource, sys, time
import numpy as np, torch
from sonorant.audio import Audio
from sonorant.separation.repositories import load_separator
options = json.loads(sys.argv[1])
torch.set_num_threads(options["threads"])
model = load_separator(options["name"], options["repo"])
mix = Audio(torch.from_numpy(np.load(options["mix"])), 44100)
wall, processor = time.perf_counter(), time.process_time()
stems = model.separate(mix, stems=options["stems"], batch_size=options["batch_size"])
"""
THEIRS = """
import json, resource, sys, time
from pathlib import Path
import numpy as np, torch
from demucs.api import Separator
options = json.loads(sys.argv[1])
torch.set_num_threads(options["threads"])
model = Separator(options["name"], repo=Path(options["repo"]), shifts=0, device="cpu")
mix = torch.from_numpy(np.load(options["mix"]))
wall, processor = time.perf_counter(), time.process_time()
stems = model.separate_tensor(mix, 44100)[1]
"""
REPORT = """
wall, processor = time.perf_counter() - wall, time.process_time() - processor
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
np.savez(options["out"], **{k: getattr(v, "samples", v).numpy() for k, v in stems.items()
                            if k in (options["stems"] or stems)})
print(json.dumps({"wall": wall, "processor": processor, "memory": memory}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", required=True, help="python that has demucs")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=1, help="our segments at once")
    parser.add_argument("--only", choices=["htdemucs", "htdemucs_ft"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mix = Path(folder) / "mix.npy"
        np.save(mix, song(options.seconds).numpy())
        for name, stems in (("htdemucs", None), ("htdemucs_ft", ["vocals"])):
            if options.only in (None, name):
                export(name, Path(folder) / name)
                given = {
                    "name": name,
                    "repo": str(Path(folder) / name),
                    "mix": str(mix),
                    "threads": options.threads,
                    "stems": stems,
                    "batch_size": options.batch_size,
                }
                compare(given, options, Path(folder))


def song(seconds: float) -> torch.Tensor:
    """Tones and noise in stereo."""
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(int(44100 * seconds)) / 44100
    tones = sum(torch.sin(2 * torch.pi * f * time) for f in (110, 220.5, 441.7, 1234))
    noise = torch.randn(2, len(time), generator=generator)
    return 0.1 * tones + 0.05 * noise


def export(name: str, folder: Path) -> None:
    """Random weights of the published size: one network, or one for each stem."""
    from sonorant.separation.bag import bag_of
    from sonorant.separation.export import export_official
    from sonorant.separation.htdemucs import HTDEMUCS, HTDemucs

    config = HTDEMUCS
    count = 1 if name == "htdemucs" else len(config.sources)
    networks = []
    for seed in range(count):
        torch.manual_seed(seed)
        networks.append(HTDemucs(config).eval())
    one_each = tuple(tuple(float(i == j) for j in range(count)) for i in range(count))
    model = networks[0] if count == 1 else bag_of(networks, one_each)
    model.name = name
    export_official(model, folder)


def compare(given: dict[str, object], options: argparse.Namespace, folder: Path) -> None:
    runs: dict[str, list[dict[str, float]]] = {"sonorant": [], "demucs": []}
    for _ in range(options.repeats):
        for name, python, code in (
            ("sonorant", sys.executable, OURS),
            ("demucs", options.peer, THEIRS),
        ):
            runs[name].append(run(python, code, {**given, "out": str(folder / f"{name}.npz")}))
    ours, theirs = (np.load(folder / f"{name}.npz") for name in runs)
    error = max(float(np.abs(ours[k] - theirs[k]).max() / np.abs(theirs[k]).max()) for k in ours)
    what = "all stems" if given["stems"] is None else f"{given['stems']} only"
    print(f"{given['name']}, {options.seconds:g} s, {options.threads} thread(s), {what}")
    print(f"  largest difference, of the largest sample: {error:.1e}")
    best = {n: {k: min(r[k] for r in made) for k in made[0]} for n, made in runs.items()}
    for name, figures in best.items():
        print(
            f"{name:>10}: {figures['wall']:7.1f} s wall, {figures['processor']:7.1f} s processor, "
            f"{figures['memory']:6.0f} MiB"
        )
    ratios = {key: best["demucs"][key] / best["sonorant"][key] for key in best["demucs"]}
    print("     ratio: " + ", ".join(f"{value:.2f} {key}" for key, value in ratios.items()))


def run(python: str, code: str, given: dict[str, object]) -> dict[str, float]:
    threads = str(given["threads"])
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [python, "-c", code + REPORT, json.dumps(given)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


if __name__ == "__main__":
    main()
