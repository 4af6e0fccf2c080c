"""The rows of a file as validation reads them: page by page as by pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builder.validate.rows import _batches
from builder.validate.split_rows import aligned
from sqid_lib import schemas


@pytest.mark.parametrize(
    ("options", "batches"),
    [({"compression": "zstd", "use_dictionary": False}, [40, 40, 20]), ({"compression": "snappy"}, [40, 40, 20])],
    ids=["page by page", "by pyarrow"],
)
def test_batches_have_all_rows_and_about_the_bytes_that_pyarrow_counts(
    tmp_path: Path, options: dict[str, Any], batches: list[int]
) -> None:
    floats = np.random.default_rng(0).standard_normal(100 * 64, np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(floats), 64)
    table = pa.table({"text_vector": lists, "id": [str(i) for i in range(100)], "image_vector": lists})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=40, **options)
    with pq.ParquetFile(path) as file:
        found = list(_batches(file, path))
        known = sum(batch.nbytes for batch in file.iter_batches(40))
    assert [len(batch) for batch, _ in found] == batches
    assert pa.concat_tables([batch for batch, _ in found]).equals(table)
    assert abs(sum(size for _, size in found) - known) <= known / 100  # what a card may differ by


def test_texts_are_compared_only_where_another_config_of_the_part_has_them() -> None:
    urls, features = aligned(schemas.URLS, ()), aligned(schemas.FEATURES, ())
    assert {"product_title", "image_url"} <= set(urls) & set(features)
    assert "product_description" not in {*urls, *aligned(schemas.SUPP, ())}
