"""The examples in README.md and docs/ run, page by page, as a reader would type them.

Blocks fenced as `python` share one namespace per page, unless they begin with `# doc: not run`;
blocks fenced as `bash` run in a shell. Commands that cannot run here are fenced as `sh`.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import sonorant
from sonorant.hub.table import known

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SECONDS = 2


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """Language, text and first line of the fenced blocks that run."""
    text = page.read_text(encoding="utf-8")
    return [
        (match[1], match[2], text.count("\n", 0, match.start()) + 2)
        for match in re.finditer(
            r"^```(python|bash)\n(?!# doc: not run)(.*?)^```", text, re.M | re.S
        )
    ]


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder a reader works in, with the sounds that the pages name."""
    for name, clip in (("song.wav", "music.flac"), ("speech.wav", "speech.flac")):
        audio = sonorant.read(ROOT / "src" / "sonorant" / "clips" / clip)
        short = audio.samples[:, : SECONDS * audio.sample_rate]
        sonorant.write(tmp_path / name, sonorant.Audio(short, audio.sample_rate))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SONORANT_OFFLINE", "1")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, reader: Path) -> None:
    namespace: dict[str, object] = {"__name__": "example"}
    for language, text, line in blocks(page):
        if language == "bash":
            done = subprocess.run(["bash", "-euc", text], capture_output=True, text=True)
            assert done.returncode == 0, f"{page}:{line}: {done.stderr}"
        else:
            # Padded with empty lines, so that a traceback shows the page's own line numbers.
            exec(compile("\n" * (line - 1) + text, str(page), "exec"), namespace)


def test_every_page_is_in_the_contents() -> None:
    contents = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [page.name for page in PAGES[1:] if page.name not in contents]
    assert missing == []


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md"]
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert broken == []


def test_models_page_names_every_known_model_with_its_licence() -> None:
    rows = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    for name, entry in known().models.items():
        assert any(f"`{name}`" in row and entry.licence in row for row in rows), name
