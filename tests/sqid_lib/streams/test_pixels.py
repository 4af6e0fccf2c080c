"""Streams with images: the rows of `store.pairs`, in its order, with the pixels that the encoder itself makes."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from encoder_fixtures import encoded, make_image, write_clip
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from sqid_lib import ProductImages, schemas
from sqid_lib.encoders import load_encoder
from sqid_lib.errors import CorruptFileError, UsageError
from sqid_lib.images import decode
from sqid_lib.store import EmbeddingStore
from sqid_lib.streams.batches import ImagePairBatch

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning"),
]
SIDE = 6
SOURCES = ("work", "folder", "dataset")


def image_of(row: int) -> bytes:
    """Of a product of the tiny store; two products share each image."""
    return encoded(make_image(row // 2, (9 + row // 2 % 5, 8)))


def small(image: Image.Image) -> np.ndarray[Any, Any]:
    """A preprocessing that is quick."""
    return np.asarray(image.resize((SIDE, SIDE)), np.float32).transpose(2, 0, 1) / 255


def flip(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.rotate(int(rng.integers(0, 360)))


@pytest.fixture(scope="module")
def places(tiny_store: EmbeddingStore, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Images of the products that have one, as each kind of source."""
    root = tmp_path_factory.mktemp("images")
    rows = [(row, key) for row, key in enumerate(tiny_store.products.to_pylist()) if tiny_store.has_image[row]]
    (root / "folder").mkdir()
    for row, key in rows:
        (root / "folder" / f"{key['product_id']}.png").write_bytes(image_of(row))
    write_work(root / "work", tiny_store)
    return {"work": root / "work", "folder": root / "folder"}


def write_work(work: Path, store: EmbeddingStore, compression: str = "none") -> None:
    outcomes, images = [], {}
    for row, product in enumerate(store.products.to_pylist()):
        key = {name: product[name] for name in schemas.PRODUCT_KEY}
        sha256 = hashlib.sha256(image_of(row)).hexdigest() if store.has_image[row] else None
        outcomes.append({**key, "image_status": product["image_status"], "sha256": sha256})
        if sha256:
            images[sha256] = image_of(row)
    (work / "fetch").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(outcomes, schemas.OUTCOMES_SCHEMA), work / "fetch" / "outcomes.parquet")
    table = pa.Table.from_pylist(
        [{"sha256": key, "image": data} for key, data in images.items()], schemas.IMAGES_SCHEMA
    )
    for number, start in enumerate(range(0, len(table), 10)):
        path = work / "fetch" / f"images-{number:05d}.parquet"
        pq.write_table(table.slice(start, 10), path, row_group_size=4, compression=compression, use_dictionary=False)


def source(kind: str, places: dict[str, Path], store: EmbeddingStore) -> ProductImages:
    if kind != "dataset":
        return ProductImages.open(places[kind])
    rows = np.flatnonzero(store.has_image)[::-1].tolist()
    ids = store.products["product_id"].take(pa.array(rows)).to_pylist()
    features = datasets.Features({"id": datasets.Value("string"), "photo": datasets.Image()})
    table = {"id": ids, "photo": [{"bytes": image_of(row), "path": None} for row in rows]}
    return ProductImages.from_dataset(datasets.Dataset.from_dict(table, features), product_id="id", image="photo")


@pytest.fixture(params=SOURCES)
def images(request: pytest.FixtureRequest, places: dict[str, Path], tiny_store: EmbeddingStore) -> ProductImages:
    return source(request.param, places, tiny_store)


def keys(batches: Any) -> list[list[tuple[int, int]]]:
    return [list(zip(b.query_id.tolist(), b.product_index.tolist(), strict=True)) for b in batches]


def pixels(batches: Any) -> np.ndarray[Any, Any]:
    return np.concatenate([np.asarray(batch.pixel_values) for batch in batches])


# -- content ---------------------------------------------------------------------------------------------------


def test_each_row_has_the_pixels_of_its_product(tiny_store: EmbeddingStore, images: ProductImages) -> None:
    assert len(images) == tiny_store.has_image.sum()
    stream = tiny_store.image_pairs(images, small, batch_size=10, shuffle=True, texts=["query", "product_title"])
    assert len(stream) > 1
    for batch in stream:
        assert isinstance(batch, ImagePairBatch)
        assert batch.pixel_values.dtype == torch.float32 and batch.has_image.all()
        products = batch.product_index.tolist()
        wanted = np.stack([small(decode(image_of(row))) for row in products])
        np.testing.assert_array_equal(batch.pixel_values, wanted)
        np.testing.assert_array_equal(batch.text_features, tiny_store.text_features[products])
        titles = tiny_store.products["product_title"].to_pylist()
        assert batch.texts["product_title"] == [titles[row] for row in products]


