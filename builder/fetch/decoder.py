"""The program of a decoder process: checks untrusted bytes, and hashes and stores those that are an image.

`decoders` starts it by its path, so that it imports nothing of the build but what looks at images.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import struct
import sys
import warnings
from typing import Any, BinaryIO

from sqid_lib.images import ImageError, check

SECONDS = 20  # for one image; the slowest valid ones take under one
REQUEST = struct.Struct("<QQQ")  # bytes that follow, pixels allowed, offset in the spool
READY = b"+"
KEPT = "truncated, kept: "  # begins the detail of such an image


def serve(requests: BinaryIO, replies: BinaryIO, spool: int, *, keep_truncated: bool = False) -> None:
    """Answer requests until their end; a request is a REQUEST and the bytes, a reply a line of JSON.

    The reply is what `decoders.Checked` has, and comes when the bytes are in the file of the descriptor `spool`; where
    they cannot be written, it is `{"errno": …}`.
    """
    while len(header := requests.read(REQUEST.size)) == REQUEST.size:
        length, max_pixels, offset = REQUEST.unpack(header)
        data = requests.read(length)
        if len(data) < length:
            return  # the parent died while it sent them
        replies.write(json.dumps(_answer(data, max_pixels, spool, offset, keep_truncated)).encode() + b"\n")
        replies.flush()


def _answer(data: bytes, max_pixels: int, spool: int, offset: int, keep_truncated: bool) -> dict[str, Any]:
    signal.alarm(SECONDS)  # its default action ends the process, even inside a decoder written in C
    try:
        (width, height), detail = _check(data, max_pixels, keep_truncated)
    except ImageError as error:
        return {"status": error.status, "detail": error.detail}
    finally:
        signal.alarm(0)
    try:
        _write(spool, data, offset)
    except OSError as error:
        return {"errno": error.errno}
    sha256 = hashlib.sha256(data).hexdigest()
    return {
        "status": "ok",
        "sha256": sha256,
        "offset": offset,
        "width": width,
        "height": height,
        "detail": detail,
    }


def _check(data: bytes, max_pixels: int, keep_truncated: bool) -> tuple[tuple[int, int], str | None]:
    """Size in pixels, and what should be known of an image that is kept."""
    try:
        return check(data, max_pixels), None
    except ImageError as error:
        if not keep_truncated or error.status != "truncated":
            raise
        return check(data, max_pixels, keep_truncated=True), f"{KEPT}{error.detail}"


def _write(descriptor: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:  # a disk that is nearly full takes only a part
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


def _main(spool: int, keep_truncated: bool) -> None:
    import PIL.Image  # noqa: F401 - a missing package must fail here and not be reported as a damaged image

    warnings.simplefilter("ignore")  # Pillow warns about unusual metadata
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into the replies
    replies.write(READY)
    replies.flush()
    try:
        serve(sys.stdin.buffer, replies, spool, keep_truncated=keep_truncated)
    except BrokenPipeError:
        os._exit(1)  # the parent ended: nobody reads replies


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2] == "keep")
