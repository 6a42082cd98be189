"""Running the command line inside the test's own process, the way the console script does."""

import sys
from pathlib import Path

import pytest

from sonorant.cli.main import main
from tests.codec.test_encodec import tiny


class CommandLine:
    """`sonorant` in a folder of its own, without network; keeps what the last command printed."""

    def __init__(
        self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.folder, self._capsys, self._monkeypatch = folder, capsys, monkeypatch
        monkeypatch.chdir(folder)
        monkeypatch.setenv("SONORANT_OFFLINE", "1")
        monkeypatch.setenv("SONORANT_CACHE", str(folder / "cache"))
        tiny().save_pretrained(folder / "model")

    def run(self, *arguments: str) -> int:
        """Exit status of a command; `out` and `err` are what it printed."""
        self._monkeypatch.setattr(sys, "argv", ["sonorant", *arguments])
        status = 0
        try:
            main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        self.out, self.err = self._capsys.readouterr()
        return status

    def content(self) -> dict[str, bytes]:
        """All files of the folder, hidden ones too, and what is in them."""
        paths = sorted(self.folder.rglob("*"))
        return {str(path): path.read_bytes() for path in paths if path.is_file()}

    def fails(self, *arguments: str) -> str:
        """The line that a command fails with, having changed nothing."""
        before = self.content()
        assert self.run(*arguments) == 2
        assert self.out == ""
        assert self.err.startswith("error: ")
        assert self.err.count("\n") == 1
        assert self.content() == before
        return self.err


@pytest.fixture
def sonorant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    return CommandLine(tmp_path, capsys, monkeypatch)
