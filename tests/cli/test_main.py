"""The command line's manners: help without torch, one line per error, exit statuses."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

import sonorant
from sonorant.cli.main import SUBCOMMANDS
from sonorant.cli.main import sonorant as command


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sonorant.cli.main", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
    )


def test_help_lists_all_commands_and_loads_no_torch() -> None:
    done = run("--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in SUBCOMMANDS)
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "sonorant" in imported
    assert "torch" not in imported


def test_version() -> None:
    assert run("--version").stdout == f"sonorant, version {sonorant.__version__}\n"


@pytest.mark.parametrize("name", list(SUBCOMMANDS))
def test_every_command_has_help_of_its_own(name: str) -> None:
    found = command.get_command(click.Context(command), name)
    assert found is not None
    assert found.help


def test_error_is_one_line_and_exit_status_2(tmp_path: Path) -> None:
    done = run("models", "info", str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("nonsense",), ("models", "info"), ("--nonsense",)])
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "Usage:" in done.stderr


def run_subcommand(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Run the command line with one more subcommand, whose function has this body."""
    (folder / "extra.py").write_text(
        f"import click, os, signal\n@click.command()\ndef extra():\n    {body}\n"
    )
    program = (
        # A shell's background jobs inherit that SIGINT is ignored; a terminal's command does not.
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys\nfrom sonorant.cli.main import SUBCOMMANDS, Subcommand, main\n"
        "SUBCOMMANDS['extra'] = Subcommand('extra:extra', '')\n"
        "sys.argv = ['sonorant', 'extra']\nmain()"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder
    )


def test_interrupt_exits_with_130(tmp_path: Path) -> None:
    done = run_subcommand(tmp_path, "os.kill(os.getpid(), signal.SIGINT)")
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr.strip() == "interrupted"


def test_failing_system_call_is_one_line(tmp_path: Path) -> None:
    done = run_subcommand(tmp_path, "open('/dev/full', 'w').write('x' * 100_000)")
    assert done.returncode == 2
    assert done.stderr == "error: [Errno 28] No space left on device\n"


def test_programming_error_keeps_its_traceback(tmp_path: Path) -> None:
    done = run_subcommand(tmp_path, "1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
