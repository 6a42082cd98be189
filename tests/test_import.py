"""Importing the package and its command line costs little: no torch."""

import subprocess
import sys

import pytest

import sonorant


def modules_after(statement: str) -> set[str]:
    program = f"{statement}\nimport sys; print(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import sonorant", "import sonorant.cli.main", "import sonorant.cli.models"],
)
def test_import_loads_neither_torch_nor_numpy(statement: str) -> None:
    loaded = modules_after(statement)
    assert "sonorant" in loaded
    assert not {"torch", "numpy"} & loaded


def test_every_public_name_is_there() -> None:
    for name in sonorant.__all__:
        assert getattr(sonorant, name).__name__ == name
    assert set(sonorant.__all__) <= set(dir(sonorant))


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        sonorant.nonsense  # noqa: B018
