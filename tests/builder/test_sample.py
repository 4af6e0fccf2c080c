"""Stage sample: the selected products, queries and judgments; counts checked; nothing half-written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny_esci
from builds import write_recipe
from tiny_esci import MAIN_IDS, SUPP_IDS, write_esci

from builder import recipe
from builder.sample import sample
from sqid_lib import schemas
from sqid_lib.errors import (
    CorruptFileError,
    CountError,
    DiskError,
    IntegrityError,
    LabelError,
    LfsPointerError,
    SchemaError,
    SqidError,
    UsageError,
)

FILES = ("products", "supp", "queries", "judgments")


def run(root: Path, text: str = "") -> dict[str, list[dict[str, Any]]]:
    sample(recipe.load(write_recipe(root, text)), root / "work")
    return {name: pq.read_table(root / "work" / "sample" / f"{name}.parquet").to_pylist() for name in FILES}


def test_what_is_sampled(tmp_path: Path, esci: Path) -> None:
    found = run(tmp_path, "[expect]\nproducts = 36\nqueries = 5\njudgments = 72\nsupp = 3\n")
    assert [r["product_id"] for r in found["products"]] == sorted(MAIN_IDS)
    assert [r["product_id"] for r in found["supp"]] == SUPP_IDS
    assert {r["product_locale"] for r in found["products"]} == {"us"}
    assert [r["query_id"] for r in found["queries"]] == [26, 27, 28, 29, 30]
    assert len(found["judgments"]) == 72 and {r["split"] for r in found["judgments"]} == {"test"}
    for name, schema in (
        ("products", schemas.SAMPLED_PRODUCTS_SCHEMA),
        ("queries", schemas.SAMPLED_QUERIES_SCHEMA),
        ("judgments", schemas.SAMPLED_JUDGMENTS_SCHEMA),
    ):
        assert pq.read_schema(tmp_path / "work" / "sample" / f"{name}.parquet").equals(schema)


def test_every_product_of_the_locales(tmp_path: Path, esci: Path) -> None:
    judged = run(tmp_path)
    found = run(tmp_path, '[selection]\nproducts = "all"\n[expect]\nproducts = 42\njudgments = 72\nsupp = 0\n')
    assert [r["product_id"] for r in found["products"]] == sorted([*MAIN_IDS, *SUPP_IDS, "T1", "L1", "U1"])
    assert {r["product_locale"] for r in found["products"]} == {"us"}
    assert found["supp"] == []
    assert all(found[name] == judged[name] for name in ("queries", "judgments"))
    several = run(tmp_path, '[selection]\nproducts = "all"\nlocales = ["us", "es"]\n')
    assert [r["product_locale"] for r in several["products"] if r["product_id"] == "both"] == ["es", "us"]
    assert len(several["products"]) == len(tiny_esci.products())


@pytest.mark.parametrize("products", ["judged", "all"])
def test_a_judged_product_that_is_not_in_the_products_file(tmp_path: Path, products: str) -> None:
    write_esci(tmp_path / "esci", products=[r for r in tiny_esci.products() if r["product_id"] != MAIN_IDS[0]])
    with pytest.raises(IntegrityError, match=rf"1 judged products are not .*\(us, {MAIN_IDS[0]}\)"):
        run(tmp_path, f'[selection]\nproducts = "{products}"\n')


def test_the_same_files_give_the_same_bytes(tmp_path: Path, esci: Path) -> None:
    run(tmp_path)
    first = {p.name: p.read_bytes() for p in (tmp_path / "work" / "sample").iterdir()}
    run(tmp_path)
    assert {p.name: p.read_bytes() for p in (tmp_path / "work" / "sample").iterdir()} == first


def test_a_stated_count_that_is_not_met(tmp_path: Path, esci: Path) -> None:
    with pytest.raises(CountError, match=r"expected products = 35, supp = 4, got products = 36, supp = 3"):
        run(tmp_path, "[expect]\nproducts = 35\nsupp = 4\nqueries = 5\n")
    assert not (tmp_path / "work" / "sample").exists()


def test_a_full_disk_is_named(tmp_path: Path, esci: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("builder.sample.pq.ParquetWriter.write_table", refuse)
    with pytest.raises(DiskError, match=r"work/sample/products\.parquet: no space left"):
        run(tmp_path)
    assert list((tmp_path / "work" / "sample").iterdir()) == []


def test_an_empty_selection_is_reported(tmp_path: Path, esci: Path) -> None:
    write_esci(tmp_path / "esci", examples=[row | {"small_version": 0} for row in tiny_esci.examples()])
    with pytest.raises(CountError, match="empty"):
        run(tmp_path)


def test_any_locale_of_the_file_can_be_selected_and_no_other(tmp_path: Path) -> None:
    rows = [row | {"product_locale": "de"} for row in tiny_esci.examples() if row["product_locale"] == "us"]
    products = [row | {"product_locale": "de"} for row in tiny_esci.products() if row["product_locale"] == "us"]
    write_esci(tmp_path / "esci", examples=rows, products=products)
    found = run(tmp_path, '[selection]\nlocales = ["de"]\n')
    assert {r["product_locale"] for r in found["products"]} == {"de"} and len(found["judgments"]) == 72
    with pytest.raises(UsageError, match="no judgments of this locale; expected de, got us"):
        run(tmp_path)


def test_labels_and_gains_are_those_of_the_recipe(tmp_path: Path) -> None:
    names = {"E": "exact", "S": "near", "C": "near", "I": "no"}
    write_esci(tmp_path / "esci", examples=[r | {"esci_label": names[r["esci_label"]]} for r in tiny_esci.examples()])
    found = run(tmp_path, "[selection.labels]\nexact = 1.0\nnear = 0.5\nno = 0\n")
    gains = {"exact": 1.0, "near": 0.5, "no": 0.0}
    assert {r["esci_label"] for r in found["judgments"]} <= set(gains)
    assert all(r["gain"] == gains[r["esci_label"]] for r in found["judgments"])
    with pytest.raises(LabelError, match=r"unknown esci_label 'near'; expected exact or no\. .*selection\.labels"):
        run(tmp_path, "[selection.labels]\nexact = 1.0\nno = 0\n")


def _label_x(esci: Path) -> None:
    rows = tiny_esci.examples()
    rows[5]["esci_label"] = "X"
    write_esci(esci, examples=rows)


def _no_locale(esci: Path) -> None:
    table = pq.read_table(esci / schemas.ESCI_PRODUCTS)
    pq.write_table(table.drop_columns(["product_locale"]), esci / schemas.ESCI_PRODUCTS)


def _truncated(esci: Path) -> None:
    path = esci / schemas.ESCI_EXAMPLES
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _pointer(esci: Path) -> None:
    (esci / schemas.ESCI_PRODUCTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


@pytest.mark.parametrize(
    ("harm", "error"),
    [(_label_x, LabelError), (_no_locale, SchemaError), (_truncated, CorruptFileError), (_pointer, LfsPointerError)],
)
def test_a_bad_input_leaves_nothing_half_written(tmp_path: Path, esci: Path, harm: Any, error: type[SqidError]) -> None:
    harm(esci)
    with pytest.raises(error, match=str(esci)):
        run(tmp_path)
    assert not list((tmp_path / "work").rglob("*.parquet*"))


def test_bad_input_later_keeps_what_was_finished(tmp_path: Path, esci: Path) -> None:
    run(tmp_path)
    before = {p.name: p.read_bytes() for p in (tmp_path / "work" / "sample").iterdir()}
    _truncated(esci)
    with pytest.raises(CorruptFileError):
        run(tmp_path)
    assert {p.name: p.read_bytes() for p in (tmp_path / "work" / "sample").iterdir()} == before


def test_two_locales_and_both_splits(tmp_path: Path, esci: Path) -> None:
    found = run(tmp_path, '[selection]\nlocales = ["us", "es"]\nsplits = ["train", "test"]\n')
    assert [(r["product_id"], r["product_locale"]) for r in found["products"] if r["product_id"] == "both"] == [
        ("both", "es"),
        ("both", "us"),
    ]
    assert found["supp"] == []
    assert {r["split"] for r in found["judgments"]} == {"train", "test"}


CODE = """
import sys
from pathlib import Path
from builder import recipe
from builder.sample import sample
sample(recipe.load(sys.argv[1]), Path(sys.argv[2]))
kib = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]  # rusage counts what the parent held
print(int(kib) // 1024)
"""


@pytest.mark.slow
def test_the_products_file_does_not_sit_in_memory(tmp_path: Path) -> None:
    """A products file of 600 MB of text in one row group, of which a twentieth is selected, in under 450 MB."""
    import numpy as np

    rng = np.random.default_rng(0)
    words = [" ".join(map(str, rng.integers(0, 10**9, 100))) for _ in range(600)]
    rows = [dict(r) for r in tiny_esci.products()]
    fill = [
        dict.fromkeys(schemas.TEXT_COLUMNS, None)
        | {"product_id": f"X{n}", "product_locale": "us", "product_description": words[n % 600] + str(n)}
        for n in range(600_000)
    ]
    esci = write_esci(tmp_path / "esci", products=[*rows, *fill], row_group=2**30)
    del fill, rows
    assert (esci / schemas.ESCI_PRODUCTS).stat().st_size > 0
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(write_recipe(tmp_path)), str(tmp_path / "work")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 450
