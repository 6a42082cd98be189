"""Downloads from a server of the tests' own: cached, checked, and refused offline."""

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sonorant.errors import CheckpointError
from sonorant.hub.fetch import (
    cache_folder,
    cached_path,
    fetch_files,
    fetch_repository,
    is_cached,
)
from sonorant.hub.table import ModelEntry, RemoteFile

CONTENT = b"weights, let us say"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(SimpleHTTPRequestHandler):
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SONORANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SONORANT_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path, cache: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "model.th").write_bytes(CONTENT)
    Handler.requests = []
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "www"))
    ) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def entry(url: str, sha256: str = DIGEST) -> ModelEntry:
    files = (RemoteFile(url=url, sha256=sha256),)
    return ModelEntry(system="toy", title="A toy", licence="MIT", files=files)


def files_below(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("digits", [8, 64])
def test_file_is_fetched_once(server: str, cache: Path, digits: int) -> None:
    wanted = entry(f"{server}/model.th", DIGEST[:digits])
    assert not is_cached(wanted)
    for _ in range(2):
        (path,) = fetch_files(wanted)
        assert path.read_bytes() == CONTENT
    assert Handler.requests == ["/model.th"]
    assert is_cached(wanted)
    assert files_below(cache) == ["model.th"]


def test_file_with_another_digest_is_not_kept(server: str, cache: Path) -> None:
    with pytest.raises(CheckpointError, match="not the published file"):
        fetch_files(entry(f"{server}/model.th", "0" * 64))
    assert files_below(cache) == []


def test_another_file_in_the_cache_is_not_taken(server: str, cache: Path) -> None:
    wanted = entry(f"{server}/model.th", "0" * 8)
    path = cached_path(wanted.files[0])
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    with pytest.raises(CheckpointError, match=f"digest is {DIGEST[:8]}; delete it"):
        fetch_files(wanted)
    assert Handler.requests == []


def test_file_that_the_server_lacks_is_named(server: str, cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot fetch .*/none\.th.*404"):
        fetch_files(entry(f"{server}/none.th"))
    assert files_below(cache) == []


def test_unreachable_server_says_where_a_copy_goes(cache: Path) -> None:
    with pytest.raises(CheckpointError, match=r"put it at .*cache"):
        fetch_files(entry("http://127.0.0.1:9/model.th"))


@pytest.mark.parametrize("variable", ["SONORANT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_uses_the_cache_and_asks_nobody(
    server: str, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    wanted = entry(f"{server}/model.th")
    with pytest.raises(CheckpointError, match="environment says offline"):
        fetch_files(wanted)
    assert Handler.requests == []
    cached_path(wanted.files[0]).parent.mkdir(parents=True)
    cached_path(wanted.files[0]).write_bytes(CONTENT)
    assert fetch_files(wanted) == [cached_path(wanted.files[0])]


def test_cache_is_below_home_unless_the_environment_says_otherwise(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("SONORANT_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "sonorant"


def test_hub_repository_offline_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SONORANT_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"someone/something.*offline") as caught:
        fetch_repository("someone/something", ["config.json"])
    assert "\n" not in str(caught.value)


def test_name_that_the_hub_cannot_have_is_refused(cache: Path) -> None:
    with pytest.raises(CheckpointError, match="no model at 'a--b/"):
        fetch_repository("a--b/..", ["config.json"])
