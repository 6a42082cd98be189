"""`sonorant models`: what is known, and where it is."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from sonorant.cli.models import models
from sonorant.hub.fetch import cached_path
from sonorant.hub.table import known


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SONORANT_CACHE", str(tmp_path))
    return tmp_path


def listed() -> dict[str, str]:
    result = CliRunner().invoke(models, ["list"], catch_exceptions=False)
    assert result.exit_code == 0
    return {line.split()[0]: line.split()[1] for line in result.stdout.splitlines()}


def test_list_says_what_ships_and_what_is_remote(cache: Path) -> None:
    places = listed()
    assert set(places) == set(known().models)
    assert places["sonorant/codec-24khz-small"] == "shipped"
    assert places["sonorant/mimi-small"] == "shipped"
    assert places["encodec_24khz"] == "remote"


def test_list_says_what_is_cached(cache: Path) -> None:
    path = cached_path(known().models["encodec_24khz"].files[0])
    path.parent.mkdir()
    path.touch()
    assert listed()["encodec_24khz"] == "cached"


def test_info_of_the_shipped_model_gives_size_licence_and_card() -> None:
    name = "sonorant/codec-24khz-small"
    result = CliRunner().invoke(models, ["info", name], catch_exceptions=False)
    facts = dict(line.split(":", 1) for line in result.stdout.splitlines()[:7])
    assert facts["name"].strip() == name
    assert facts["system"].strip() == "encodec"
    assert int(facts["parameters"].replace(",", "")) > 100_000
    assert float(facts["per live session"].split()[0]) > 0
    assert facts["licence"].strip() == known().models[name].licence
    assert "\n# " in result.stdout
