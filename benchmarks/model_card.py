"""The figures of a codec's model card: quality by domain on held-out sound, beside Opus and MP3.

Cuts excerpts from files of a manifest's test split, the same ones every time, sends them through
the codec at each of its bandwidths and through the baselines, and prints Markdown tables. Rates are
true ones: of tokens, of Opus packets, of MP3 files. Everything is compared with the excerpt at the
codec's rate and channels. Needs `pip install 'sonorant[eval]'` and the programs opusenc and lame
(Debian: opus-tools, lame). ViSQOL takes most of the time, about a quarter of the sound's length for
each version; 36 excerpts take 11 minutes of one core, less than 6 on two.

    python benchmarks/model_card.py datasets/open/manifest.jsonl --json card.json
    python benchmarks/model_card.py datasets/open/manifest.jsonl --excerpts 1 --seconds 3  # a try
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import islice, zip_longest
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from sonorant.audio import Audio, read
from sonorant.codec.baselines import Coded, mp3, opus, opus_live
from sonorant.codec.files import Codec, load_codec
from sonorant.codec.metrics import codebook_use, mel_distance, si_snr, visqol
from sonorant.codec.mimi import Mimi
from sonorant.data.manifest import DOMAINS, Domain, Item, read_manifest
from sonorant.errors import ConfigError

Tokens = npt.NDArray[np.int64]  # [codebooks, frames]

SHORTEST_SECONDS = 2.0  # shorter files say little, and ViSQOL needs one second
QUIETEST = 0.003  # root mean square; an excerpt of silence cannot be judged
# The codec's bandwidths and their doubles, as far as Opus and MP3 reach down.
OPUS_RATES = (6, 12, 24)
OPUS_LIVE_RATES = (6, 12)
MP3_RATES = (8, 16)
SET_AGAINST = 6.0  # kb/s at most, of what the baselines are set against: the lowest that Opus has
MIMI_CODEBOOKS = (2, 4, 8)  # at which a codec is measured that names no bandwidths
METRICS = {
    "visqol": "ViSQOL, higher is better",
    "mel_distance": "Mel distance in dB, lower is better",
    "si_snr": "SI-SNR in dB, higher is better",
    "kbps": "True rate in kb/s",
}


class Excerpt(msgspec.Struct, frozen=True):
    """A stretch of a file."""

    domain: Domain
    group: str
    path: str
    start_seconds: float
    seconds: float

    def load(self, codec: Codec) -> Audio:
        """Its sound, as the codec takes it."""
        audio = read(self.path).to(codec.sample_rate, codec.channels)
        start = round(self.start_seconds * codec.sample_rate)
        stop = start + round(self.seconds * codec.sample_rate)
        return Audio(audio.samples[:, start:stop], codec.sample_rate)


class Score(msgspec.Struct, frozen=True):
    """How good one excerpt is after one codec at one rate."""

    excerpt: Excerpt
    system: str
    kbps: float
    si_snr: float
    mel_distance: float
    visqol: float


def choose(items: Sequence[Item], domain: Domain, count: int, seconds: float) -> list[Excerpt]:
    """The first `count` audible excerpts of a domain, in an order that never changes: the groups
    take turns, and within a group its files do."""
    generator = random.Random(0)
    groups: dict[str, list[tuple[int, Excerpt]]] = {}  # how many of the file come before, excerpt
    for item in sorted(items, key=lambda item: (item.group, item.source, item.original, item.path)):
        if item.domain == domain and item.duration_seconds >= SHORTEST_SECONDS:
            starts = [k * seconds for k in range(max(1, int(item.duration_seconds / seconds)))]
            generator.shuffle(starts)
            length = min(seconds, item.duration_seconds)
            groups.setdefault(item.group, []).extend(
                (turn, Excerpt(domain, item.group, item.path, start, length))
                for turn, start in enumerate(starts)
            )
    for candidates in groups.values():
        generator.shuffle(candidates)
        candidates.sort(key=lambda candidate: candidate[0])
    turns = zip_longest(*groups.values())
    ordered = (candidate[1] for turn in turns for candidate in turn if candidate is not None)
    chosen = list(islice(filter(_is_audible, ordered), count))
    if not chosen:
        raise ConfigError(f"no {domain} of {SHORTEST_SECONDS:g} s or more in the test split")
    return chosen


def _is_audible(excerpt: Excerpt) -> bool:
    audio = read(excerpt.path)
    start = round(excerpt.start_seconds * audio.sample_rate)
    stop = start + round(excerpt.seconds * audio.sample_rate)
    return float(audio.samples[:, start:stop].square().mean().sqrt()) >= QUIETEST


def bandwidths(codec: Codec) -> list[float]:
    """Those it is measured at, in kb/s."""
    if isinstance(codec, Mimi):
        return [codec.bandwidth_of(count) for count in MIMI_CODEBOOKS]
    return list(codec.config.target_bandwidths_kbps)


def versions(audio: Audio, codec: Codec) -> Iterator[tuple[str, Coded]]:
    """The sound after every system, by the system's name."""
    for bandwidth in bandwidths(codec):
        encoded = codec.encode(audio, bandwidth)
        bits = encoded.tokens.numel() * math.log2(codec.config.quantizer.codebook_size)
        coded = Coded(codec.decode(encoded), bits / audio.duration_seconds / 1000)
        yield f"ours, {bandwidth:g} kb/s", coded
    for rate in OPUS_RATES:
        yield f"Opus (opusenc), {rate} kb/s", opus(audio, rate)
    for rate in OPUS_LIVE_RATES:
        yield f"Opus (no look-ahead), {rate} kb/s", opus_live(audio, rate)
    for rate in MP3_RATES:
        yield f"MP3 (lame), {rate} kb/s", mp3(audio, rate)


