"""The error tree: one line, what, where, expected, got, what to do."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import pytest

from sqid_lib import errors


def tree(cls: type[errors.SqidError] = errors.SqidError) -> Iterator[type[errors.SqidError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from tree(child)


@pytest.mark.parametrize("cls", list(tree()), ids=lambda cls: cls.__name__)
def test_every_error_tells_all_in_one_line_and_survives_a_process_boundary(cls: type[errors.SqidError]) -> None:
    error = cls("it broke\nhere", where="file.csv", expected="two", got=3, fix="Mend it.")
    assert str(error) == "file.csv: it broke here; expected two, got 3. Mend it."
    rebuild, arguments = error.__reduce__()  # what a worker process sends back
    again = rebuild(*arguments)  # type: ignore[operator, misc]
    assert type(again) is cls and str(again) == str(error)


def test_the_tree_is_drawn_in_the_docstring() -> None:
    drawn = errors.__doc__ or ""
    assert [cls.__name__ for cls in tree() if cls.__name__ not in drawn] == []
    assert all(inspect.getdoc(cls) for cls in tree())


def test_a_package_whose_import_fails_is_not_said_to_be_missing() -> None:
    try:
        raise ImportError("libtorch.so: failed to map segment")
    except ImportError:
        error = errors.missing_extra("torch", "build", "to embed")
    assert "it is there but cannot be loaded: libtorch.so: failed to map segment" in str(error)


def test_a_missing_extra_names_the_command() -> None:
    error = errors.missing_extra("torch", "train", "to stream tensors")
    assert isinstance(error, ImportError)
    assert 'pip install "sqid[train]"' in str(error)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("403: you sent Authorization: Bearer eyJhbGciOi.J9_x-y", "403: you sent Authorization: Bearer …"),
        ("authorization: Basic dXNlcjpwYXNzd29yZA==", "authorization: Basic …"),
        ("token hf_oauth_eyJhbGciOiJIUzI1NiJ9.e30", "token hf_…"),
        ("the password of this machine, abc", "the password of this machine, abc"),
        ("sent own-Secret/Token.1 twice: own-Secret/Token.1", "sent … twice: …"),
        (
            "no basic authorization header; the bearer is unknown",
            "no basic authorization header; the bearer is unknown",
        ),
    ],
)
def test_tokens_are_removed_from_texts(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "own-Secret/Token.1")
    monkeypatch.setenv("REPLICATE_API_TOKEN", "abc")  # too short to be one
    assert errors.without_secrets(text) == shown
    assert str(errors.SqidError(text)) == shown
