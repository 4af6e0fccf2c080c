"""examples/finetune_clip.py at tiny sizes: it learns, resumes to the same weights, and writes what a build takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import finetune_clip
import numpy as np
import pytest
import torch
from encoder_fixtures import encoded, make_image, write_clip
from tiny_release import write_release

from sqid_lib import ProductImages, split_queries
from sqid_lib.encoders import load_encoder, load_towers
from sqid_lib.store import EmbeddingStore

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """release/, images/ and model/."""
    root = tmp_path_factory.mktemp("shop")
    release = write_release(root / "release", products=40, queries=12, per_query=6)
    store = EmbeddingStore.open(release, cache_dir=root / "cache", progress=False)
    (root / "images").mkdir()
    for row, name in enumerate(store.products["product_id"].to_pylist()):
        (root / "images" / f"{name}.png").write_bytes(encoded(make_image(row, (20 + row, 24))))
    write_clip(root / "model", width=16, hidden=16, side=16)
    return root


def options(shop: Path, out: Path, *more: str) -> list[str]:
    given = {"--images": shop / "images", "--out": out, "--cache-dir": shop / "cache", "--device": "cpu"}
    numbers = {"--batch-size": 10, "--epochs": 2, "--lr": 3e-3, "--prefetch": 1, "--accumulate": 2}
    pairs = [str(word) for pair in {**given, **numbers}.items() for word in pair]
    return [str(shop / "release"), str(shop / "model"), *pairs, *more]


def weights(folder: Path) -> dict[str, Any]:
    return weights_of(folder / "model")


def weights_of(model: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(model / "model.safetensors")
    return found


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_learns_and_writes_an_encoder(shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = finetune_clip.main(options(shop, tmp_path, "--epochs", "8", "--image-weight", "1", "--lr", "0.01"))
    assert found is not None and [row["method"] for row in found.rows] == ["before", "after"]
    printed = capsys.readouterr().out
    losses = [float(value) for value in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert "9 queries to train on, 3 held out; no query text is in both" in printed
    assert printed.count("of it waiting for data") == 8
    held_out = [int(line) for line in (tmp_path / "held_out.txt").read_text().split()]
    assert held_out == sorted(found.query_ids.tolist()) and len(held_out) == 3
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    encoder = load_encoder(str(tmp_path / "model"), device="cpu")
    assert encoder.encode_text(["query number 1"]).shape == (1, 16)
    name = "vision_model.encoder.layers.0.mlp.fc1.weight"
    assert not torch.equal(weights(tmp_path)[name], weights_of(shop / "model")[name])


@pytest.mark.parametrize("stop", [1, 3])
def test_goes_on_to_the_same_weights(shop: Path, tmp_path: Path, stop: int) -> None:
    """Stopped within an epoch, and at any step: the weights are those of a run that was not."""
    finetune_clip.main(options(shop, tmp_path / "whole", "--augment"))
    assert finetune_clip.main(options(shop, tmp_path / "again", "--augment", "--stop-after", str(stop))) is None
    assert not (tmp_path / "again" / "model").exists()
    with pytest.raises(SystemExit, match=r"checkpoint\.pt was made with another epochs, augment: use the same options"):
        finetune_clip.main(options(shop, tmp_path / "again", "--epochs", "3"))
    finetune_clip.main(options(shop, tmp_path / "again", "--augment"))
    assert_equal(weights(tmp_path / "whole"), weights(tmp_path / "again"))


def test_trains_on_no_product_of_a_held_out_query(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = EmbeddingStore.open(shop / "release", cache_dir=shop / "cache", progress=False)
    split = split_queries(store, seed=0)
    [held_out] = store.pairs(queries=split.test, batch_size=500)
    [known] = store.pairs(queries=split.train, batch_size=500)
    expected = int((~np.isin(known.product_index, held_out.product_index)).sum())
    assert 20 <= expected < 54
    seen: set[int] = set()
    what_counts = finetune_clip.what_counts

    def counted(store: EmbeddingStore, batch: Any) -> torch.Tensor:
        seen.update(batch.product_index.tolist())
        return what_counts(store, batch)

    monkeypatch.setattr(finetune_clip, "what_counts", counted)
    finetune_clip.main(options(shop, tmp_path, "--disjoint-products", "--epochs", "1"))
    assert f"{expected} pairs with an image to train on" in capsys.readouterr().out
    assert seen and not seen & set(held_out.product_index.tolist())


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_other_losses_and_frozen_towers(shop: Path, tmp_path: Path, loss: str) -> None:
    finetune_clip.main(options(shop, tmp_path, "--loss", loss, "--freeze", "text", "--epochs", "1"))
    before, after = weights_of(shop / "model"), weights(tmp_path)
    for name, value in after.items():
        if name.startswith("text_"):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(after["visual_projection.weight"], before["visual_projection.weight"])


def test_lora_without_peft_is_one_line(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SystemExit, match=r"^--lora needs peft: pip install peft$"):
        finetune_clip.main(options(shop, tmp_path, "--lora", "4"))


def test_too_few_pairs_for_a_batch(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^54 pairs to train on do not fill a batch: use a smaller --batch-size$"):
        finetune_clip.main(options(shop, tmp_path, "--batch-size", "100"))


def test_image_scores_are_cosines_in_the_order_of_the_judgments(shop: Path) -> None:
    store = EmbeddingStore.open(shop / "release", cache_dir=shop / "cache", progress=False)
    towers, queries = load_towers(str(shop / "model")), store.query_ids[[1, 5]].tolist()
    [batch] = store.pairs(queries=queries, texts=["query"], batch_size=500)
    images = ProductImages.open(shop / "images").without(store.products.take([int(batch.product_index[3])]))
    model = finetune_clip.Model(towers.network, biased=False)
    training: Any = SimpleNamespace(store=store, towers=towers, model=model, device=torch.device("cpu"))
    scores = finetune_clip.image_scores(training, images, queries)
    encoder = load_encoder(str(shop / "model"), device="cpu")
    texts = encoder.encode_text(batch.texts["query"])
    expected = np.zeros(len(scores))
    for row, place in enumerate(finetune_clip.judged_for(store, queries)):
        [number] = images.find(store.products.take([int(batch.product_index[row])]))
        if number >= 0:
            pixels = encoder.encode_images([images.decode(int(number))])[0]
            expected[place] = texts[row] @ pixels / np.linalg.norm(texts[row]) / np.linalg.norm(pixels)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert 0 < np.count_nonzero(expected) < 2 * 6


# -- losses ------------------------------------------------------------------------------------------------------------


def test_cross_entropy_is_that_of_clip_where_all_counts() -> None:
    torch.manual_seed(0)
    scores, everything = torch.randn(5, 5), torch.ones(2, 5, 5, dtype=torch.bool)
    target = torch.arange(5)
    clip = (torch.nn.functional.cross_entropy(scores, target) + torch.nn.functional.cross_entropy(scores.T, target)) / 2
    found = finetune_clip.cross_entropy(scores, torch.ones(5), everything)
    torch.testing.assert_close(found, clip)
    one = finetune_clip.cross_entropy(scores, torch.tensor([0, 0, 2.0, 0, 0]), everything)
    torch.testing.assert_close(one, -(scores.log_softmax(1) + scores.log_softmax(0))[2, 2] / 2)
    pair_alone = torch.eye(5, dtype=torch.bool).expand(2, 5, 5)
    assert finetune_clip.cross_entropy(scores, torch.ones(5), pair_alone).abs() < 1e-6


def test_sigmoid_is_that_of_siglip_where_all_counts() -> None:
    torch.manual_seed(0)
    scores, bias = torch.randn(4, 4), torch.tensor(-2.0)
    signs = 2 * torch.eye(4) - 1
    siglip = -torch.nn.functional.logsigmoid(signs * (scores + bias)).sum() / 4
    found = finetune_clip.sigmoid(scores + bias, torch.ones(4), torch.ones(2, 4, 4, dtype=torch.bool))
    torch.testing.assert_close(found, siglip)


def test_what_counts_as_a_negative(shop: Path) -> None:
    store = EmbeddingStore.open(shop / "release", cache_dir=shop / "cache", progress=False)
    [batch] = store.pairs(batch_size=500)
    rows, columns = finetune_clip.what_counts(store, batch)  # type: ignore[arg-type]
    queries, products = batch.query_id.tolist(), batch.product_index.tolist()
    gain = dict(zip(zip(queries, products, strict=True), batch.gain.tolist(), strict=True))
    for i, j in np.ndindex(*rows.shape):
        judged = gain.get((queries[i], products[j]))
        worse = judged is not None and queries[i] == queries[j] and judged < gain[queries[i], products[i]]
        assert bool(rows[i, j]) == (i == j or judged is None or worse)
        assert bool(columns[i, j]) == (i == j or judged is None)


@pytest.mark.slow
def test_two_processes_train_together(shop: Path, tmp_path: Path) -> None:
    """torchrun with gloo: it ends, and one process writes."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "0",
        "--standalone",
    ]
    script = Path(finetune_clip.__file__)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), *options(shop, tmp_path)],
        capture_output=True, text=True, timeout=300, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("queries to train on") == 1
    assert weights(tmp_path)


def test_lora_is_merged_into_the_weights(shop: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of peft about transformers
        finetune_clip.main(options(shop, tmp_path, "--lora", "2", "--epochs", "1"))
    before, after = weights_of(shop / "model"), weights(tmp_path)
    assert before.keys() == after.keys()
    changed = {name.split(".")[-2] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "out_proj"}
