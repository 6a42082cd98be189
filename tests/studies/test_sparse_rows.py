"""Sparse rows: reading libsvm's format, data of given shapes, gradients sample by sample."""

import bz2
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from sonorant.errors import FormatError
from sonorant.studies.sparse_rows import Shape, SparseRows, make_rows, read_libsvm
from sonorant.studies.sparse_training import objective, summed_gradient


def dense(rows: SparseRows) -> torch.Tensor:
    matrix = torch.zeros(len(rows), rows.dimension)
    matrix[rows.row_numbers, rows.columns] = rows.values
    return matrix


def test_reads_libsvm_files_packed_or_not(tmp_path: Path) -> None:
    text = "+1 1:0.5 3:-2 # a comment\n\n-1\n1 2:1e-1\n"
    plain, packed = tmp_path / "rows.txt", tmp_path / "rows.txt.bz2"
    plain.write_text(text)
    packed.write_bytes(bz2.compress(text.encode()))
    for path in (plain, packed):
        rows = read_libsvm(path)
        assert rows.labels.tolist() == [1.0, -1.0, 1.0]
        torch.testing.assert_close(
            dense(rows), torch.tensor([[0.5, 0, -2], [0, 0, 0], [0, 0.1, 0]])
        )


def test_the_smaller_label_becomes_minus_one(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("2 1:1\n1 1:1\n")
    assert read_libsvm(path).labels.tolist() == [1.0, -1.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 1:1\n-1 3:1 2:1\n", "line 2: '2:1'"),
        ("1 1:1\n-1 0:1\n", "line 2: '0:1'"),
        ("1 1:1\n-1 7\n", "line 2: '7'"),
        ("1 1:1\n-1 1:1:1\n", "line 2: could not convert"),
        ("one 1:1\n", "line 1: could not convert"),
        ("1 1:nan\n-1 1:1\n", "line 1: a number is not finite"),
        ("# nothing\n", "no samples"),
        ("1 1:1\n", "two classes"),
        ("1 1:1\n2 1:1\n3 1:1\n", "two classes.* 1, 2, 3"),
        ("1 1:é\n", "damaged"),
    ],
)
def test_refuses_damaged_files_naming_file_and_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "rows"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=f"{path}.*{message}"):
        read_libsvm(path)


def test_refuses_a_truncated_packed_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.bz2"
    path.write_bytes(bz2.compress(b"1 1:1\n-1 1:1\n" * 1000)[:-10])
    with pytest.raises(FormatError, match="damaged"):
        read_libsvm(path)


def test_made_rows_have_the_shape_and_can_be_learnt() -> None:
    rows = make_rows(Shape(3000, 400, 12), seed=1)
    assert (len(rows), rows.dimension) == (3000, 400)
    assert len(rows.columns) / 3000 == pytest.approx(12, rel=0.05)
    often = rows.columns.bincount(minlength=400)
    assert often[0] > 10 * often[200] > 0
    assert set(rows.labels.tolist()) == {-1.0, 1.0}
    squares = torch.zeros(3000).index_add(0, rows.row_numbers, rows.values.square())
    torch.testing.assert_close(squares[squares > 0], torch.ones(int((squares > 0).sum())))
    again = make_rows(Shape(3000, 400, 12), seed=1)
    assert torch.equal(rows.columns, again.columns)
    assert torch.equal(rows.labels, again.labels)


def test_taking_and_slicing_rows() -> None:
    rows = make_rows(Shape(50, 30, 4))
    order = torch.tensor([7, 7, 0, 49])
    assert torch.equal(dense(rows.take(order)), dense(rows)[order])
    assert torch.equal(dense(rows.slice(5, 9)), dense(rows)[5:9])
    assert torch.equal(rows.slice(5, 9).labels, rows.labels[5:9])


def test_the_gradient_has_an_entry_for_each_entry_of_the_rows() -> None:
    rows = make_rows(Shape(50, 30, 4))
    weight = nn.Parameter(torch.randn(30, generator=torch.Generator().manual_seed(0)))
    gradient = summed_gradient(rows, weight.detach())
    assert gradient._nnz() == len(rows.columns)
    loss = functional.softplus(-rows.labels * (dense(rows) @ weight)).sum()
    loss.backward()
    torch.testing.assert_close(gradient.to_dense(), weight.grad)
    assert objective(rows, weight.detach()) == pytest.approx(loss.item() / 50, rel=1e-6)
