"""A small S3 on 127.0.0.1, with objects in memory: what pyarrow asks of one, and failures on demand. It cannot list."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

BUCKET = "bucket"
_ERROR = "<?xml version='1.0'?><Error><Code>{0}</Code><Message>{1}</Message></Error>"


class LoopbackS3:
    """One bucket.

    Attributes:
        objects: key → bytes.
        requests: (method, key) of each request.
        refuse: the S3 error of a request, if it gets one: (method, key) → (HTTP status, code, message).
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str], tuple[int, str, str] | None] = lambda _method, _key: None
        self._parts: dict[str, dict[int, bytes]] = {}
        self._lock = threading.Lock()

    def keys(self, prefix: str) -> list[str]:
        """The keys below a prefix, without it."""
        return sorted(key.removeprefix(prefix) for key in self.objects if key.startswith(prefix))

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes, int]:
        """Status, body and the length to state."""
        url = urlsplit(target)
        query = parse_qs(url.query, keep_blank_values=True)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        with self._lock:
            self.requests.append((method, key))
            refused = self.refuse(method, key)
            if refused is None and bucket != BUCKET:
                refused = 404, "NoSuchBucket", "The specified bucket does not exist"
            if refused is None and "list-type" in query:
                refused = 400, "NotImplemented", "this server lists nothing"
            if refused is not None:
                return _sized(refused[0], _ERROR.format(*refused[1:]).encode())
            return getattr(self, f"_{method.lower()}")(key, query, headers, body)  # type: ignore[no-any-return]

    def _put(
        self, key: str, query: dict[str, list[str]], headers: dict[str, str], body: bytes
    ) -> tuple[int, bytes, int]:
        if "aws-chunked" in headers.get("content-encoding", ""):
            body = _read_chunked(io.BytesIO(body))
        if "partNumber" in query:
            self._parts[query["uploadId"][0]][int(query["partNumber"][0])] = body
        elif not key.endswith("/"):  # pyarrow keeps the folder of a removed object with an empty object
            self.objects[key] = body
        return _sized(200, b"")

    def _post(self, key: str, query: dict[str, list[str]], _: dict[str, str], __: bytes) -> tuple[int, bytes, int]:
        if "uploads" in query:
            name = f"upload{len(self.requests)}"
            self._parts[name] = {}
            of = f"<Bucket>{BUCKET}</Bucket><Key>{key}</Key><UploadId>{name}</UploadId>"
            return _sized(200, f"<InitiateMultipartUploadResult>{of}</InitiateMultipartUploadResult>".encode())
        parts = self._parts.pop(query["uploadId"][0])
        self.objects[key] = b"".join(parts[number] for number in sorted(parts))
        result = f"<CompleteMultipartUploadResult><Key>{key}</Key><ETag>x</ETag></CompleteMultipartUploadResult>"
        return _sized(200, result.encode())

    def _get(self, key: str, _: dict[str, list[str]], headers: dict[str, str], __: bytes) -> tuple[int, bytes, int]:
        if key not in self.objects:
            return _sized(404, _ERROR.format("NoSuchKey", "The specified key does not exist").encode())
        data = self.objects[key]
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        if asked is None:
            return _sized(200, data)
        return _sized(206, data[int(asked[1]) : int(asked[2]) + 1 if asked[2] else None])

    def _head(self, key: str, *rest: object) -> tuple[int, bytes, int]:
        status, _, size = self._get(key, {}, {}, b"")
        return status, b"", size if status == 200 else 0

    def _delete(self, key: str, *_: object) -> tuple[int, bytes, int]:
        self.objects.pop(key, None)
        return _sized(204, b"")


def _sized(status: int, body: bytes) -> tuple[int, bytes, int]:
    return status, body, len(body)


def _read_chunked(file: io.BufferedIOBase) -> bytes:
    """A body in chunks, as both HTTP and "aws-chunked" have them, with what follows the last one."""
    chunks = []
    while size := int(file.readline().partition(b";")[0], 16):
        chunks.append(file.read(size))
        file.readline()
    while file.readline().strip():  # a checksum of the whole, which nobody compares here
        pass
    return b"".join(chunks)


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackS3]:
    """A running server, which the environment names as S3 for as long as it runs."""
    from sqid_lib import object_store

    s3 = LoopbackS3()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _serve(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            chunked = headers.get("transfer-encoding") == "chunked"
            body = _read_chunked(self.rfile) if chunked else self.rfile.read(int(headers.get("content-length", 0)))
            status, answer, size = s3.answer(self.command, self.path, headers, body)
            self.send_response(status)
            for name, value in {"Content-Length": str(size), "ETag": '"x"', "Content-Type": "application/xml"}.items():
                if not (status == 204 and name == "Content-Length"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{http.server_port}")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, f"loopback-{name[4:10].lower()}")
    object_store._filesystem.cache_clear()
    try:
        yield s3
    finally:
        object_store._filesystem.cache_clear()
        http.shutdown()
        http.server_close()
        thread.join()
