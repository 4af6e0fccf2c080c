from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sqid_lib.evaluation.clip import StoreVectors
from sqid_lib.evaluation.mapped import drop_pages, mapped_file


@pytest.fixture
def matrix(tmp_path: Path) -> np.ndarray[Any, Any]:
    np.arange(60, dtype=np.float16).tofile(tmp_path / "m.bin")
    return np.asarray(np.memmap(tmp_path / "m.bin", np.float16, "r")).reshape(-1, 5)


def test_a_part_of_a_mapped_file_is_mapped_again(matrix: np.ndarray[Any, Any], tmp_path: Path) -> None:
    for part in (matrix, matrix[3:7], matrix[11]):
        file = mapped_file(part)
        assert file is not None
        assert file.path == str(tmp_path / "m.bin")
        np.testing.assert_array_equal(file.open(), part)
        assert file.open().dtype == np.float16
        assert not file.open().flags.writeable


def test_the_header_of_an_npy_file_is_passed_over(tmp_path: Path) -> None:
    np.save(tmp_path / "has.npy", np.arange(10) % 3 == 0)
    file = mapped_file(np.asarray(np.load(tmp_path / "has.npy", mmap_mode="r")))
    assert file is not None
    assert file.open().tolist() == (np.arange(10) % 3 == 0).tolist()


def test_other_arrays_are_in_no_file(matrix: np.ndarray[Any, Any]) -> None:
    for array in (matrix.copy(), matrix[:, 1:3], matrix[::2], np.zeros(3)):
        assert mapped_file(array) is None


def test_vectors_pickle_as_the_names_of_their_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("text", "image"):
        rng.normal(size=(20_000, 8)).astype(np.float32).tofile(tmp_path / name)
    text, image = (np.asarray(np.memmap(tmp_path / n, np.float32, "r")).reshape(-1, 8) for n in ("text", "image"))
    has_image = np.ones(20_000, np.bool_)
    has_image[3] = False
    vectors, rows = StoreVectors(text, image, has_image, 0.3), np.array([7, 3, 19_999])
    assert vectors.is_mapped
    assert len(pickle.dumps(vectors)) < 25_000  # has_image is not mapped here: a byte a product
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(vectors))(rows), vectors(rows))
    assert not StoreVectors(text.copy(), image, has_image, 0.3).is_mapped


def resident_of_files() -> int:
    """Bytes of mapped files that this process holds."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssFile"))


def test_dropped_pages_leave_memory_and_are_read_again(tmp_path: Path) -> None:
    np.arange(1 << 22, dtype=np.float32).tofile(tmp_path / "m.bin")
    matrix = np.asarray(np.memmap(tmp_path / "m.bin", np.float32, "r")).reshape(-1, 64)
    total = matrix.sum(dtype=np.float64)
    before = resident_of_files()
    drop_pages(matrix[100:])
    assert before - resident_of_files() > 15 << 20
    assert matrix.sum(dtype=np.float64) == total


def test_a_changed_private_mapping_keeps_its_changes(tmp_path: Path) -> None:
    np.zeros(5_000).tofile(tmp_path / "m.bin")
    matrix = np.asarray(np.memmap(tmp_path / "m.bin", np.float64, "c"))
    matrix[7] = 3.0
    drop_pages(matrix, matrix.copy())
    assert matrix[7] == 3.0
