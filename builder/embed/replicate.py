"""The Replicate backend: texts and image URLs → vectors of a hosted CLIP, through the `replicate` client.

The model takes lines of text; a line that starts with http:// or https:// is downloaded as an image. It answers a list
of {"input", "embedding"}, and fails as a whole if one image cannot be downloaded or one text is too long: a batch that
fails is halved until the input that causes it is found.
"""

from __future__ import annotations

import os
import re
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np

from builder.recipe import Recipe
from sqid_lib.encoders.batching import Floats, VectorBatches, in_batches
from sqid_lib.errors import EncoderError, missing_extra

if TYPE_CHECKING:
    from replicate.client import Client

# the model and version the published README names; openai/clip-vit-large-patch14
MODEL = "andreasjansson/clip-features:71addf5a5e7c400e091f33ef8ae1c40d72a25966897d05ebe36a7edb06a86a2c"
_TOKEN = "REPLICATE_API_TOKEN"
_IN_FLIGHT = 4  # predictions at a time
_SECONDS = 600.0  # for one prediction, cold start of the model included
_ATTEMPTS = 2  # of a prediction that fails for a single input
# CLIP's pre-tokenizer (OpenAI's simple_tokenizer.py) without its letter classes: each piece is at least one token
_PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|[^\s\w]+|_+", re.IGNORECASE)
_MOST_PIECES = 75  # 77 tokens less start and end


