"""What the command does to its output streams: no text ends it with an encoding error, and data are UTF-8."""

from __future__ import annotations

import codecs
import io
import logging
import os
import sys
import warnings

from sqid_lib.errors import without_secrets

_ERRORS = "sqid.readable"
# what tables have becomes one character, so that their columns stay aligned
_ASCII = {
    "\N{EN DASH}": "-",
    "\N{EM DASH}": "-",
    "\N{MINUS SIGN}": "-",
    "\N{MULTIPLICATION SIGN}": "x",
    "\N{MIDDLE DOT}": "*",
    "\N{GREEK CAPITAL LETTER DELTA}": "d",
    "\N{NO-BREAK SPACE}": " ",
    "\N{RIGHTWARDS ARROW}": "->",
    "\N{HORIZONTAL ELLIPSIS}": "...",
}


def prepare_output() -> None:
    """Write what stdout and stderr cannot encode as ASCII or as an escape, and warnings as one line without a path.

    A terminal may not be UTF-8: cp1252 on Windows, ASCII with LANG=C.
    """
    codecs.register_error(_ERRORS, _readable)
    _open_standard_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_ERRORS)
    warnings.formatwarning = lambda message, *_args, **_options: f"WARNING: {' '.join(str(message).split())}\n"


def _open_standard_streams() -> None:
    """Open what the shell closed (`>&-`) as the null device, so that no file of a build gets the number of stdout."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - until the end


def log_handler() -> logging.Handler:
    """What writes the log on stderr: a line for each record, without secrets."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_WithoutSecrets("%(levelname)s: %(message)s"))
    return handler


class _WithoutSecrets(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(super().format(record))


def write_data(text: str) -> None:
    """Write JSON or CSV on stdout: in UTF-8 whatever the locale, but on a terminal in the terminal's encoding."""
    if isinstance(sys.stdout, io.TextIOWrapper) and not sys.stdout.isatty():
        # a path in the data that is not UTF-8 keeps its bytes
        sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    sys.stdout.write(text)


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler of codecs: ASCII in place of characters that cannot be encoded; a path keeps its bytes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # what stands for a byte of an argument that could not be decoded
        return bytes([ord(character) - 0xDC00]), error.start + 1
    escaped = character.encode("ascii", "backslashreplace").decode("ascii")
    return _ASCII.get(character, escaped), error.start + 1
