"""`sonorant study`: a table and a folder, or one clear error."""

import json

from tests.cli.running import CommandLine, sonorant

__all__ = ["sonorant"]  # the fixture


def test_writes_a_report_and_prints_its_table(sonorant: CommandLine) -> None:
    assert sonorant.run("study", "adam", "--steps", "50", "--seeds", "1", "--out", "out") == 0
    assert sonorant.out.startswith("setting")
    assert sonorant.out.endswith("Open out/report.html in a browser to see it.\n")
    found = {path.name for path in (sonorant.folder / "out").iterdir()}
    assert found == {"report.html", "results.json", "slopes.png"}
    assert json.loads((sonorant.folder / "out" / "results.json").read_text())["steps"] == 50


def test_refuses_bad_input(sonorant: CommandLine) -> None:
    (sonorant.folder / "file").write_text("x")
    (sonorant.folder / "rows").write_text("1 1:1\n-1 x\n")
    assert "is a file" in sonorant.fails("study", "lms", "--out", "file")
    assert "rows, line 2" in sonorant.fails("study", "adabatch", "--train", "rows")
    assert "--train" in sonorant.fails("study", "adabatch", "--test", "rows")
    assert "No such file" in sonorant.fails("study", "adabatch", "--train", "none")


def test_the_shapes_are_those_of_the_library() -> None:
    from sonorant.cli.study import SHAPES
    from sonorant.studies import sparse_rows

    assert tuple(sparse_rows.SHAPES) == SHAPES
