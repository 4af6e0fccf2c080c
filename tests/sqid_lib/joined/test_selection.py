"""Selections: what belongs to one, in what order, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_esci
from tiny_esci import MAIN_IDS, write_esci

from sqid_lib import schemas
from sqid_lib.errors import DuplicateKeyError, LabelError, SchemaError, UsageError
from sqid_lib.files import File
from sqid_lib.joined import selection
from sqid_lib.joined.selection import Selection

COLUMNS = ("example_id", "query", "query_id", "product_id", "product_locale", "esci_label", "split")


def read(esci: Path, chosen: Selection) -> pa.Table:
    return selection.read_examples(File(str(esci / schemas.ESCI_EXAMPLES)), chosen, COLUMNS)


def keys(esci: Path, chosen: Selection, part: str) -> list[tuple[str, str]]:
    table = selection.product_keys(read(esci, chosen), chosen, part)
    return [(r["product_id"], r["product_locale"]) for r in table.to_pylist()]


def test_the_published_selection(esci: Path) -> None:
    chosen = Selection()
    assert keys(esci, chosen, schemas.MAIN) == sorted((i, "us") for i in MAIN_IDS)
    assert keys(esci, chosen, schemas.SUPPLEMENTARY) == [(i, "us") for i in tiny_esci.SUPP_IDS]
    judgments = selection.judgments(read(esci, chosen), chosen)
    assert judgments.num_rows == 2 * len(MAIN_IDS)
    rows = judgments.to_pylist()
    assert [(r["query_id"], r["product_id"]) for r in rows] == sorted((r["query_id"], r["product_id"]) for r in rows)
    assert all(r["gain"] == pytest.approx(schemas.GAINS[r["esci_label"]]) for r in rows)


def test_other_selections(esci: Path) -> None:
    assert ("T1", "us") in keys(esci, Selection(splits=("train",)), schemas.MAIN)
    assert keys(esci, Selection(locales=("es",)), schemas.MAIN) == [("E1", "es"), ("both", "es")]
    both = keys(esci, Selection(locales=("us", "es")), schemas.MAIN)
    assert ("both", "es") in both and ("both", "us") in both
    assert ("L1", "us") in keys(esci, Selection(version="large"), schemas.MAIN)
    assert ("T1", "us") in keys(esci, Selection(supp_min_judgments=1), schemas.SUPPLEMENTARY)


def test_queries_with_their_sources(esci: Path) -> None:
    chosen = Selection()
    known = selection.read_sources(File(str(esci / schemas.ESCI_SOURCES)))
    rows = selection.queries(read(esci, chosen), chosen, known).to_pylist()
    assert [r["query_id"] for r in rows] == [26, 27, 28, 29, 30]
    assert rows[0] == {"query_id": 26, "query": "query 26", "source": "negations"}
    assert rows[2]["source"] is None


@pytest.mark.parametrize(
    "options",
    [{"version": "tiny"}, {"splits": ("dev",)}, {"locales": (" ",)}, {"locales": ()}, {"splits": ("test",) * 2}],
)
def test_a_selection_that_esci_cannot_have_is_refused(options: dict[str, object]) -> None:
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


TEXTS = {
    "dictionary": lambda column: column.dictionary_encode(),
    "large": lambda column: column.cast(pa.large_string()),
    "view": lambda column: column.cast(pa.string_view()),
    "binary": lambda column: column.cast(pa.binary()),  # as Spark writes text
    "binary dictionary": lambda column: column.cast(pa.binary()).dictionary_encode(),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_examples_may_hold_any_kind_of_text_and_number(tmp_path: Path, name: str) -> None:
    chosen = Selection(locales=("us", "es"))
    path = write_esci(tmp_path) / schemas.ESCI_EXAMPLES
    before = read(tmp_path, chosen)
    table = pq.read_table(path)
    for i, field in enumerate(table.schema):
        column = table.column(i)
        new = TEXTS[name](column) if field.type == pa.string() else column.cast(pa.float64())
        table = table.set_column(i, field.name, new)
    pq.write_table(table, path)
    assert read(tmp_path, chosen).equals(before)


def test_ids_of_the_examples_are_read_without_spaces_around_them(tmp_path: Path) -> None:
    padded = [row | {"product_id": f"{row['product_id']:<12}"} for row in tiny_esci.examples()]
    found = read(write_esci(tmp_path / "padded", examples=padded), Selection())
    assert found.equals(read(write_esci(tmp_path / "plain"), Selection()))


def test_sources_may_be_another_table_of_text(tmp_path: Path) -> None:
    esci = write_esci(tmp_path)
    known = selection.read_sources(File(str(esci / schemas.ESCI_SOURCES)))
    rows = known.to_pylist()
    (tmp_path / "s.tsv").write_text("QUERY_ID\tSOURCE\n" + "".join(f"{r['query_id']}.0\t{r['source']}\n" for r in rows))
    (tmp_path / "s.json").write_text(json.dumps(rows))
    for name in ("s.tsv", "s.json"):
        assert selection.read_sources(File(str(tmp_path / name))).equals(known)
