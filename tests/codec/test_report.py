"""The report: one page that needs nothing else, with every sound and figure in it."""

import base64
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from sonorant.audio import Audio, write
from sonorant.codec.demo import Trial
from sonorant.codec.report import trials_table, write_report
from sonorant.errors import DependencyError
from sonorant.reports import require_plots
from sonorant.sample_clips import Clip
from tests.codec.test_encodec import tiny

RATE = 8000


class Page(HTMLParser):
    """The sources of a page's sounds and pictures, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sources: dict[str, list[str]] = {}
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if source := dict(attrs).get("src"):
            self.sources.setdefault(tag, []).append(source)

    def handle_data(self, data: str) -> None:
        self.text += data


def flac(path: Path, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    sound = 0.1 * torch.randn(1, RATE // 2, generator=generator)
    write(path, Audio(sound, RATE))
    return path


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> list[Trial]:
    folder = tmp_path_factory.mktemp("trials")
    clip = Clip("bell", flac(folder / "bell.flac", 0), "Ann <ann> & Bob")
    made = []
    for seed, (bandwidth, score) in enumerate([(1.5, 2.5), (6.0, None)], start=1):
        container = folder / f"{bandwidth}.snr"
        container.write_bytes(bytes(1000 * seed))
        decoded = flac(folder / f"{bandwidth}.flac", seed)
        made.append(Trial(clip, bandwidth, container, decoded, 1.57, -3.21, 4.56, score))
    return made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, trials: list[Trial]) -> str:
    model = tiny()
    model.name = "tests/<tiny>"
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(path, model, trials)
    return path.read_text(encoding="utf-8")


def test_page_holds_the_original_and_every_version(page: str, trials: list[Trial]) -> None:
    sources = Page(page).sources
    assert set(sources) == {"audio", "img"}
    sounds = [
        base64.b64decode(source.removeprefix("data:audio/flac;base64,"))
        for source in sources["audio"]
    ]
    paths = [trials[0].clip.path, *(trial.decoded for trial in trials)]
    assert sounds == [path.read_bytes() for path in paths]
    assert len(sources["img"]) == len(sounds)
    assert all(source.startswith("data:image/png;base64,") for source in sources["img"])


def test_page_says_who_made_what_and_how_good_it_is(page: str) -> None:
    text = Page(page).text
    for words in (
        "What tests/<tiny> does to sound",
        "Ann <ann> & Bob",
        "a file at 1.5 and 6 kb/s",
        "1,000 bytes, 8x smaller · SI-SNR -3.2 dB · mel distance 4.6 dB · ViSQOL 2.50",
        "2,000 bytes, 4x smaller · SI-SNR -3.2 dB · mel distance 4.6 dB",
    ):
        assert words in text


def test_page_asks_the_network_for_nothing(page: str) -> None:
    assert not any(word in page for word in ("http:", "https:", "@import", "url("))


def test_table_for_the_terminal(trials: list[Trial]) -> None:
    assert trials_table(trials).splitlines() == [
        "clip  kb/s  bytes  smaller   SI-SNR  mel distance         ViSQOL",
        "bell  1.57  1,000       8x  -3.2 dB        4.6 dB           2.50",
        "bell  1.57  2,000       4x  -3.2 dB        4.6 dB  not installed",
    ]


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, trials: list[Trial], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match=r"sonorant\[plots\]"):
        require_plots()
    with pytest.raises(DependencyError):
        write_report(tmp_path / "report.html", tiny(), trials)
    assert not (tmp_path / "report.html").exists()
