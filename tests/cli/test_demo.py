"""`sonorant demo`: the table, the report and the files behind it."""

import sys

import pytest

from sonorant.codec import metrics
from sonorant.codec.container import ContainerReader
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
    rows = sonorant.out.splitlines()[1:10]
    assert [row.split()[0] for row in rows] == [
        clip for clip in ("speech", "music", "sound") for _ in BANDWIDTHS
    ]
    assert sonorant.out.endswith("Open out/report.html in a browser to see and hear it.\n")
    names = {f"{clip}-{kbps:g}kbps" for clip in ("speech", "music", "sound") for kbps in BANDWIDTHS}
    expected = {name + ending for name in names for ending in (".snr", ".flac")}
    found = {path.name for path in (sonorant.folder / "out").iterdir()}
    assert found == expected | {"report.html", "mine.txt"}
    assert ContainerReader(sonorant.folder / "out" / "music-0.8kbps.snr").header.codebooks == 2
    assert [path.name for path in sonorant.folder.iterdir() if path.name.startswith(".")] == []


def test_demo_without_a_model_writes_nothing(sonorant: CommandLine) -> None:
    assert "neither a known model" in sonorant.fails("demo", "--model", "nonsense")


def test_demo_without_matplotlib_names_the_extra(
    sonorant: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "sonorant[plots]" in sonorant.fails("demo", "--model", "model")
