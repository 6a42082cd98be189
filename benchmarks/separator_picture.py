"""The picture of a separator's documentation: the demo's mixture above its stems.

python benchmarks/separator_picture.py docs/images/htdemucs-small.png
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sonorant.audio import read
from sonorant.listening import Scale, draw_spectrum
from sonorant.reports import write_figure
from sonorant.separation.demo import separate_clips
from sonorant.separation.repositories import load_separator

INCHES = (9, 8)
DOTS_PER_INCH = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    parser.add_argument("--model", default="sonorant/htdemucs-small")
    options = parser.parse_args()
    model = load_separator(options.model)
    with tempfile.TemporaryDirectory() as folder:
        files = {stem.name: stem.path for stem in separate_clips(model, Path(folder))}
        sounds = {name: read(files[name]) for name in ("mixture", *model.sources)}
    scale = Scale.of(sounds["mixture"])
    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    for axes, (name, sound) in zip(figure.subplots(len(sounds), 1), sounds.items(), strict=True):
        draw_spectrum(axes, sound.to(channels=1), scale.loudest_db)
        axes.set_title(name, fontsize=10, loc="left")
    write_figure(figure, f"{options.model} on a voice over music", options.picture)


if __name__ == "__main__":
    main()
