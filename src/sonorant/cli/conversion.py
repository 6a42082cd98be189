"""What `compress` and `decompress` share: care for existing files, a progress bar, the figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from sonorant.errors import SonorantError

DEFAULT_MODEL = "sonorant/codec-24khz-small"
ECDC_MODEL = "encodec_24khz"
"""By default for files ending in .ecdc, as the `encodec` command has it."""

force_option = click.option("--force", is_flag=True, help="Replace the output if it exists.")


def check_target(source: Path, target: Path, force: bool) -> None:
    """Raises: SonorantError if writing `target` would lose something."""
    if not target.exists():
        return
    if source.exists() and target.samefile(source):
        raise SonorantError(f"{target} is the input itself; choose another name for the output")
    if not force:
        raise SonorantError(f"{target} exists; choose another name, or replace it with --force")


def check_ending(target: Path, endings: Iterable[str]) -> None:
    """Raises: SonorantError if the name of `target` ends otherwise."""
    known = list(endings)
    if target.suffix.lower() not in known:
        endings_text = f"{', '.join(known[:-1])} or {known[-1]}"
        raise SonorantError(f"cannot write {target}: its name must end in {endings_text}")


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[float, float], None]]:
    """A bar in seconds of sound, on terminals only; yields what `Progress` asks for."""
    from tqdm import tqdm

    form = "{desc}: {percentage:3.0f}% |{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}]"
    with tqdm(desc=title, total=1.0, bar_format=form, disable=None) as bar:

        def tell(done: float, total: float) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield tell


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def speed(self, sound_seconds: float) -> str:
        """How fast so much sound was worked through."""
        elapsed = time.perf_counter() - self._start
        return f"{elapsed:.1f} s, {sound_seconds / elapsed:.1f} times real time"


def size(path: Path) -> str:
    """A file's size for people, in powers of ten."""
    return bytes_text(path.stat().st_size)


def bytes_text(count: int) -> str:
    """A number of bytes for people, in powers of ten.

    >>> bytes_text(999), bytes_text(12345), bytes_text(12345678)
    ('999 B', '12.3 kB', '12.3 MB')
    """
    if count < 1000:
        return f"{count} B"
    return f"{count / 1e3:.1f} kB" if count < 1_000_000 else f"{count / 1e6:.1f} MB"


def kbps_text(path: Path, seconds: float) -> str:
    """A file's rate in kb/s, all of its bytes counted."""
    return f"{path.stat().st_size * 8 / seconds / 1000:.2f} kb/s"
