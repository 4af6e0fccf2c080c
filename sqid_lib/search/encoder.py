"""The encoder that a release names: found, loaded, and checked against the vectors of the release."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sqid_lib import schemas
from sqid_lib.errors import EncoderError
from sqid_lib.evaluation.arrays import Matrix
from sqid_lib.evaluation.cosine import unit

HOW = "Give the model that made the vectors: --encoder DIR on the command line, encoder=DIR in Python."
_BACKENDS = ("open_clip", "sentence-transformers")  # besides transformers
_SAME = 0.99  # cosine from which a vector is that of the same model, in another dtype or on another device


@dataclass(frozen=True)
class Model:
    """The encoder that made the vectors of a release, as its manifest.json names it.

    Attributes:
        name: a Hub id, or the last part of the path of a local directory.
        revision: the commit, or "local-" and a hash of a directory's files; None where the manifest states none.
        backend: as of `sqid_lib.load_encoder`; what the recipe of the release names, if it can be loaded here.
    """

    name: str
    revision: str | None = None
    backend: str = "transformers"

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


class QueryEncoder(Protocol):
    """What search needs of an encoder; `sqid_lib.load_encoder` gives one."""

    @property
    def model_id(self) -> str: ...
    @property
    def revision(self) -> str: ...
    @property
    def width(self) -> int: ...
    def encode_text(self, texts: Sequence[str], /) -> npt.NDArray[np.float32]: ...
    def encode_images(self, images: Iterable[Any], /) -> npt.NDArray[np.float32]: ...


def read_model(manifest: Path) -> Model | None:
    """The model that a manifest.json names; None where there is no such file, or it names none."""
    try:
        stated = json.loads(manifest.read_text(encoding="utf-8"))
        name, revision = stated["model"], stated.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(name, str) or not name:
        return None
    recipe = stated.get("recipe")
    encoder = recipe.get("encoder") if isinstance(recipe, dict) else None
    backend = encoder.get("backend") if isinstance(encoder, dict) else None
    known = backend if backend in _BACKENDS else "transformers"
    return Model(name, revision if isinstance(revision, str) and revision else None, known)


def load(encoder: str | os.PathLike[str] | None, model: Model | None) -> QueryEncoder:
    """The given encoder, or the one that the release names.

    Args:
        encoder: a directory or a Hub id; None for `model`.
        model: what the release names; its revision is loaded.

    Raises:
        EncoderError: the release names no model that can be loaded; the message says how to give one.
        MissingExtraError: torch, transformers or pillow is not installed.
    """
    from sqid_lib.encoders import load_encoder

    name = os.fspath(encoder) if encoder is not None else _loadable(model)
    revision = (model.revision if model and model.name == name else None) or "main"
    try:
        return load_encoder(name, revision=revision, backend=model.backend if model else "transformers")
    except EncoderError as error:
        where = model if encoder is None else name
        raise EncoderError(
            f"the encoder cannot be loaded: {error.what}", where=where, got=error.got, fix=HOW
        ) from error


def _loadable(model: Model | None) -> str:
    """The name under which the release's model can be looked for."""
    if model is None:
        raise EncoderError("the release does not name its encoder: no model in manifest.json", fix=HOW)
    local = model.revision is not None and model.revision.startswith(schemas.LOCAL_REVISION)
    if local and not Path(model.name).is_dir():
        raise EncoderError("the encoder of the release was a local directory", where=model, fix=HOW)
    return model.name


def check(encoder: QueryEncoder, model: Model | None, width: int, queries: pa.Table, vectors: Matrix) -> str | None:
    """Raise EncoderError unless `encoder` makes the vectors of the release; a note where that cannot be known.

    The same revision is the same model. Otherwise, as for a copy of a Hub model in a directory, the first query of the
    release is encoded and compared with its stored vector.

    Args:
        queries: column query. vectors: [Q, D], their stored vectors.
    """
    expected = f"{model}, width {width}" if model else f"width {width}"
    got = f"{encoder.model_id}@{encoder.revision}, width {encoder.width}"
    if encoder.width != width:
        raise EncoderError("vectors of another width", where="encoder", expected=expected, got=got, fix=HOW)
    if model and model.revision == encoder.revision:
        return None
    row, text = next(((n, text) for n, text in enumerate(queries["query"].to_pylist()) if text), (0, ""))
    if not text:
        return "the release has no query text, so it is not known whether this encoder made its vectors"
    one, other = unit(encoder.encode_text([text])), unit(vectors[row : row + 1])
    similarity = float((one * other).sum())
    if similarity < _SAME:
        raise EncoderError(
            f"this encoder did not make the vectors of the release: its vector of {text[:40]!r} has cosine "
            f"{similarity:.2f} with the stored one",
            where="encoder",
            expected=expected,
            got=got,
            fix=HOW,
        )
    return None
