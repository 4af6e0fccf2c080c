"""The files of a model, checked before transformers reads them: untrusted files cost neither memory, time nor code."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqid_lib.errors import EncoderError, first_line

_INDEX = "model.safetensors.index.json"
_MOST_JSON = 64 << 20  # bytes; the index of the largest models has some hundred thousand
_MOST_HEADER = 100 << 20  # bytes; the limit of safetensors itself
_SMALL = 4_096  # numbers of a config up to here cost little memory, whatever they mean
_REPEATED = re.compile(r"layers|repeats|blocks|depth|experts|stages")  # in keys whose value is a number of modules
Shapes = dict[str, tuple[int, ...]]


def read_config(directory: Path, model: str) -> dict[str, Any]:
    """config.json of a model whose files can be opened without harm.

    Raises:
        EncoderError: no transformers model, no safetensors, or files that are no plain files.
    """
    check_plain_files(directory, model)
    config = read_json(directory / "config.json", model)
    if "model_type" not in config:
        raise EncoderError("config.json names no model_type", where=model, fix="Is this a transformers model?")
    if "transformers_weights" in config or (directory / "adapter_config.json").exists():
        raise EncoderError(
            "the weights are in other files than model.safetensors",
            where=model,
            got="transformers_weights in config.json" if "transformers_weights" in config else "adapter_config.json",
            fix="Merge and save them with save_pretrained(…, safe_serialization=True).",
        )
    if not any(directory.glob("model*.safetensors")):
        raise EncoderError(
            "no safetensors weights",
            where=model,
            expected="model.safetensors",
            got=", ".join(sorted(p.name for p in directory.glob("*.bin"))) or "none",
            fix="Pickled weights are never loaded: convert them with save_pretrained(…, safe_serialization=True).",
        )
    return config


def check_weights(directory: Path, config: dict[str, Any], model: str) -> None:
    """Compare the shapes that config.json asks for with those of the weights, without memory for either.

    Raises:
        EncoderError: they differ, the weights are damaged, or files that are not safetensors are named as weights.
    """
    shapes = _shapes(directory, model)
    _check_repeats(config, shapes, model, "config.json")
    import torch
    import transformers

    with torch.device("meta"):  # shapes alone
        network = transformers.AutoModel.from_config(
            transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True),
            trust_remote_code=False,
        )
    base = f"{network.base_model_prefix}."
    for name, tensor in network.state_dict().items():
        found = shapes.get(name, shapes.get(base + name))
        if found is not None and found != tuple(tensor.shape):
            raise EncoderError(
                "the weights do not match the config, so some would be random",
                where=f"{model}, {name}",
                expected=str(list(tensor.shape)),
                got=str(list(found)),
                fix="Download the model again.",
            )


def check_plain_files(directory: Path, model: str, *, nested: bool = False) -> None:
    """Raise EncoderError if something in the directory (and in its folders) is no plain file."""
    for path in directory.rglob("*") if nested else directory.iterdir():
        if not path.is_file() and not path.is_dir():  # a FIFO would block, a device may never end
            raise EncoderError("not a plain file", where=f"{model}, {path.name}", fix="Remove it from the folder.")


def check_sizes(config: dict[str, Any], shapes: Shapes, model: str) -> None:
    """Raise EncoderError if a config asks for more modules, or for larger ones, than there are weights."""
    _check_repeats(config, shapes, model, "the config")
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    for key, number in _numbers(config):
        if number > max(largest, _SMALL):
            raise EncoderError(
                "the config asks for larger modules than the weights have",
                where=f"{model}, {key}",
                expected=f"at most {max(largest, _SMALL):,}",
                got=number,
            )


def _check_repeats(config: dict[str, Any], shapes: Shapes, model: str, name: str) -> None:
    for key, number in _numbers(config):
        if _REPEATED.search(key) and number > len(shapes):
            raise EncoderError(
                f"{name} asks for more modules than there are weights",
                where=f"{model}, {key}",
                expected=f"at most {len(shapes)}",
                got=number,
            )


def _shapes(directory: Path, model: str) -> Shapes:
    """The shape of each tensor of the weights."""
    names = ["model.safetensors"]
    if not (directory / names[0]).is_file():
        names = sorted(set(map(str, read_json(directory / _INDEX, model).get("weight_map", {}).values())))
    shapes: Shapes = {}
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise EncoderError(
                "a file of weights that is not safetensors",
                where=f"{model}, {_INDEX}",
                expected="names such as model-00001-of-00002.safetensors",
                got=name[:80],
                fix="Pickled weights are never loaded: convert them with save_pretrained(…, safe_serialization=True).",
            )
        shapes |= shapes_of(directory / name, model)
    return shapes


def shapes_of(path: Path, model: str) -> Shapes:
    """The shapes that one file of weights states."""
    where = f"{model}, {path.name}"
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(_MOST_HEADER, path.stat().st_size):
                raise EncoderError("the weights cannot be loaded: the file is truncated", where=where)
            entries = json.loads(file.read(length))
        return {name: tuple(entry["shape"]) for name, entry in entries.items() if name != "__metadata__"}
    except FileNotFoundError as error:
        raise EncoderError("a file of weights is missing", where=where, fix="Download the model again.") from error
    except (OSError, ValueError, RecursionError, struct.error, LookupError, TypeError, AttributeError) as error:
        raise EncoderError(f"the weights cannot be loaded: {first_line(error)}", where=where) from error


def read_json(path: Path, model: str) -> dict[str, Any]:
    """The JSON object in a file of a model; EncoderError if it is not there, too large or none."""
    found = read_any_json(path, model)
    if not isinstance(found, dict):
        where = f"{model}, {path.name}"
        raise EncoderError(f"{path.name} holds no JSON object", where=where, fix="Is this a transformers model?")
    return found


def read_any_json(path: Path, model: str) -> Any:
    """The JSON in a file of a model, whatever it is; errors as `read_json`."""
    try:
        if path.stat().st_size > _MOST_JSON:
            raise EncoderError(f"{path.name} is too large", where=model, expected=f"at most {_MOST_JSON:,} bytes")
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EncoderError(f"{path.name} is missing", where=model, fix="Is this a transformers model?") from error
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path.name} cannot be read: {first_line(error)}", where=model) from error
    return found


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number in JSON, with the key it is under."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _numbers(part, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for part in value:
            yield from _numbers(part, key)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield key, value
