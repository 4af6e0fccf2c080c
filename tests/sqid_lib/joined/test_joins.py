"""ESCI ⋈ SQID: ESCI decides the rows, their order stays, none is doubled."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqid_lib import schemas
from sqid_lib.errors import DuplicateKeyError
from sqid_lib.files import File
from sqid_lib.joined import joins

KEYS = st.sets(
    st.tuples(st.sampled_from(["1", "01", "nan", "a", "b", "é", ""]), st.sampled_from(list(schemas.ESCI_LOCALES))),
    max_size=12,
)
TEXTS = pa.schema([(n, pa.string()) for n in ("product_id", "product_locale", *schemas.TEXT_COLUMNS)])


def texts(keys: list[tuple[str, str]], slice_rows: int) -> list[pa.Table]:
    rows = [
        dict.fromkeys(schemas.TEXT_COLUMNS, f"{i}/{locale}") | {"product_id": i, "product_locale": locale}
        for i, locale in keys
    ]
    return [pa.Table.from_pylist(rows[i : i + slice_rows], TEXTS) for i in range(0, len(rows), slice_rows)]


@settings(max_examples=100, deadline=None)
@given(esci=KEYS, sqid=KEYS, slice_rows=st.integers(1, 5), located=st.booleans(), without_url=KEYS)
def test_rows_are_kept_in_order_and_only_their_own_url_joins(
    tmp_path_factory: pytest.TempPathFactory,
    esci: set[tuple[str, str]],
    sqid: set[tuple[str, str]],
    slice_rows: int,
    located: bool,
    without_url: set[tuple[str, str]],
) -> None:
    path = tmp_path_factory.mktemp("j") / "urls.parquet"
    if not located:
        sqid = {key for key in sqid if key[1] == "us"}  # a classic file is of locale us alone
    url = {key: None if key in without_url else f"https://x.example/{key[0]}/{key[1]}.jpg" for key in sqid}
    table = pa.table(
        {
            "product_id": pa.array([i for i, _ in url], pa.string()),
            "image_url": pa.array(list(url.values()), pa.string()),
        }
    )
    if located:
        table = table.append_column("product_locale", pa.array([locale for _, locale in url], pa.string()))
    pq.write_table(table, path)
    known = joins.read_image_urls([File(str(path))])
    keys = sorted(esci)
    parts = texts(keys, slice_rows)
    ordered = joins.urls_in_order(known, pa.concat_tables([TEXTS.empty_table(), *parts]))
    rows = [row for part in joins.urls(parts, ordered) for row in part.to_pylist()]
    later = [row for part in joins.urls(parts[1:], ordered, at=slice_rows) for row in part.to_pylist()]
    assert later == rows[slice_rows:]
    assert [(r["product_id"], r["product_locale"]) for r in rows] == keys
    assert [r["image_url"] for r in rows] == [url.get(key) for key in keys]
    assert [r["image_status"] for r in rows] == [schemas.OK if url.get(key) else schemas.MISSING for key in keys]
    assert all(r["product_title"] == f"{r['product_id']}/{r['product_locale']}" for r in rows)
    outside = joins.outside(known, joins._with_locale(pa.concat_tables([TEXTS.empty_table(), *texts(keys, 99)]), "us"))
    assert outside.num_rows == len(sqid - esci)


def test_a_doubled_url_row_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "urls.csv"
    path.write_text("product_id,image_url\na,x\nb,y\na,z\n")
    with pytest.raises(DuplicateKeyError, match=r"urls\.csv.*\(a, us\)"):
        joins.read_image_urls([File(str(path))])


def test_a_release_states_how_a_download_failed_if_the_url_is_the_same(tmp_path: Path) -> None:
    csv, release = tmp_path / "urls.csv", tmp_path / "urls.parquet"
    csv.write_text("product_id,image_url\na,https://x/1\nb,https://x/2\nc,\n")
    pq.write_table(
        pa.table(
            {
                "product_id": ["a", "b", "c"],
                "product_locale": ["us"] * 3,
                "image_url": ["https://x/1", "https://x/other", None],
                "image_status": ["timeout", "timeout", "missing"],
            }
        ),
        release,
    )
    table = joins.read_image_urls([File(str(csv))], statuses=[File(str(release))])
    assert table.column("image_status").to_pylist() == ["timeout", "ok", "missing"]


def test_a_url_that_nothing_fetches_and_that_is_not_http_is_a_bad_url(tmp_path: Path) -> None:
    path = tmp_path / "urls.csv"
    path.write_text("product_id,image_url\na,javascript:alert(1)\nb,https://x.example/b.jpg\nc,\nd,a/no-img-sm.gif\n")
    assert joins.read_image_urls([File(str(path))])["image_status"].to_pylist() == [
        "bad_url",
        "ok",
        "missing",
        "bad_url",
    ]
