"""Train the small codec on with and without the independence loss; measure what it does.

    python benchmarks/independence.py --manifest datasets/open/manifest.jsonl

Runs of equal length start from the codec that ships with the package: without the loss, with the
plain one, and with the delayed one. Of each, and of the codec as shipped, it prints a row of a
Markdown table: the total correlation of the first codebooks (`sonorant.codec.dependence`: a lower
bound, on held-out sound), of one frame and of the frames that the delay pattern predicts together,
and the quality of the reconstruction. The last rows say what is chance: how much another seed of
the predictor changes, and the same measure on shuffled codebooks, which are independent.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import msgspec
import torch
from torch import Tensor

import sonorant
from sonorant.codec.adversarial_training import AdversarySettings
from sonorant.codec.dependence import shuffled, total_correlation
from sonorant.codec.encodec import Encodec
from sonorant.codec.independence_training import IndependenceSettings
from sonorant.codec.training import CodecSettings, StartSettings
from sonorant.data.dataset import SegmentConfig, SegmentDataset
from sonorant.data.manifest import Split, read_manifest
from sonorant.losses.independence import IndependenceConfig, delay_streams
from sonorant.losses.spectral import MultiScaleMelLoss, si_snr_loss
from sonorant.training.engine import train
from sonorant.training.recipe import Recipe, TrainingConfig

START = "sonorant/codec-24khz-small"
CODEBOOKS = 4  # 3 kb/s; their vectors have 256 numbers together
NEVER = 10**9
LOSSES = {
    "without": None,
    "plain": IndependenceConfig(delayed=False),
    "delayed": IndependenceConfig(delayed=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--runs", nargs="+", choices=list(LOSSES), default=list(LOSSES))
    parser.add_argument(
        "--segments",
        type=int,
        nargs=2,
        default=(1500, 400),
        metavar="COUNT",
        help="seconds of sound whose tokens train the predictor, and test it",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| codec | total correlation | delayed | mel distance | SI-SNR |")
    print("|---|---|---|---|---|")
    shipped = sonorant.load(START)
    report("as shipped", shipped, options)
    for name in options.runs:
        report(f"trained on, {name}", trained(LOSSES[name], options), options)
    tokens = [tokens_of(shipped, options, split) for split in ("train", "valid")]
    first, second = (dependence(*tokens, seed) for seed in (0, 1))
    print(f"| as shipped, another seed of the predictor: change | {second - first:+.2f} | | | |")
    mixed = [shuffled(rows.transpose(0, 1).flatten(1))[None] for rows in tokens]
    print(f"| as shipped, codebooks shuffled | {dependence(*mixed):.2f} | | | |")


def trained(loss: IndependenceConfig | None, options: argparse.Namespace) -> Encodec:
    independence = None
    if loss is not None:
        independence = IndependenceSettings(stored_batches=1, codebooks=CODEBOOKS, loss=loss)
    settings = CodecSettings(
        manifest=str(options.manifest),
        codec=sonorant.load(START).config,
        start=StartSettings(model=START),
        segments=SegmentConfig(sample_rate=24_000, segment_seconds=0.3),
        adversary=AdversarySettings(from_step=NEVER, per_bandwidth=False),
        independence=independence,
        learning_rate=5e-7,  # the designed encoder unlearns at 5e-6
        adam_betas=(0.8, 0.99),
    )
    config = TrainingConfig(
        steps=options.steps,
        warmup_steps=options.steps // 4,
        batch_size=8,
        device="cpu",
        threads=1,
        evaluate_every=0,
        log_every=options.steps,
        checkpoint_every=options.steps,
    )
    recipe = Recipe(
        task="sonorant.codec.training:CodecTask",
        training=config,
        settings=msgspec.to_builtins(settings),
    )
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, Path(folder) / "run")
        return Encodec.from_pretrained(Path(folder) / "run" / "model")


def report(name: str, codec: Encodec, options: argparse.Namespace) -> None:
    tokens = [tokens_of(codec, options, split) for split in ("train", "valid")]
    delayed = [delay_streams(rows[:, :, None])[:, :, 0] for rows in tokens]
    mel, si_snr = quality(codec, options)
    print(
        f"| {name} | {dependence(*tokens):.2f} | {dependence(*delayed):.2f} | {mel:.3f} "
        f"| {si_snr:.2f} dB |",
        flush=True,
    )


def dependence(train_tokens: Tensor, held_out: Tensor, seed: int = 0) -> float:
    """Bits per frame, of tokens `[segments, codebooks, frames]`."""
    flat = (rows.transpose(0, 1).flatten(1) for rows in (train_tokens, held_out))
    return total_correlation(*flat, codebook_size=1024, seed=seed).bits


def segments(options: argparse.Namespace, split: Split) -> SegmentDataset:
    count = options.segments[0 if split == "train" else 1]
    config = SegmentConfig(sample_rate=24_000, segment_seconds=1.0, gain_db=None)
    return SegmentDataset(read_manifest(options.manifest, split), config, 7, count)


@torch.no_grad()
def tokens_of(codec: Encodec, options: argparse.Namespace, split: Split) -> Tensor:
    data = segments(options, split)
    return torch.cat(
        [codec.encode_batch(data[index][None], 3.0).tokens for index in range(len(data))]
    )


@torch.no_grad()
def quality(codec: Encodec, options: argparse.Namespace) -> tuple[float, float]:
    """Mel distance and SI-SNR in dB at 3 kb/s, of held-out sound."""
    data = segments(options, "valid")
    sounds = torch.stack([data[index] for index in range(48)])
    made = codec.decode_batch(codec.encode_batch(sounds, 3.0))
    mel = MultiScaleMelLoss(24_000)
    return float(mel(made, sounds)), -float(si_snr_loss(made, sounds))


if __name__ == "__main__":
    main()