def test_products_without_an_image(tiny_store: EmbeddingStore, images: ProductImages) -> None:
    """Left out by default; zeros and a mask where they are asked for."""
    wanted = keys(tiny_store.pairs(has_image=True, batch_size=500))
    assert keys(tiny_store.image_pairs(images, small, batch_size=500)) == wanted
    [batch] = tiny_store.image_pairs(images, small, has_image=None, batch_size=500)
    assert keys([batch]) == keys(tiny_store.pairs(batch_size=500))
    np.testing.assert_array_equal(batch.has_image, tiny_store.has_image[batch.product_index])
    assert not batch.pixel_values[~batch.has_image].any() and not batch.has_image.all()
    [without] = tiny_store.image_pairs(images, small, has_image=False, batch_size=500)
    assert keys([without]) == keys(tiny_store.pairs(has_image=False, batch_size=500))


def test_pixels_are_those_of_the_encoder(tiny_store: EmbeddingStore, places: dict[str, Path], tmp_path: Path) -> None:
    """`Towers.preprocess` gives what transformers' own processor gives, bit for bit; so vectors are the encoder's."""
    from transformers import AutoImageProcessor, AutoModel

    from sqid_lib.encoders import load_towers

    model = str(write_clip(tmp_path / "model"))
    towers = load_towers(model)
    processor = AutoImageProcessor.from_pretrained(model, backend="pil")
    network = AutoModel.from_pretrained(model).eval()
    encoder = load_encoder(model, device="cpu")
    batch = next(iter(tiny_store.image_pairs(ProductImages.open(places["work"]), towers.preprocess, batch_size=12)))
    opened = [decode(image_of(row)) for row in batch.product_index.tolist()]
    np.testing.assert_array_equal(batch.pixel_values, processor(opened, return_tensors="np")["pixel_values"])
    with torch.inference_mode():
        out = network.get_image_features(pixel_values=batch.pixel_values)
    vectors = (out if isinstance(out, torch.Tensor) else out.pooler_output).numpy()
    np.testing.assert_allclose(vectors, encoder.encode_images(opened), atol=1e-5)


def test_a_processor_of_transformers_can_preprocess(tiny_store: EmbeddingStore, places: dict[str, Path]) -> None:
    tensors = tiny_store.image_pairs(ProductImages.open(places["folder"]), lambda image: torch.from_numpy(small(image)))
    assert next(iter(tensors)).pixel_values.shape[1:] == (3, SIDE, SIDE)
    with pytest.raises(UsageError, match=r"preprocess: does not return pixels; .* got dict\. For a processor"):
        tiny_store.image_pairs(ProductImages.open(places["folder"]), lambda image: {"pixel_values": small(image)})


