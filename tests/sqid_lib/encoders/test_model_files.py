"""sqid_lib.encoders.model_files: what an untrusted folder of a model can do, which is to be refused."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from encoder_families import FAMILIES, write_family
from encoder_fixtures import write_clip

from sqid_lib.encoders import load_encoder
from sqid_lib.encoders.model_files import check_weights, read_config
from sqid_lib.errors import EncoderError

Folder = Callable[[], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip")


def change(folder: Path, name: str, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))


def split(folder: Path, weight_map: dict[str, str] | None = None) -> None:
    """The weights in two files with an index, in place of one."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    found = {name: file for file, part in files.items() for name in part} | (weight_map or {})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": found}))


@pytest.mark.parametrize("family", ["clip", *FAMILIES])
def test_models_as_they_should_be_pass(tmp_path: Path, family: str) -> None:
    folder = write_clip(tmp_path / "clip") if family == "clip" else write_family(tmp_path / family, family)
    check_weights(folder, read_config(folder, "m"), "m")
    split(folder)
    check_weights(folder, read_config(folder, "m"), "m")
    assert load_encoder(str(folder), device="cpu").width > 0


@pytest.mark.parametrize(
    ("part", "key"),
    [
        ("text_config", "vocab_size"),
        ("text_config", "intermediate_size"),
        ("text_config", "max_position_embeddings"),
        ("vision_config", "intermediate_size"),
        ("vision_config", "image_size"),
        ("vision_config", "patch_size"),
        ("vision_config", "num_channels"),
        ("text_config", "num_hidden_layers"),
        ("vision_config", "num_hidden_layers"),
        (None, "projection_dim"),
    ],
)
@pytest.mark.parametrize("number", [2**31 - 1, 2**62, 10**30])
def test_a_config_that_asks_for_everything_is_refused_without_memory(
    folder: Path, part: str | None, key: str, number: int
) -> None:
    change(folder, "config.json", lambda c: (c[part] if part else c).update({key: number}))
    with pytest.raises(EncoderError, match=r"do not match the config|more modules than there are|cannot be loaded"):
        load_encoder(str(folder), device="cpu")


def test_a_width_of_both_towers_is_refused(folder: Path) -> None:
    def widen(config: dict[str, Any]) -> None:
        for tower in ("text_config", "vision_config"):
            config[tower]["hidden_size"] = 2**20

    change(folder, "config.json", widen)  # 12 TB
    with pytest.raises(EncoderError, match=r"do not match the config.*expected \[.*1048576.*got \["):
        load_encoder(str(folder), device="cpu")


BROKEN = ["[" * 100_000, '{"a":' * 100_000, '{"a":' * 900 + "1" + "}" * 900, "[]", "7", "", "\0"]


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_json_of_another_kind_is_refused(folder: Path, name: str, text: str) -> None:
    if name != "config.json":
        split(folder)
    (folder / name).write_text(text)
    with pytest.raises(EncoderError, match=r"cannot be read|no JSON object|no model_type|more modules than"):
        load_encoder(str(folder), device="cpu")


@pytest.mark.parametrize(
    "name", ["preprocessor_config.json", "tokenizer_config.json", "vocab.json", "generation_config.json"]
)
def test_deep_json_elsewhere_is_refused_or_unused(folder: Path, name: str) -> None:
    (folder / name).write_text("[" * 100_000)
    try:
        load_encoder(str(folder), device="cpu")
    except EncoderError as error:
        assert "cannot be loaded" in str(error)


class Opens:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "../model.safetensors", "/model.safetensors", "model.safetensors\0", "a b"]
)
def test_an_index_that_names_other_files_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Opens(tmp_path / "ran")))
    split(folder, {"logit_scale": name})
    with pytest.raises(EncoderError, match=r"not safetensors.*never loaded"):
        load_encoder(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_weights_that_config_json_names_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Opens(tmp_path / "ran")))
    (folder / "other.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"logit_scale": "pytorch_model.bin"}})
    )
    change(folder, "config.json", lambda c: c.update(transformers_weights="other.safetensors.index.json"))
    with pytest.raises(EncoderError, match=r"in other files than model\.safetensors; got transformers_weights"):
        load_encoder(str(folder), device="cpu")
    assert not (tmp_path / "ran").exists()


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "ORG/other"}')
    with pytest.raises(EncoderError, match="got adapter_config"):
        load_encoder(str(folder), device="cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.json", "pytorch_model.bin", "more.json"])
@pytest.mark.parametrize("kind", ["fifo", "device", "link to nothing"])
def test_what_is_no_plain_file_is_refused(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(folder / name)
    else:
        (folder / name).symlink_to("/dev/zero" if kind == "device" else "/no/such/file")
    with pytest.raises(EncoderError, match=rf"{name}: not a plain file"):
        load_encoder(str(folder), device="cpu")


def header(content: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(content) if length is None else length) + content


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"short",
        header(b"{}", 2**63),
        header(b"{}", 50),
        header(b"[" * 100_000),
        header(b"\xff\xfe"),
        header(b"[]"),
        header(b'{"logit_scale": 3}'),
        header(b'{"logit_scale": {"shape": 3}}'),
        header(b'{"logit_scale": {}}'),
    ],
)
def test_weights_that_are_no_safetensors_are_refused(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_encoder(str(folder), device="cpu")


def test_a_missing_part_of_the_weights_is_named(folder: Path) -> None:
    split(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"model-00002-of-00002\.safetensors: a file of weights is missing"):
        load_encoder(str(folder), device="cpu")


def test_json_beyond_any_size_is_not_read(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(1 << 34)  # sparse
    with pytest.raises(EncoderError, match=r"config\.json is too large"):
        read_config(folder, "m")
