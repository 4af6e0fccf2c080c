"""The one tree of errors. A message says what, where, expected and got, and what to do.

SqidError
├── UsageError             the command or call itself is wrong (exit status 2)
├── RecipeError            a recipe has an unknown key, a wrong type or a bad value
├── MissingExtraError      an optional package is needed; names the extra to install
├── SourceError            an input file cannot be used as it is
│   ├── MissingFileError       it is not there
│   ├── EmptyFileError         it has no bytes or no rows
│   ├── LfsPointerError        a Git LFS pointer stands where the file should be
│   ├── HtmlPageError          a web page stands where the file should be
│   ├── CorruptFileError       truncated or damaged
│   ├── SchemaError            a column is missing or has the wrong type
│   └── DownloadError          the network or the server failed
│       └── NoRangesError          the server sends whole files only
├── ContractError          the files can be read, and contradict what they promise
│   ├── LabelError             a label without a gain
│   ├── DuplicateKeyError      a key that must be unique occurs twice
│   ├── IntegrityError         a reference to a row that does not exist
│   ├── TextLengthError        a text longer than any product's
│   └── CountError             a stated count is not met
├── StageError             a build stage cannot go on
│   ├── FetchError             the run of downloads as a whole failed
│   ├── EncoderError           a model cannot be loaded or used
│   └── DiskError              not enough space, or the disk refused
├── ReleaseError           a release does not validate
├── StoreError             an embedding store cannot be opened or used
├── EvaluationError        a run, qrels or method cannot be judged
└── HubError               the Hub refused or failed
    ├── AuthError              the token is missing, wrong or read-only
    ├── TagError               the tag exists on another commit
    └── RefusedError           the Hub understood a call and refuses it
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Iterable, Mapping

# the errno of a path that is refused, whatever is tried again
_REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)
# user names and passwords in URLs, values of parameters that sign a request, tokens of the Hub
_SECRETS = (
    (re.compile(r"(?<=://)[^/\s?#@]*(?::[^/\s?#]*)?@"), ""),
    (
        re.compile(
            r"([?&][\w.-]*(?:token|sig|key|secret|passw|auth|credential|amz)[\w.-]*=)[^&\s;,]+?(?=:?(?:[&\s;,]|$))",
            re.IGNORECASE,
        ),
        r"\1…",
    ),
    (re.compile(r"hf_[A-Za-z0-9_.-]{16,}"), "hf_…"),
    (re.compile(r"(\bbearer\s+|\bauthorization\W+(?:basic\s+)?)[\w.~+/=-]{8,}", re.IGNORECASE), r"\1…"),
)
_TOKEN_LENGTH = 8  # what is shorter is a placeholder, and part of many words
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "REPLICATE_API_TOKEN")  # in the environment, whatever they look like


class SqidError(Exception):
    """Root of the tree.

    Args:
        what: what went wrong, in a few words.
        where: the file, url, recipe key or row.
        expected: what the contract asks for.
        got: what was found instead.
        fix: what the reader can do about it.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        got: object = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.got, self.fix = what, where, expected, got, fix
        super().__init__(what)

    def __str__(self) -> str:
        message = f"{self.where}: {self.what}" if self.where is not None else self.what
        if self.expected is not None:
            message += f"; expected {self.expected}"
        if self.got is not None:
            message += f"{',' if self.expected is not None else ';'} got {self.got}"
        if self.fix:
            message += f". {self.fix}"
        return without_secrets(" ".join(message.split()))

    def __reduce__(self) -> tuple[object, ...]:
        # keyword-only arguments do not survive the default pickling between worker processes
        return (_rebuild, (type(self), self.what, self.where, self.expected, self.got, self.fix))


def _rebuild(
    cls: type[SqidError], what: str, where: object, expected: object, got: object, fix: str | None
) -> SqidError:
    return cls(what, where=where, expected=expected, got=got, fix=fix)


class UsageError(SqidError):
    """The command or call itself is wrong."""


class RecipeError(SqidError):
    """A recipe has an unknown key, a wrong type or a bad value."""


class MissingExtraError(SqidError, ImportError):
    """An optional package is needed; the message names the extra to install."""


class SourceError(SqidError):
    """A file cannot be used as it is."""


class MissingFileError(SourceError):
    """The file is not there."""


