"""Every recorded case under tests/fixtures agrees with our code."""

from pathlib import Path

import pytest
import torch

from tests.parity.__main__ import main
from tests.parity.runner import Case, UnknownCaseError, compare, find_adapter, run_case

FIXTURES = Path(__file__).parent.parent / "fixtures"
CASES = sorted(
    path.parent
    for name in ("io.safetensors", "cases.json")
    for path in FIXTURES.glob(f"*/*/{name}")
)


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_every_recorded_tensor_agrees(folder: Path) -> None:
    missed = [result for result in run_case(folder) if not result.passed]
    assert not missed


def test_key_lists_are_no_case_and_an_unknown_folder_is_a_miss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, balancer = FIXTURES / "codecs" / "keys", FIXTURES / "codecs" / "balancer"
    assert main([str(keys), str(balancer)]) == 0
    assert capsys.readouterr().out.startswith(f"{keys}: skipped, it lists keys")
    assert main([str(tmp_path), str(balancer)]) == 1
    assert capsys.readouterr().out.startswith(f"{tmp_path}: MISS no adapter")


def test_the_longest_stem_decides() -> None:
    assert find_adapter("balancer_total") is find_adapter("balancer")


@pytest.mark.parametrize(
    ("readme", "expected"),
    [
        ("Tolerance rtol 1e-5, atol 1e-6.", (1e-5, 1e-6)),
        ("Tolerance: audio rtol 1e-4 atol 1e-5; codes exact", (1e-4, 1e-5)),
        ("Tolerance 2e-5 (more for FFT).", (2e-5, 2e-5)),
        ("Tolerance rtol 1e-4.", (1e-4, 1e-7)),
        ("Tolerance: exact for integers, 1e-6 for floats.", (1e-6, 1e-6)),
        ("Tolerance: relative 1e-12 (float64).", (1e-12, 1e-15)),
        ("Tolerance: 1e-4 dB; v3 frames 1e-2 dB (ill conditioned).", (0.0, 1e-4)),
    ],
)
def test_tolerance_is_read_from_the_readme(readme: str, expected: tuple[float, float]) -> None:
    case = Case(Path("x"), {}, {}, {}, readme)
    assert case.tolerance == expected


def test_numbers_of_a_case_are_recorded_under_their_path(tmp_path: Path) -> None:
    text = '{"bounds": [{"steps": 3, "value": 0.1}], "chances": [0.5, 1]}'
    (tmp_path / "cases.json").write_text(text)
    recorded = Case.read(tmp_path).io
    assert recorded.keys() == {"bounds.0.steps", "bounds.0.value", "chances"}
    assert not recorded["bounds.0.steps"].is_floating_point()
    assert recorded["bounds.0.value"].item() == 0.1
    assert recorded["chances"].tolist() == [0.5, 1.0]
    (tmp_path / "cases.json").write_text('{"name": "text"}')
    with pytest.raises(UnknownCaseError, match="only numbers"):
        Case.read(tmp_path)


def test_a_tensor_may_follow_a_clause_of_its_own() -> None:
    readme = "Tolerance: one call rtol 1e-4 atol 1e-5; after 20 calls rtol 1e-3 atol 1e-4."
    case = Case(Path("x"), {}, {}, {}, readme, clauses={"sampled": "after 20 calls"})
    assert case.tolerance_of("once") == (1e-4, 1e-5)
    assert case.tolerance_of("sampled") == (1e-3, 1e-4)
    readme = "Tolerance: 1e-4 dB; v3 frames 1e-2 dB (ill conditioned)."
    case = Case(Path("x"), {}, {}, {}, readme, clauses={"v3": "v3 frames"})
    assert case.tolerance_of("v4") == (0.0, 1e-4)
    assert case.tolerance_of("v3") == (0.0, 1e-2)


def test_a_tolerance_may_be_a_share_of_the_largest_number() -> None:
    readme = "Tolerance: max abs error <= 1e-5 x max|reference| per tensor (1e-4 for an LSTM)."
    io = {"conv": torch.tensor([0.0, -20.0]), "lstm": torch.tensor([20.0])}
    case = Case(Path("x"), {}, {}, io, readme, clauses={"lstm": "LSTM"})
    assert case.tolerance_of("conv") == (0.0, pytest.approx(2e-4))
    assert case.tolerance_of("lstm") == (0.0, pytest.approx(2e-3))


def test_a_wrong_value_or_shape_is_a_miss() -> None:
    theirs = torch.tensor([1.0, 2.0])
    assert compare("a", theirs.clone(), theirs, (1e-4, 1e-5)).passed
    assert not compare("a", theirs + 0.01, theirs, (1e-4, 1e-5)).passed
    assert not compare("a", theirs[:1], theirs, (1e-4, 1e-5)).passed
    assert not compare("a", torch.tensor([1, 3]), torch.tensor([1, 2]), (1.0, 1.0)).passed
