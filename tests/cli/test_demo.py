"""`sonorant demo`: the table, the report and the files behind it."""

import sys

import pytest

from sonorant.codec import metrics
from sonorant.codec.container import ContainerReader
from sonorant.separation.demucs_v3 import DemucsV3, DemucsV3Config
from tests.cli.running import CommandLine, sonorant
from tests.codec.test_encodec import BANDWIDTHS

__all__ = ["sonorant"]  # the fixture


@pytest.mark.slow
def test_demo_writes_table_report_and_files(
    sonorant: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics._visqol_api.cache_clear()
    monkeypatch.setitem(sys.modules, "visqol", None)
    (sonorant.folder / "out").mkdir()
    (sonorant.folder / "out" / "mine.txt").write_text("stays")
    assert sonorant.run("demo", "--model", "model", "--out", "out") == 0
    lines = sonorant.out.splitlines()
    rows = lines[1:10]
    assert [row.split()[0] for row in rows] == [
        clip for clip in ("speech", "music", "sound") for _ in BANDWIDTHS
    ]
    stems = ["mixture", "drums", "bass", "other", "vocals", "no_vocals"]
    assert [line.split()[0] for line in lines[12:18]] == stems
    voice, rest = (float(line.split()[5]) for line in lines[16:18])
    assert voice > 3
    assert rest > 3  # dB better than the mixture, on recordings that nothing was trained on
    assert sonorant.out.endswith("Open out/report.html in a browser to see and hear it.\n")
    names = {f"{clip}-{kbps:g}kbps" for clip in ("speech", "music", "sound") for kbps in BANDWIDTHS}
    expected = {name + ending for name in names for ending in (".snr", ".flac")}
    expected |= {"mixture.flac", *(f"stem-{name}.flac" for name in stems[1:])}
    found = {path.name for path in (sonorant.folder / "out").iterdir()}
    assert found == expected | {"report.html", "mine.txt"}
    assert ContainerReader(sonorant.folder / "out" / "music-0.8kbps.snr").header.codebooks == 2
    page = (sonorant.folder / "out" / "report.html").read_text()
    assert page.count("<audio ") == 3 * (1 + len(BANDWIDTHS)) + len(stems)
    assert [path.name for path in sonorant.folder.iterdir() if path.name.startswith(".")] == []


def test_demo_without_a_model_writes_nothing(sonorant: CommandLine) -> None:
    assert "neither a known model" in sonorant.fails("demo", "--model", "nonsense")


def test_demo_needs_a_separator_of_vocals(sonorant: CommandLine) -> None:
    config = DemucsV3Config(sources=("tone", "noise"), channels=4, depth=2, segment_seconds=1.0)
    DemucsV3(config).save_pretrained(sonorant.folder / "pair")
    complaint = sonorant.fails("demo", "--model", "model", "--separator", "pair")
    assert "needs a separator of vocals, this one gives tone, noise" in complaint


def test_demo_without_matplotlib_names_the_extra(
    sonorant: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "sonorant[plots]" in sonorant.fails("demo", "--model", "model")
