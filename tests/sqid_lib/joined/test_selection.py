"""Selections: what belongs to a cut, in what order, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import tiny_esci
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_esci import MAIN_IDS, write_esci

from sqid_lib import schemas
from sqid_lib.errors import DuplicateKeyError, IntegrityError, LabelError, SchemaError, UsageError
from sqid_lib.files import File
from sqid_lib.joined import selection
from sqid_lib.joined.selection import Selection

COLUMNS = ("example_id", "query", "query_id", "product_id", "product_locale", "esci_label", "split")


def read(esci: Path, cut: Selection) -> pa.Table:
    return selection.read_examples(File(str(esci / schemas.ESCI_EXAMPLES)), cut, COLUMNS)


def keys(esci: Path, cut: Selection, part: str) -> list[tuple[str, str]]:
    table = selection.product_keys(read(esci, cut), cut, part)
    return [(r["product_id"], r["product_locale"]) for r in table.to_pylist()]


def test_the_published_cut(esci: Path) -> None:
    cut = Selection()
    assert keys(esci, cut, schemas.MAIN) == sorted((i, "us") for i in MAIN_IDS)
    assert keys(esci, cut, schemas.SUPPLEMENTARY) == [(i, "us") for i in tiny_esci.SUPP_IDS]
    judgments = selection.judgments(read(esci, cut), cut)
    assert judgments.num_rows == 2 * len(MAIN_IDS)
    rows = judgments.to_pylist()
    assert [(r["query_id"], r["product_id"]) for r in rows] == sorted((r["query_id"], r["product_id"]) for r in rows)
    assert all(r["gain"] == pytest.approx(schemas.GAINS[r["esci_label"]]) for r in rows)


def test_other_cuts(esci: Path) -> None:
    assert ("T1", "us") in keys(esci, Selection(splits=("train",)), schemas.MAIN)
    assert keys(esci, Selection(locales=("es",)), schemas.MAIN) == [("E1", "es"), ("both", "es")]
    both = keys(esci, Selection(locales=("us", "es")), schemas.MAIN)
    assert ("both", "es") in both and ("both", "us") in both
    assert ("L1", "us") in keys(esci, Selection(version="large"), schemas.MAIN)
    assert ("T1", "us") in keys(esci, Selection(supp_min_judgments=1), schemas.SUPPLEMENTARY)


def test_queries_with_their_sources(esci: Path) -> None:
    cut = Selection()
    known = selection.read_sources(File(str(esci / schemas.ESCI_SOURCES)))
    rows = selection.queries(read(esci, cut), cut, known).to_pylist()
    assert [r["query_id"] for r in rows] == [26, 27, 28, 29, 30]
    assert rows[0] == {"query_id": 26, "query": "query 26", "source": "negations"}
    assert rows[2]["source"] is None


@pytest.mark.parametrize(
    "options",
    [{"version": "tiny"}, {"splits": ("dev",)}, {"locales": (" ",)}, {"locales": ()}, {"splits": ("test",) * 2}],
)
def test_a_cut_esci_does_not_hold_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Selection(**options)  # type: ignore[arg-type]


def test_an_unknown_label_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    rows = tiny_esci.examples()
    next(r for r in rows if r["split"] == "train")["esci_label"] = "X"
    esci = write_esci(tmp_path, examples=rows)
    with pytest.raises(LabelError, match=r"'X'.*expected E or S or C or I"):
        read(esci, Selection())


@pytest.mark.parametrize("column", ["product_id", "product_locale", "split", "large_version"])
def test_a_null_is_refused_where_it_decides(tmp_path: Path, column: str) -> None:
    rows = tiny_esci.examples()
    rows[0][column] = None
    with pytest.raises(SchemaError, match=column):
        read(
            write_esci(tmp_path, examples=rows),
            Selection(splits=("test", "train"), locales=("us", "es"), version="large"),
        )


def test_a_doubled_judgment_is_shown(tmp_path: Path) -> None:
    rows = tiny_esci.examples()
    first = next(r for r in rows if r["product_id"] == "007" and r["query_id"] == 30 - 1)
    esci = write_esci(tmp_path, examples=[*rows, first])
    with pytest.raises(DuplicateKeyError, match=r"\(29, 007, us\)"):
        selection.judgments(read(esci, Selection()), Selection())


def texts(esci: Path, table: pa.Table, columns: tuple[str, ...] = ("product_title",)) -> list[pa.Table]:
    return list(selection.product_texts(File(str(esci / schemas.ESCI_PRODUCTS)), table, columns))


def test_three_doubled_products_are_shown(tmp_path: Path) -> None:
    rows = tiny_esci.products()
    doubled = [dict(r) for r in rows if r["product_locale"] == "us"][:4]
    esci = write_esci(tmp_path, products=[*rows, *doubled])
    every = pa.table({"product_id": sorted(r["product_id"] for r in doubled), "product_locale": ["us"] * 4})
    with pytest.raises(DuplicateKeyError) as told:
        texts(esci, every)
    assert str(told.value).count(", us)") == 3
    assert "4 product keys" in str(told.value)


def test_a_judged_product_without_a_row_is_shown(tmp_path: Path) -> None:
    esci = write_esci(tmp_path, products=[r for r in tiny_esci.products() if r["product_id"] != "B000000012"])
    with pytest.raises(IntegrityError, match=r"\(us, B000000012\)"):
        texts(esci, selection.product_keys(read(esci, Selection()), Selection(), schemas.MAIN))


@settings(max_examples=25, deadline=None)
@given(
    chosen=st.sets(st.sampled_from([(r["product_id"], r["product_locale"]) for r in tiny_esci.products()])),
    row_group=st.sampled_from([1, 3, 1000]),
    at_once=st.sampled_from([2, 1000]),
    slice_rows=st.sampled_from([1, 5, 1000]),
)
def test_texts_come_for_exactly_the_keys_in_their_order(
    tmp_path_factory: pytest.TempPathFactory,
    chosen: set[tuple[str, str]],
    row_group: int,
    at_once: int,
    slice_rows: int,
) -> None:
    esci = write_esci(tmp_path_factory.mktemp("esci"), row_group=row_group)
    table = pa.table(
        [[i for i, _ in sorted(chosen)], [locale for _, locale in sorted(chosen)]],
        schema=pa.schema([("product_id", pa.string()), ("product_locale", pa.string())]),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "TEXT_ROWS_AT_ONCE", at_once)
        patch.setattr(selection, "_SLICE_ROWS", slice_rows)
        found = texts(esci, table, schemas.TEXT_COLUMNS)
    rows = [row for part in found for row in part.to_pylist()]
    expected = {(r["product_id"], r["product_locale"]): r for r in tiny_esci.products()}
    assert rows == [expected[key] for key in sorted(chosen)]
    assert all(part.num_rows <= slice_rows for part in found)
