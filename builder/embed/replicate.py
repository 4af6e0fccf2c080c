"""The Replicate backend: texts and image urls → vectors of a hosted CLIP, through the `replicate` client.

The model takes lines of text; a line that starts with http:// or https:// is fetched as a picture. It answers a list of
{"input", "embedding"}, and fails as a whole if one picture cannot be fetched or one text is too long: a batch that
fails is halved until the culprit stands alone.
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
from numpy.typing import NDArray

from builder.recipe import Recipe
from sqid_lib.errors import EncoderError, missing_extra

if TYPE_CHECKING:
    from replicate.client import Client

Floats = NDArray[np.float32]

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
    """Encodes texts and image urls with a model hosted by Replicate.

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
        """What makes the vectors what they are."""
        return {"revision": self._version, "width": self.width, "linear": "remote", "versions": versions()}

    def texts(self, texts: Sequence[str], tick: Callable[[int], object]) -> Floats:
        """float32 [N, D]. A text the model finds too long is cut at the last word that fits."""
        lines = [_line(text) for text in texts]
        vectors: dict[str, NDArray[np.float32]] = {}
        for found, failed in self._batches(list(dict.fromkeys(lines)), self._settings.text_batch, tick):
            vectors |= found
            for line in failed:
                vectors[line] = self._cut(line)
        return np.stack([vectors[line] for line in lines])

    def pictures(self, urls: Sequence[str], tick: Callable[[int], object]) -> tuple[Floats, dict[str, str]]:
        """float32 [N, D], NaN where there is no vector, and the status of urls the model could not use."""
        vectors: dict[str, NDArray[np.float32]] = {}
        # the model takes anything else for a text
        statuses = {url: "bad_url" for url in urls if not re.match(r"https?://\S+$", url)}
        good = [url for url in urls if url not in statuses]
        for found, failed in self._batches(good, self._settings.image_batch, tick):
            vectors |= found
            statuses |= dict.fromkeys(failed, "error")
        if good and not vectors:
            raise EncoderError(
                f"not one of {len(urls)} pictures could be encoded",
                where=self._settings.model,
                got=good[0],
                fix="Are the urls reachable from outside, and is the model well?",
            )
        nothing = np.full(self.width, np.nan, np.float32)
        return np.stack([vectors.get(url, nothing) for url in urls]), statuses

    def _batches(
        self, lines: list[str], size: int, tick: Callable[[int], object]
    ) -> Iterator[tuple[dict[str, Floats], list[str]]]:
        """What `_solve` gives for each batch, several in flight, in order."""
        batches = [lines[start : start + size] for start in range(0, len(lines), size)]
        with ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="replicate") as pool:
            for batch, solved in zip(batches, pool.map(self._solve, batches), strict=True):
                tick(len(batch))
                yield solved

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

    def _cut(self, line: str) -> Floats:
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
            EncoderError: the service refused, or answered something else than a vector per line.
        """
        # an empty first or last line would be stripped away
        asked = ["a", *lines, "a"] if "" in lines else list(lines)
        prediction = self._finished("\n".join(asked))
        try:
            found = {row["input"]: np.asarray(row["embedding"], np.float32) for row in prediction.output}
            return {line: _vector(found[line]) for line in lines}
        except (TypeError, KeyError, ValueError) as error:
            raise EncoderError(
                f"an answer that is not a vector per line: {type(error).__name__}: {error}",
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
    """The model, not the service, failed."""


def reference(model: str) -> str:
    """OWNER/NAME:VERSION of the recipe, or the published one."""
    return model if re.fullmatch(r"[\w.-]+/[\w.-]+:[0-9a-f]{64}", model) else MODEL


def versions() -> dict[str, str]:
    """Of the packages on this side."""
    return {"replicate": metadata.version("replicate")}


def _client() -> tuple[Client, Callable[[], None]]:
    """The client, and what closes its connections."""
    try:
        import httpx
        from replicate.client import Client, RetryTransport
    except ImportError as error:
        raise missing_extra("replicate", "replicate", 'for encoder.backend = "replicate"') from error
    if not os.environ.get(_TOKEN):
        raise EncoderError(f"{_TOKEN} is not set", where="encoder.backend", fix=f"Set {_TOKEN} in the environment.")
    # the client retries only what it calls safe; a prediction refused for its rate was never made
    transport = RetryTransport(httpx.HTTPTransport(), retryable_methods=["POST"], retry_status_codes=[429, 503])
    return Client(transport=transport), transport.close


def _line(text: str) -> str:
    """A text as one line that is not taken for a picture: CLIP lowers case, the model's test for urls does not."""
    line = " ".join(text.split())
    pieces = list(_PIECE.finditer(line))
    if len(pieces) > _MOST_PIECES:
        line = line[: pieces[_MOST_PIECES - 1].end()]
    return re.sub(r"^https?://", lambda match: match[0].upper(), line)


def _vector(array: Floats) -> Floats:
    if array.ndim != 1 or not array.size:
        raise ValueError("not a list of numbers")
    return array