class EmptyFileError(SourceError):
    """The file has no bytes or no rows."""


class LfsPointerError(SourceError):
    """A Git LFS pointer stands where the file should be."""


class HtmlPageError(SourceError):
    """A web page stands where the file should be."""


class CorruptFileError(SourceError):
    """The file is truncated or damaged."""


class SchemaError(SourceError):
    """A column is missing or has the wrong type."""


class DownloadError(SourceError):
    """The network or the server failed."""


class NoRangesError(DownloadError):
    """The server sends whole files only."""


class ContractError(SqidError):
    """The files can be read, and contradict what they promise."""


class LabelError(ContractError):
    """A label without a gain."""


class DuplicateKeyError(ContractError):
    """A key that must be unique occurs twice."""


class IntegrityError(ContractError):
    """A reference to a row that does not exist."""


class TextLengthError(ContractError):
    """A text longer than any product's."""


class CountError(ContractError):
    """A stated count is not met."""


class StageError(SqidError):
    """A build stage cannot go on."""


class FetchError(StageError):
    """The run of downloads as a whole failed."""


class EncoderError(StageError):
    """A model cannot be loaded or used."""


class DiskError(StageError):
    """Not enough space, or the disk refused."""


class ReleaseError(SqidError):
    """A release does not validate."""


class StoreError(SqidError):
    """An embedding store cannot be opened or used."""


class EvaluationError(SqidError):
    """A run, qrels or method cannot be judged."""


class HubError(SqidError):
    """The Hub refused or failed."""


class AuthError(HubError):
    """The token is missing, wrong or read-only."""


class TagError(HubError):
    """The tag exists on another commit."""


class RefusedError(HubError):
    """The Hub refuses a call; `status` is the HTTP status, `missing` whether there is no such repository."""

    status: int = 0
    missing: bool = False


def write_error(error: OSError, where: object = None, doing: str = "written", again: str = "the build") -> DiskError:
    """The error for a file that cannot be written, with the advice that its cause asks for.

    Args:
        where: what was written, for exceptions that name no file.
        doing: what failed.
        again: what to run again.
    """
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = os.strerror(error.errno) if error.errno else first_line(error)
    if full or error.errno == errno.EFBIG:
        fix = f"Make room and run {again} again; finished work is kept."
    elif error.errno in (errno.EMFILE, errno.ENFILE):
        fix = f"Raise the limit of open files (ulimit -n 4096) and run {again} again; finished work is kept."
    elif error.errno in _REFUSED:
        fix = "Check the path and its permissions."
    else:
        fix = f"Run {again} again; finished work is kept."
    what = "no space left" if full else f"cannot be {doing}: {reason}"
    return DiskError(what, where=error.filename or where, fix=fix)


def without_secrets(text: str) -> str:
    """The same text without passwords and signatures of URLs and without tokens."""
    for name in _TOKENS:
        if len(token := os.environ.get(name, "").strip()) >= _TOKEN_LENGTH:
            text = text.replace(token, "…")
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """The error for an optional package that is not installed, or whose import fails; `purpose` reads as "to …"."""
    error = sys.exc_info()[1]
    if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
        return MissingExtraError(
            f"the package {package!r} is needed {purpose}; it is there but cannot be loaded: {first_line(error)}",
            fix="Install it again, or what it needs, and check that there is enough memory.",
        )
    return MissingExtraError(
        f"the package {package!r} is needed {purpose}", fix=f'Install it with: pip install "sqid[{extra}]"'
    )


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def unknown_name(kind: str, word: str, known: Iterable[str], where: str) -> UsageError:
    """The error for a word that is none of those known, with the question that `did_you_mean` has for it.

    Args:
        kind: what the word should name, such as "stage".
        where: the option or key that it was given to.
    """
    known = list(known)
    return UsageError(
        f"unknown {kind}", where=where, expected=" or ".join(known), got=repr(word), fix=did_you_mean(word, known)
    )


def did_you_mean(word: str, known: Iterable[str], shown: Mapping[str, str] | None = None) -> str | None:
    """A question that names the known word nearest to `word`, for the fix of an error; None where none is near.

    Args:
        shown: how the words of `known` are written in the question, where they differ.
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f"Did you mean {shown[near[0]] if shown else near[0]}?" if near else None
