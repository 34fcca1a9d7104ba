"""Tensors in pieces: what is put together, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_tracin import TracInError
from lightning_tracin.storage.pieces import (
    Piece,
    delete_stored,
    is_stored,
    read_stored,
    require_all_pieces,
    stored_names,
    write_pieces,
)

WHOLE = torch.arange(12.0).view(4, 3)
REMEDY = "restore it from a copy"


def box(rows: slice, columns: slice) -> Piece:
    return Piece(WHOLE[rows, columns], (4, 3), (rows.start, columns.start))


QUARTERS = [box(slice(*rows), slice(*columns)) for rows in ((0, 3), (3, 4)) for columns in ((0, 2), (2, 3))]


def written(path: Path, *pieces: Piece, count: int | None = None) -> Path:
    for number, piece in enumerate(pieces):
        write_pieces(path, {"weight": piece}, number, count or len(pieces))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


def test_boxes_of_unequal_size_make_the_whole(path: Path) -> None:
    assert torch.equal(read_stored(written(path, *QUARTERS), REMEDY)["weight"], WHOLE)


def test_a_process_may_hold_nothing_of_a_tensor_and_a_scalar_is_a_piece(path: Path) -> None:
    write_pieces(path, {"weight": Piece(WHOLE, (4, 3), (0, 0)), "count": Piece(torch.tensor(5), (), ())}, 0, 2)
    write_pieces(path, {"bias": Piece(torch.ones(2, dtype=torch.bfloat16), (2,), (0,))}, 1, 2)
    assert stored_names(path, REMEDY) == {"weight", "count", "bias"}
    found = read_stored(path, REMEDY)
    assert found["count"] == 5
    assert found["bias"].dtype == torch.bfloat16
    assert torch.equal(found["weight"], WHOLE)


def test_a_file_that_is_missing_is_named(path: Path) -> None:
    written(path, *QUARTERS)
    lost = path.with_name("weights-0002-of-0004.safetensors")
    lost.unlink()
    for read in (read_stored, stored_names):
        with pytest.raises(TracInError, match=f"{lost.name} is missing; restore it from a copy"):
            read(path, REMEDY)
    with pytest.raises(TracInError, match="which rank 2 wrote, is not there: all processes of a fit must see the same `dirpath`"):
        require_all_pieces(path, 4)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (QUARTERS[:3], "they hold 11 elements, and it has 12; restore it from a copy"),
        ([*QUARTERS, QUARTERS[3]], "they hold 13 elements, some of them twice, and it has 12"),
        ([QUARTERS[0], QUARTERS[0]], "they hold 12 elements, some of them twice, and it has 12"),
        ([Piece(WHOLE, (4, 3), (1, 0))], r"weights-0000-of-0001.safetensors is damaged: its piece of 'weight' lies outside"),
    ],
)
def test_pieces_that_do_not_make_the_whole(path: Path, pieces: list[Piece], message: str) -> None:
    with pytest.raises(TracInError, match=message):
        read_stored(written(path, *pieces), REMEDY)


def test_pieces_of_two_numbers_of_processes(path: Path) -> None:
    written(path, Piece(WHOLE, (4, 3), (0, 0)))
    written(path, *QUARTERS)
    with pytest.raises(TracInError, match=r"holds the pieces of weights.safetensors twice, in 1 and 4 files"):
        read_stored(path, REMEDY)


def test_a_damaged_piece_is_not_read(path: Path) -> None:
    written(path, *QUARTERS)
    file = path.with_name("weights-0001-of-0004.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(TracInError, match=f"{file.name} is damaged"):
        read_stored(path, REMEDY)


def test_deleting_leaves_other_files(path: Path) -> None:
    written(path, *QUARTERS)
    others = written(path.with_name("weights-of-others.safetensors"), *QUARTERS)
    delete_stored(path)
    assert not is_stored(path)
    assert torch.equal(read_stored(others, REMEDY)["weight"], WHOLE)
