"""The program of a decoder process: checks untrusted bytes, and hashes those that are an image.

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

SECONDS = 20  # for the images of a request; the slowest valid ones take under one
COUNT = struct.Struct("<Q")  # of the images of a request, which follow
IMAGE = struct.Struct("<QQ")  # offset in the spool, bytes
READY = b"+"
KEPT = "truncated, kept: "  # begins the detail of such an image


def serve(requests: BinaryIO, replies: BinaryIO, spool: int, max_pixels: int, *, keep_truncated: bool = False) -> None:
    """Answer requests until their end; a request is a COUNT and as many of IMAGE, a reply a line of JSON.

    The reply is a list with what `decoders.Checked` has, without the offset, for each image of the request, or
    `{"errno": …}` where the descriptor `spool` cannot be read.
    """
    while len(header := requests.read(COUNT.size)) == COUNT.size:
        length = COUNT.unpack(header)[0] * IMAGE.size
        places = requests.read(length)
        if len(places) < length:
            return  # the parent died while it sent them
        signal.alarm(SECONDS)  # its default action ends the process, even inside a decoder written in C
        images = IMAGE.iter_unpack(places)
        found = [_answer(spool, offset, size, max_pixels, keep_truncated) for offset, size in images]
        signal.alarm(0)
        replies.write(json.dumps(found).encode() + b"\n")
        replies.flush()


def _answer(spool: int, offset: int, length: int, max_pixels: int, keep_truncated: bool) -> dict[str, Any]:
    try:
        data = os.pread(spool, length, offset)
    except OSError as error:
        return {"errno": error.errno}
    try:
        (width, height), detail = _check(data, max_pixels, keep_truncated)
    except ImageError as error:
        return {"status": error.status, "detail": error.detail}
    sha256 = hashlib.sha256(data).hexdigest()
    return {"status": "ok", "sha256": sha256, "width": width, "height": height, "detail": detail}


def _check(data: bytes, max_pixels: int, keep_truncated: bool) -> tuple[tuple[int, int], str | None]:
    """Size in pixels, and what should be known of an image that is kept."""
    try:
        return check(data, max_pixels), None
    except ImageError as error:
        if not keep_truncated or error.status != "truncated":
            raise
        return check(data, max_pixels, keep_truncated=True), f"{KEPT}{error.detail}"


def _main(spool: int, max_pixels: int, keep_truncated: bool) -> None:
    import PIL.Image  # noqa: F401 - a missing package must fail here and not be reported as a damaged image

    warnings.simplefilter("ignore")  # Pillow warns about unusual metadata
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then closes the pipe
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not write into the replies
    replies.write(READY)
    replies.flush()
    try:
        serve(sys.stdin.buffer, replies, spool, max_pixels, keep_truncated=keep_truncated)
    except BrokenPipeError:
        os._exit(1)  # the parent ended: nobody reads replies


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "keep")