def use_one_thread() -> None:
    """For each process: torch and numba would start one per core in all of them."""
    os.environ["NUMBA_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


load_once = cache(load_codec)


def judge(excerpt: Excerpt, model: str) -> tuple[list[Score], Tokens]:
    """Scores of all versions of one excerpt, and its tokens."""
    codec = load_once(model)
    audio = excerpt.load(codec)
    scores = [
        Score(
            excerpt,
            system,
            coded.kbps,
            si_snr(audio, coded.sound),
            mel_distance(audio, coded.sound),
            visqol(audio, coded.sound),
        )
        for system, coded in versions(audio, codec)
    ]
    return scores, codec.encode(audio).tokens[0].numpy()


def mean(scores: Sequence[Score], metric: str, system: str, domain: Domain) -> float:
    return statistics.fmean(
        getattr(score, metric)
        for score in scores
        if (score.system, score.excerpt.domain) == (system, domain)
    )


def quality_table(scores: Sequence[Score], metric: str) -> str:
    """Means over excerpts by domain, and the mean of the domains."""
    digits = 2 if metric in ("visqol", "kbps") else 1
    lines = [f"| {METRICS[metric]} | {' | '.join(DOMAINS)} | mean |", "|---|" + "---:|" * 4]
    for system in dict.fromkeys(score.system for score in scores):
        means = [mean(scores, metric, system, domain) for domain in DOMAINS]
        cells = [f"{value:.{digits}f}" for value in (*means, statistics.fmean(means))]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def wins_table(scores: Sequence[Score], ours: str) -> str:
    """On how many excerpts our codec is better than each baseline, by ViSQOL and mel distance."""
    by_excerpt: dict[Excerpt, dict[str, Score]] = {}
    for score in scores:
        by_excerpt.setdefault(score.excerpt, {})[score.system] = score
    head = f"{ours}, wins by ViSQOL and by mel distance"
    lines = [f"| {head} | {' | '.join(DOMAINS)} |", "|---|---:|---:|---:|"]
    for system in dict.fromkeys(s.system for s in scores if not s.system.startswith("ours")):
        cells = []
        for domain in DOMAINS:
            pairs = [
                (row[ours], row[system])
                for excerpt, row in by_excerpt.items()
                if excerpt.domain == domain
            ]
            heard = sum(mine.visqol > theirs.visqol for mine, theirs in pairs)
            nearer = sum(mine.mel_distance < theirs.mel_distance for mine, theirs in pairs)
            cells.append(f"{heard} and {nearer} of {len(pairs)}")
        lines.append(f"| over {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def usage_table(tokens: dict[str, list[Tokens]], codebook_size: int) -> str:
    """How many codewords occur, and how evenly, in each domain."""
    lines = [
        "| codebooks | codewords used, least to most | perplexity, least to most | bits a token |",
        "|---|---:|---:|---:|",
    ]
    everything: dict[str, list[Tokens]] = {
        **tokens,
        "all": [part for parts in tokens.values() for part in parts],
    }
    for domain, parts in everything.items():
        joined = torch.from_numpy(np.concatenate(parts, axis=-1))[None]
        uses = codebook_use(joined, codebook_size)
        shares = [use.used for use in uses]
        perplexities = [use.perplexity for use in uses]
        bits = statistics.fmean(use.entropy_bits for use in uses)
        lines.append(
            f"| {domain} ({joined.shape[-1]} frames) | {min(shares):.0%} to {max(shares):.0%} | "
            f"{min(perplexities):.0f} to {max(perplexities):.0f} | {bits:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--model", default="sonorant/codec-24khz-small")
    parser.add_argument("--excerpts", type=int, default=12, help="per domain")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each excerpt at most")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write every single score here")
    arguments = parser.parse_args()

    codec = load_codec(arguments.model)
    items = read_manifest(arguments.manifest, "test")
    excerpts = [
        excerpt
        for domain in DOMAINS
        for excerpt in choose(items, domain, arguments.excerpts, arguments.seconds)
    ]
    scores: list[Score] = []
    tokens: dict[str, list[Tokens]] = {domain: [] for domain in DOMAINS}
    with ProcessPoolExecutor(
        arguments.processes, get_context("spawn"), initializer=use_one_thread
    ) as pool:
        jobs = pool.map(judge, excerpts, [arguments.model] * len(excerpts))
        for excerpt, (some, part) in zip(excerpts, tqdm(jobs, total=len(excerpts)), strict=True):
            scores += some
            tokens[excerpt.domain].append(part)

    for domain in DOMAINS:
        chosen = [excerpt for excerpt in excerpts if excerpt.domain == domain]
        seconds = sum(excerpt.seconds for excerpt in chosen)
        groups = len({excerpt.group for excerpt in chosen})
        print(f"{domain}: {len(chosen)} excerpts of {groups} groups, {seconds:.0f} s")
    for metric in METRICS:
        print("\n" + quality_table(scores, metric))
    set_against = max(kbps for kbps in bandwidths(codec) if kbps <= SET_AGAINST)
    print("\n" + wins_table(scores, f"ours, {set_against:g} kb/s"))
    print("\n" + usage_table(tokens, codec.config.quantizer.codebook_size))
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(scores), indent=1))


if __name__ == "__main__":
    main()
