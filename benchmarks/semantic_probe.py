"""What does each codebook of a codec know? A linear classifier on its codewords answers.

Every sound is encoded; its frames are divided into a few equal parts of time, and the codewords of
one codebook are averaged in each. Logistic regression learns the labels from that, on the training
items, and is asked about the test items. Beside every codebook alone stand all acoustic ones
together and the share of the commonest label. The semantic codebook has done its work if it knows
what is said better than any other codebook, and who says it no better.

The manifest has one JSON object a line, with a path relative to it, a `split` ("train" or "test")
and the labels, such as the words and speakers of the Free Spoken Digit Dataset.

    python benchmarks/semantic_probe.py runs/mimi-small/model digits/manifest.jsonl --label text
    python benchmarks/semantic_probe.py ... --label text --label speaker --json probe.json
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import sonorant
from sonorant.codec.mimi import Mimi
from sonorant.nn.quantizer import Codebook

PARTS = 4
DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the weights; chosen on a fifth of the training items
STEPS = 60  # of L-BFGS


def features(model: Mimi, manifest: Path, items: list[dict[str, str]]) -> Tensor:
    """Averaged codewords `[items, codebooks, parts * dimension]`."""
    books = [module for module in model.quantizer.modules() if isinstance(module, Codebook)]
    rows = []
    for item in items:
        audio = sonorant.read(manifest.parent / item["path"])
        tokens = model.encode(audio).tokens[0]  # [codebooks, frames]
        words = torch.stack([book.decode(row) for book, row in zip(books, tokens, strict=True)])
        parts = F.adaptive_avg_pool1d(words.transpose(1, 2), PARTS)
        rows.append(parts.flatten(1))
    return torch.stack(rows)


def fit(x: Tensor, labels: Tensor, classes: int, decay: float) -> torch.nn.Linear:
    """Logistic regression with decaying weights."""
    layer = torch.nn.Linear(x.shape[1], classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), labels) + decay * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return layer


def accuracy(layer: torch.nn.Linear, x: Tensor, labels: Tensor) -> float:
    return float((layer(x).argmax(dim=1) == labels).float().mean())


def probe(x: Tensor, labels: Tensor, train: Tensor) -> float:
    """Accuracy on the test items of the best decay on held-out training items."""
    mean, spread = x[train].mean(0), x[train].std(0).clamp(min=1e-6)
    x = (x - mean) / spread
    classes = int(labels.max()) + 1
    held_out = torch.arange(int(train.sum())) % 5 == 0
    inner, answers = x[train], labels[train]
    scores = {
        decay: accuracy(
            fit(inner[~held_out], answers[~held_out], classes, decay),
            inner[held_out],
            answers[held_out],
        )
        for decay in DECAYS
    }
    best = max(scores, key=lambda decay: scores[decay])
    return accuracy(fit(inner, answers, classes, best), x[~train], labels[~train])


def probe_label(x: Tensor, items: list[dict[str, str]], label: str) -> dict[str, float]:
    names = sorted({str(item[label]) for item in items})
    labels = torch.tensor([names.index(str(item[label])) for item in items])
    train = torch.tensor([item["split"] == "train" for item in items])
    commonest = Counter(labels[train].tolist()).most_common(1)[0][0]
    result = {"commonest": float((labels[~train] == commonest).float().mean())}
    for book in range(x.shape[1]):
        result[f"codebook {book}"] = probe(x[:, book], labels, train)
    result["all acoustic"] = probe(x[:, 1:].flatten(1), labels, train)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--label", action="append", required=True)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    model = sonorant.load(arguments.model)
    assert isinstance(model, Mimi), "the probe is for Mimi models"
    items = [json.loads(line) for line in arguments.manifest.read_text().splitlines()]
    items = [item for item in items if item["split"] in ("train", "test")]
    with torch.no_grad():
        x = features(model, arguments.manifest, items)
    results = {label: probe_label(x, items, label) for label in arguments.label}
    for label, figures in results.items():
        print(f"\n{label}: share of {len(items)} items' test part told right")
        for name, value in figures.items():
            print(f"  {name:14s} {value:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
