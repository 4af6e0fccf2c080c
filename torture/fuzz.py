"""The examples: a valid file of each kind, how hypothesis changes it, and what reads it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import resource
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from sqid_lib.errors import SqidError

_LONGEST = 15  # seconds for one example; then SIGALRM ends the process
_GROWTH = 1_500_000  # KiB of memory that all examples together may cost
_IDS = ["0060538260", "007", "B000000001", "NA"]
_SPECIAL = (
    *(b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b'"', b"'", b",", b"\n", b"\r\n", b"{", b"[" * 3000, b"<" * 500),
    *(b"&a [*a, *a]", b"2147483647", b"-1", b"1e999", b"NaN", b"null", b"../../etc/passwd", b"javascript:alert(1)"),
    *(b"\xed\xa0\x80", "é\u202e".encode(), b"&#x110000;", b"Content-Length: 9\r\n", b"\x7f" * 64, b"0" * 400),
)
Edit = tuple[str, float, float, bytes, int]
_EDITS = st.lists(
    st.tuples(
        st.sampled_from(("insert", "replace", "delete", "repeat", "flip", "truncate")),
        st.floats(0, 1),
        st.floats(0, 0.2),
        st.sampled_from(_SPECIAL) | st.binary(max_size=12),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)


def run(kind: str, folder: str, number: int, examples: int) -> int:
    """Some hundred changed files of one kind; what is raised but errors of ours ends the child with a traceback."""
    valid, read = KINDS[kind]
    root = Path(folder)
    original = valid(root)
    read(original, root)  # unchanged, it can be read
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @seed(number)
    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(_EDITS)
    def attempt(edits: list[Edit]) -> None:
        changed = edited(original, edits)
        (root / "case").write_bytes(changed)
        signal.alarm(_LONGEST)
        try:
            read(changed, root)
        except SqidError:
            pass
        finally:
            signal.alarm(0)

    attempt()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > _GROWTH:
        raise MemoryError(f"{grown // 1024} MiB more than before the examples")
    return 0


def edited(data: bytes, edits: list[Edit]) -> bytes:
    """The bytes after some edits; places and lengths are parts of the whole."""
    for what, place, length, payload, byte in edits:
        at = int(place * len(data))
        end = at + max(1, int(length * len(data)))
        match what:
            case "insert":
                data = data[:at] + payload + data[at:]
            case "replace":
                data = data[:at] + payload + data[at + len(payload) :]
            case "delete":
                data = data[:at] + data[end:]
            case "repeat":
                data = data[:end] + data[at:end] * (byte % 8) + data[end:]
            case "flip":
                data = data[:at] + bytes([byte]) + data[at + 1 :]
            case _:
                data = data[:at]
    return data[:4_000_000]


# -- a valid file of each kind, and what reads it -------------------------------------------------------------------


def _urls() -> pa.Table:
    return pa.table({"product_id": _IDS, "image_url": [f"https://images.example/{i}.jpg" for i in _IDS]})


def _csv(_: Path) -> bytes:
    rows = "".join(f'{i},"https://images.example/{i}.jpg"\n' for i in _IDS)
    return f"product_id,image_url\n{rows}".encode()


def _jsonl(_: Path) -> bytes:
    return "".join(f'{{"product_id": "{i}", "image_url": "https://x.example/{i}"}}\n' for i in _IDS).encode()


def _parquet(_: Path) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(_urls(), buffer)
    return buffer.getvalue()


def _read_urls(ending: str, data: bytes, root: Path) -> None:
    from builder.resolve.tables import image_urls

    path = root / f"table{ending}"
    path.write_bytes(data)
    image_urls(str(path), pa.table({"product_id": _IDS, "product_locale": ["us"] * len(_IDS)}))


def _toml(root: Path) -> bytes:
    return (
        f'name = "x"\nversion = "1"\n[esci]\npath = "{root}"\n[fetch]\nconcurrency = 3\n'
        'mirrors = {"https://a.example/" = "http://127.0.0.1:1/"}\n[selection]\nlocales = ["us"]\n'
    ).encode()


def _read_toml(data: bytes, root: Path) -> None:
    from builder import recipe

    (root / "recipe.toml").write_bytes(data)
    recipe.load(root / "recipe.toml")


def _html(_: Path) -> bytes:
    return (
        b'<html><head><meta property="og:image" content="https://i.example/o.jpg"></head><body><img id="landingImage" '
        b'data-old-hires="https://i.example/a.jpg" data-a-dynamic-image=\'{"https://i.example/b.jpg":[500,400]}\' '
        b"src='/c.jpg'><script>var data = {'colorImages': {'initial': [{\"hiRes\":\"https://i.example/d.jpg\"}]}};"
        b"</script></body></html>"
    )


def _read_html(data: bytes, _: Path) -> None:
    from builder.resolve.page_images import is_captcha, main_image

    main_image(data, "https://shop.example/dp/1")
    is_captcha(data, {}, image=None)


def _image(kind: str, _: Path) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


def _read_image(data: bytes, _: Path) -> None:
    from sqid_lib.images import ImageError, decode

    with contextlib.suppress(ImageError):
        decode(data, max_pixels=10_000_000)


def _http(_: Path) -> bytes:
    body = _image("JPEG", _)
    return b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def _read_http(data: bytes, root: Path) -> None:
    from builder.http.client import ACCEPT_IMAGES, Client
    from builder.recipe import FetchSettings

    async def exchange() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await reader.readuntil(b"\r\n\r\n")
                writer.write(data)
                await writer.drain()
            except (ConnectionError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        limits = FetchSettings(allow_hosts=(f"127.0.0.1:{port}",), timeout=2.0, max_bytes=1_000_000)
        async with Client(limits, accept=ACCEPT_IMAGES, spill=root) as client:
            await client.get(f"http://127.0.0.1:{port}/x")
        server.close()

    asyncio.run(exchange())


def _card(root: Path) -> bytes:
    return (root / "release" / "README.md").read_bytes()


def _read_card(data: bytes, root: Path) -> None:
    from builder.validate import validate

    _own_release(root)
    (root / "own" / "README.md").write_bytes(data)
    validate(root / "own")


def _shard(root: Path) -> bytes:
    return _first_shard(root / "release").read_bytes()


def _read_release(data: bytes, root: Path) -> None:
    from builder.validate import validate
    from sqid_lib import EmbeddingStore

    _own_release(root)
    _first_shard(root / "own").write_bytes(data)
    (root / "own" / "SHA256SUMS").unlink(missing_ok=True)
    validate(root / "own")
    store = EmbeddingStore.open(root / "own", cache_dir=root / "cache", progress=False)
    for _ in store.pairs(batch_size=64, format="numpy"):
        pass
    shutil.rmtree(root / "cache")


def _own_release(root: Path) -> None:
    if not (root / "own").exists():
        shutil.copytree(root / "release", root / "own")


def _first_shard(release: Path) -> Path:
    return min((release / "data" / "product_features").glob("*.parquet"))


def _reading(ending: str) -> Callable[[bytes, Path], None]:
    return lambda data, root: _read_urls(ending, data, root)


def _drawing(kind: str) -> Callable[[Path], bytes]:
    return lambda root: _image(kind, root)


KINDS: Mapping[str, tuple[Callable[[Path], bytes], Callable[[bytes, Path], Any]]] = {
    "csv": (_csv, _reading(".csv")),
    "json lines": (_jsonl, _reading(".jsonl")),
    "parquet": (_parquet, _reading(".parquet")),
    "toml": (_toml, _read_toml),
    "html": (_html, _read_html),
    "jpeg": (_drawing("JPEG"), _read_image),
    "png": (_drawing("PNG"), _read_image),
    "webp": (_drawing("WEBP"), _read_image),
    "http": (_http, _read_http),
    "yaml card": (_card, _read_card),
    "release": (_shard, _read_release),
}
