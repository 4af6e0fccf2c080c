"""Downloads over https into the cache of datasets' download manager, which itself would begin broken ones anew."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock


def fetch(url: str, cached: Path) -> None:
    """Have the file at `url` under `cached`, going on where an earlier attempt broke, in this process or another.

    What has come so far lies beside it as `.part`. A server without ranges sends the whole file again.

    Args:
        cached: a name that stands for this content of the url, so that parts of two contents never meet.

    Raises:
        Exception: of huggingface_hub's http library, where the server cannot be reached or refuses.
        OSError: the disk is full, or fewer bytes came than were announced.
    """
    cached.parent.mkdir(parents=True, exist_ok=True)
    part = cached.with_name(cached.name + ".part")
    with FileLock(f"{cached}.lock"):  # the manager's own
        if cached.exists():
            return
        _append(url, part)
        os.replace(part, cached)  # noqa: PTH105


def _append(url: str, part: Path) -> None:
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    headers = {"Accept-Encoding": "identity"}
    with part.open("ab") as stream:
        try:
            http_get(url, stream, resume_size=stream.tell(), headers=headers)
        except HfHubHTTPError as error:
            if error.response is None or error.response.status_code != 416:
                raise
            stream.truncate(0)  # nothing lies behind the part: whether it is the whole file is not known
            http_get(url, stream, headers=headers)
        stream.flush()
        os.fsync(stream.fileno())