@pytest.mark.parametrize(
    ("preprocess", "augment", "message"),
    [
        (None, None, "preprocess: not a function of an image; got None"),
        (small, 3, "augment: not a function of an image; got 3"),
        (lambda image: small(image)[0], None, r"preprocess: not the pixels of one image; expected \[3, H, W\], got"),
    ],
)
def test_wrong_arguments(
    tiny_store: EmbeddingStore, places: dict[str, Path], preprocess: Any, augment: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_store.image_pairs(ProductImages.open(places["folder"]), preprocess, augment=augment)


def test_pixels_of_another_shape_are_refused(tiny_store: EmbeddingStore, places: dict[str, Path]) -> None:
    def as_large_as_it_is(image: Image.Image) -> Any:
        return np.asarray(image, np.float32).transpose(2, 0, 1)

    with pytest.raises(UsageError, match="preprocess: images differ in shape; expected"):
        list(tiny_store.image_pairs(ProductImages.open(places["folder"]), as_large_as_it_is))


# -- damage ----------------------------------------------------------------------------------------------------


def test_an_image_that_cannot_be_decoded_is_left_out_and_logged_once(
    tiny_store: EmbeddingStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = tiny_store.products["product_id"].to_pylist()
    bad = tiny_store.judgment_product_index[0]
    for row, name in enumerate(ids):
        (tmp_path / f"{name}.png").write_bytes(b"<html>" if row == bad else image_of(row))
    stream = tiny_store.image_pairs(ProductImages.open(tmp_path), small, batch_size=500)
    with caplog.at_level(logging.WARNING):
        [batch], _ = list(stream), list(stream)
    np.testing.assert_array_equal(batch.has_image, batch.product_index != bad)
    assert not batch.pixel_values[~batch.has_image].any()
    assert len(caplog.messages) == 1 and f"product row {bad} is left out: not_image" in caplog.text


def test_a_stored_image_that_changed_is_an_error(tiny_store: EmbeddingStore, tmp_path: Path) -> None:
    write_work(tmp_path, tiny_store)
    stream = tiny_store.image_pairs(ProductImages.open(tmp_path), small)
    list(stream)  # now it is known where each image lies
    judged = tiny_store.judgment_product_index
    image = image_of(int(judged[tiny_store.has_image[judged]][0]))
    for path in (tmp_path / "fetch").glob("images-*.parquet"):
        path.write_bytes(path.read_bytes().replace(image, image[:-1] + b"\0"))
    with pytest.raises(CorruptFileError, match="an image is not that of its sha256"):
        list(stream)


# -- order -----------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(data=st.data(), batch_size=st.integers(2, 40), world_size=st.integers(1, 4), drop_last=st.booleans())
def test_the_order_is_that_of_pairs_at_any_place(
    tiny_store: EmbeddingStore,
    places: dict[str, Path],
    data: st.DataObject,
    batch_size: int,
    world_size: int,
    drop_last: bool,
) -> None:
    """Every pair in one batch of one rank, and exact resumption, are what `pairs` is tested for."""
    images = ProductImages.open(places["work"])
    rank = data.draw(st.integers(0, world_size - 1))
    order: Any = {"batch_size": batch_size, "shuffle": True, "rank": rank, "world_size": world_size, "seed": 5}
    order["drop_last"] = drop_last
    pairs, stream = tiny_store.pairs(has_image=True, **order), tiny_store.image_pairs(images, small, **order)
    for one in (pairs, stream):
        one.set_epoch(2)
    whole = list(stream)
    assert keys(whole) == keys(pairs)
    stop = data.draw(st.integers(0, len(whole)))
    list(itertools.islice(first := iter(stream), stop))
    state = json.loads(json.dumps(stream.state_dict()))
    del first
    again = tiny_store.image_pairs(images, small, **order)
    again.load_state_dict(state)
    rest = list(again)
    assert keys(rest) == keys(whole[stop:])
    if rest:
        np.testing.assert_array_equal(pixels(rest), pixels(whole[stop:]))


@pytest.mark.parametrize("kind", SOURCES)
def test_workers_give_the_same_batches(tiny_store: EmbeddingStore, places: dict[str, Path], kind: str) -> None:
    stream: Any = tiny_store.image_pairs(
        source(kind, places, tiny_store), small, augment=flip, batch_size=9, shuffle=True, has_image=None
    )
    alone = list(stream)
    loaded = list(DataLoader(stream, batch_size=None, num_workers=2))
    assert keys(loaded) == keys(alone)
    np.testing.assert_array_equal(pixels(loaded), pixels(alone))


def test_augmentations_are_drawn_anew_each_epoch_and_again_when_resumed(
    tiny_store: EmbeddingStore, places: dict[str, Path]
) -> None:
    def loader() -> Any:
        images = ProductImages.open(places["folder"])
        stream = tiny_store.image_pairs(images, small, augment=flip, batch_size=8, shuffle=True, seed=4)
        return StatefulDataLoader(stream, batch_size=None, num_workers=1), stream

    first, stream = loader()
    whole = list(first)
    assert not np.array_equal(
        pixels(whole),
        pixels(tiny_store.image_pairs(ProductImages.open(places["folder"]), small, batch_size=8, shuffle=True, seed=4)),
    )
    iterator: Iterator[Any] = iter(first)
    list(itertools.islice(iterator, 3))
    again, _ = loader()
    again.load_state_dict(first.state_dict())
    np.testing.assert_array_equal(pixels(again), pixels(whole[3:]))
    stream.set_epoch(1)
    assert not np.array_equal(np.sort(pixels(stream).ravel()), np.sort(pixels(whole).ravel()))