class Replicate:
    """Encodes texts and image URLs with a model hosted by Replicate.

    Args:
        recipe: `encoder.model` is OWNER/NAME:VERSION, or anything else for the published one; batches as set there.

    Raises:
        EncoderError: no token in the environment, or the service refuses it.
        MissingExtraError: the package replicate is not installed.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._settings = recipe.encoder
        self._version = reference(recipe.encoder.model).partition(":")[2]
        self._client, close = _client()
        weakref.finalize(self, close)
        self.width = int(self._predict(["a"])["a"].shape[0])

    @property
    def record(self) -> dict[str, Any]:
        """What the vectors depend on."""
        return {"revision": self._version, "width": self.width, "linear": "remote", "versions": versions()}

    def texts(self, texts: Sequence[str]) -> VectorBatches:
        """Texts in the order given. A text that the model finds too long is truncated at the last word that fits."""
        places: dict[str, list[int]] = {}  # the model's line → rows of the texts that become it
        for row, text in enumerate(texts):
            places.setdefault(_as_line(text), []).append(row)
        batches = list(in_batches(places, self._settings.text_batch))

        def vectors() -> Iterator[Floats]:
            for lines, (found, failed) in self._solved(batches):
                found |= {line: self._truncated(line) for line in failed}
                yield np.stack([found[line] for line in lines for _ in places[line]])

        return VectorBatches([[row for line in lines for row in places[line]] for lines in batches], vectors())

    def images(self, names: Sequence[str]) -> tuple[VectorBatches, dict[str, str]]:
        """Images in the order given, and the status of those that the model cannot use.

        Args:
            names: URL of each image.
        """
        # the model takes anything else for a text
        statuses = {url: "bad_url" for url in names if not re.match(r"https?://\S+$", url)}
        good = [row for row, url in enumerate(names) if url not in statuses]
        rows = list(in_batches(good, self._settings.image_batch))
        bad = [row for row, url in enumerate(names) if url in statuses]
        nothing = np.full(self.width, np.nan, np.float32)

        def vectors() -> Iterator[Floats]:
            encoded = 0
            for batch, (found, failed) in self._solved([[names[row] for row in some] for some in rows]):
                statuses.update(dict.fromkeys(failed, "error"))
                encoded += len(found)
                yield np.stack([found.get(url, nothing) for url in batch])
            if good and not encoded:
                raise EncoderError(
                    f"not one of {len(names)} images could be encoded",
                    where=self._settings.model,
                    got=names[good[0]],
                    fix="Check that the URLs can be reached from the internet and that the model works.",
                )
            if bad:
                yield np.stack([nothing] * len(bad))

        return VectorBatches([*rows, *([bad] if bad else [])], vectors()), statuses

    def _solved(self, batches: list[list[str]]) -> Iterator[tuple[list[str], tuple[dict[str, Floats], list[str]]]]:
        """Each batch with what `_solve` gives for it, several in flight, in order."""
        with ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="replicate") as pool:
            yield from zip(batches, pool.map(self._solve, batches), strict=True)

    def _solve(self, lines: list[str]) -> tuple[dict[str, Floats], list[str]]:
        """Vectors of the lines, and those lines for which the model fails even alone."""
        for _ in range(_ATTEMPTS if len(lines) == 1 else 1):
            try:
                return self._predict(lines), []
            except _FailedError:
                continue
        if len(lines) == 1:
            return {}, lines
        half = len(lines) // 2
        (found, failed), (more, also) = self._solve(lines[:half]), self._solve(lines[half:])
        return found | more, failed + also

    def _truncated(self, line: str) -> Floats:
        """The vector of as many leading words as the model takes."""
        ends = [match.end() for match in _PIECE.finditer(line)]
        takes, refuses, vector = 0, len(ends), None
        while refuses - takes > 1:
            middle = (takes + refuses) // 2
            try:
                start = line[: ends[middle - 1]]
                takes, vector = middle, self._predict([start])[start]
            except _FailedError:
                refuses = middle
        if vector is None:
            raise EncoderError("the model fails on a text", where=self._settings.model, got=repr(line[:80]))
        return vector

    def _predict(self, lines: Sequence[str]) -> dict[str, Floats]:
        """One prediction: line → vector.

        Raises:
            _FailedError: the model failed.
            EncoderError: the service refused, or did not answer a vector per line.
        """
        # the model strips an empty first or last line
        inputs = ["a", *lines, "a"] if "" in lines else list(lines)
        prediction = self._finished("\n".join(inputs))
        try:
            found = {row["input"]: np.asarray(row["embedding"], np.float32) for row in prediction.output}
            return {line: _vector(found[line]) for line in lines}
        except (TypeError, KeyError, ValueError) as error:
            raise EncoderError(
                f"the answer is not a vector per line: {type(error).__name__}: {error}",
                where=self._settings.model,
                fix="Name a model that answers as andreasjansson/clip-features does.",
            ) from error

    def _finished(self, inputs: str) -> Any:
        import httpx
        from replicate.exceptions import ReplicateError

        try:
            prediction = self._client.predictions.create(version=self._version, input={"inputs": inputs})
            deadline = time.monotonic() + _SECONDS
            while prediction.status not in ("succeeded", "failed", "canceled"):
                if time.monotonic() > deadline:
                    prediction.cancel()
                    raise EncoderError("a prediction did not end", where=self._settings.model, got=f"{_SECONDS:.0f} s")
                time.sleep(self._client.poll_interval)
                prediction.reload()
        except ReplicateError as error:
            refused = error.status in (401, 403)
            raise EncoderError(
                "Replicate refuses the token" if refused else f"Replicate answers {error.status}: {error.detail}",
                where=self._settings.model,
                fix=f"Set {_TOKEN} to a valid token." if refused else "Run again: finished shards are kept.",
            ) from error
        except httpx.HTTPError as error:
            raise EncoderError(
                f"Replicate cannot be reached: {type(error).__name__}: {error}",
                where=str(self._client._client.base_url),
                fix="Check the network, and run again: finished shards are kept.",
            ) from error
        if prediction.status != "succeeded":
            raise _FailedError(prediction.error)
        return prediction


class _FailedError(Exception):
    """The model failed, not the service."""


def reference(model: str) -> str:
    """OWNER/NAME:VERSION of the recipe, or the published one."""
    return model if re.fullmatch(r"[\w.-]+/[\w.-]+:[0-9a-f]{64}", model) else MODEL


def versions() -> dict[str, str]:
    """Versions of the packages that the vectors depend on, as far as this machine knows."""
    return {"replicate": metadata.version("replicate")}


def _client() -> tuple[Client, Callable[[], None]]:
    """The client, and the function that closes its connections."""
    try:
        import httpx
        from replicate.client import Client, RetryTransport
    except ImportError as error:
        raise missing_extra("replicate", "replicate", 'for encoder.backend = "replicate"') from error
    if not os.environ.get(_TOKEN):
        raise EncoderError(f"{_TOKEN} is not set", where="encoder.backend", fix=f"Set {_TOKEN} in the environment.")
    # by default the client does not retry POST; a prediction refused by a rate limit was never started
    transport = RetryTransport(httpx.HTTPTransport(), retryable_methods=["POST"], retry_status_codes=[429, 503])
    return Client(transport=transport), transport.close


def _as_line(text: str) -> str:
    """A text as one line that is not taken for an image: CLIP ignores case, the model's test for URLs does not."""
    line = " ".join(text.split())
    pieces = list(_PIECE.finditer(line))
    if len(pieces) > _MOST_PIECES:
        line = line[: pieces[_MOST_PIECES - 1].end()]
    return re.sub(r"^https?://", lambda match: match[0].upper(), line)


def _vector(array: Floats) -> Floats:
    if array.ndim != 1 or not array.size:
        raise ValueError("not a list of numbers")
    return array
