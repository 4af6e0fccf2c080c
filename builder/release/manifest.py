"""manifest.json and SHA256SUMS: what a release was made from, and what its files are."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
import pyarrow.parquet as pq

from builder.release.statistics import Statistics
from sqid_lib import schemas
from sqid_lib.errors import CorruptFileError, MissingFileError
from sqid_lib.files import sha256, write_text

if TYPE_CHECKING:
    from builder.recipe import Recipe

FORMAT = 1
PACKAGES = ("sqid", "datasets", "huggingface_hub", "pyarrow", "numpy", "torch", "transformers", "pillow")
_MAX_BYTES = 64_000_000  # of a manifest or a list of checksums; real ones have a few kilobytes
_ESCI = "amazon-science/esci-data"  # the repository of the official files
_MAX_GAIN = 3.4e38  # of a float32


@dataclass(frozen=True)
class ReleaseFile:
    """One file: its size in bytes, its sha256 in hex, its rows (None if it is not a table)."""

    bytes: int
    sha256: str
    rows: int | None


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
        name, version: of the recipe.
        recipe: all its settings, without what is private to a machine or a person.
        model, revision: the encoder, and the commit its weights came from (None for a local directory).
        width: floats in a vector.
        versions: of Python packages.
        counts: products, queries, judgments, supp → distinct keys.
        files: path within the release → file; all but manifest.json and SHA256SUMS.
        kept: name → type of the columns that a catalogue has beside the declared ones.
    """

    name: str
    version: str
    recipe: Mapping[str, Any]
    model: str
    revision: str | None
    width: int
    versions: Mapping[str, str]
    counts: Mapping[str, int]
    files: Mapping[str, ReleaseFile]
    kept: Mapping[str, str] = field(default_factory=dict)

    @property
    def of_catalogue(self) -> bool:
        """Whether the data is a shop's own catalogue."""
        return isinstance(self.recipe.get("catalogue"), dict)

    @property
    def kept_fields(self) -> tuple[pa.Field, ...]:
        """`kept` as Arrow fields."""
        return tuple(pa.field(name, schemas.KEPT_TYPES[dtype]) for name, dtype in self.kept.items())

    @property
    def card(self) -> Mapping[str, Any]:
        """What the recipe states for the card; nothing in releases of earlier versions."""
        return self.recipe.get("card") or {}

    @property
    def gains(self) -> dict[str, float]:
        """Label → gain as the recipe states them; where it states none, ESCI's, or none for a catalogue."""
        stated = self.recipe.get("selection", {}).get("labels") or ({} if self.of_catalogue else schemas.GAINS)
        return {label: float(gain) for label, gain in stated.items()}

    @property
    def made_here(self) -> bool:
        """Whether the build made the vectors; otherwise the recipe named existing files."""
        return self.recipe.get("artifacts") is None

    @property
    def partial(self) -> bool:
        """Whether text vectors may be zeros: those that existing files lack, unless the recipe refuses that."""
        artifacts = self.recipe.get("artifacts")
        return isinstance(artifacts, dict) and artifacts.get("partial") is not False

    @property
    def of_esci(self) -> bool:
        """Whether the data claims to be ESCI itself, not a catalogue or files of somebody in its layout."""
        return not self.of_catalogue and (self.name == "sqid" or _ESCI in str(self.recipe.get("esci")))

    @property
    def locales(self) -> tuple[str, ...]:
        """Product locales as the recipe states them; us where it states none."""
        return tuple(self.recipe.get("selection", {}).get("locales") or (schemas.CLASSIC_LOCALE,))


def write(release: Path, recipe: Recipe, statistics: Statistics, *, revision: str | None) -> Manifest:
    """Write manifest.json and SHA256SUMS for the files now in `release`; the same files give the same bytes.

    Args:
        statistics: those of the data files.
        revision: resolved commit of the encoder's model.

    Raises:
        CorruptFileError: a parquet file of the release cannot be read.
    """
    settings = public(recipe.to_dict())
    del settings["engine"]  # it changes nothing of a release
    settings["selection"]["labels"] = recipe.selection.gains  # a table; `public` would drop some names from it
    settings["card"] = recipe.card.model_dump(mode="json")  # texts to be published as they are
    kept: tuple[pa.Field, ...] = ()
    if recipe.catalogue:
        settings["catalogue"] |= {"labels": dict(recipe.catalogue.labels), "columns": dict(recipe.catalogue.columns)}
        kept = schemas.kept_columns(schemas.DEFAULT_CONFIG, statistics.columns[schemas.DEFAULT_CONFIG])
    manifest = Manifest(
        name=recipe.name,
        version=recipe.version,
        recipe=settings,
        model=public(recipe.encoder.model),
        revision=revision,
        width=statistics.width,
        versions=versions(),
        counts=statistics.counts,
        files={name: _describe(release / name) for name in listing(release)},
        kept={field.name: schemas.type_name(field.type) for field in kept},
    )
    values = {key: value for key, value in asdict(manifest).items() if key != "kept" or value}
    text = json.dumps({"format": FORMAT, **values}, indent=2, ensure_ascii=False)
    write_text(release / schemas.MANIFEST, text + "\n")
    sums = {name: file.sha256 for name, file in manifest.files.items()}
    sums[schemas.MANIFEST] = sha256(release / schemas.MANIFEST)
    write_text(release / schemas.SHA256SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
    return manifest


def read(release: Path) -> Manifest:
    """Read manifest.json back.

    Raises:
        MissingFileError: there is no manifest.json.
        CorruptFileError: not JSON, another format, a key missing or of another type, a path that leaves the release.
    """
    path = release / schemas.MANIFEST
    try:
        values = json.loads(_text(path))
        if values.pop("format") != FORMAT:
            raise ValueError(f"format is not {FORMAT}")
        files = {name: ReleaseFile(**file) for name, file in values.pop("files").items()}
        manifest = Manifest(**values, files=files)
        _check(manifest)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        raise CorruptFileError(
            f"not a manifest of a release ({reason[:200]})", where=path, fix="Build the release again."
        ) from error
    return manifest


def read_sums(release: Path) -> dict[str, str]:
    """Path within the release → sha256 in hex, as SHA256SUMS states them.

    Raises:
        MissingFileError: there is no SHA256SUMS.
        CorruptFileError: a line that sha256sum -c would not read, a name twice, or a path that leaves the release.
    """
    path = release / schemas.SHA256SUMS
    sums: dict[str, str] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line)
        if not match or match[2] in sums or not inside(match[2]):
            raise CorruptFileError(
                "bad line", where=f"{path}:{number}", expected="sha256, two spaces, a path, once", got=repr(line[:120])
            )
        sums[match[2]] = match[1]
    return sums


def listing(release: Path) -> list[str]:
    """Sorted paths within the release that a manifest lists: no hidden files, manifest.json or SHA256SUMS."""
    paths = (p.relative_to(release) for p in release.rglob("*") if p.is_file())
    names = {p.as_posix() for p in paths if not any(part.startswith(".") for part in p.parts)}
    return sorted(names - {schemas.MANIFEST, schemas.SHA256SUMS})


def versions() -> dict[str, str]:
    """Versions of the packages that decide the bytes of a release, where they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def public(value: Any) -> Any:
    """The same settings without what is private to a machine or a person.

    Only the last part of a local path stays. URLs lose passwords and queries. Mirrors, hosts, contacts and devices are
    left out.
    """
    if isinstance(value, Mapping):
        private = ("mirrors", "allow_hosts", "trust_env", "contact", "device")
        return {key: public(item) for key, item in value.items() if key not in private}
    if isinstance(value, list | tuple):
        return [public(item) for item in value]
    if not isinstance(value, str):
        return value
    if "://" in value:
        url = urlsplit(value)
        return urlunsplit((url.scheme, url.netloc.rpartition("@")[2], url.path, "", ""))
    for flavour in (PurePosixPath(value), PureWindowsPath(value)):
        if flavour.is_absolute():
            return flavour.name
    return value


def inside(name: str) -> bool:
    """Whether a path is relative and stays inside the release."""
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name
    return bool(name) and plain and not path.is_absolute() and ".." not in path.parts


def _describe(path: Path) -> ReleaseFile:
    return ReleaseFile(bytes=path.stat().st_size, sha256=sha256(path), rows=_rows(path))


def _rows(path: Path) -> int | None:
    if path.suffix == ".parquet":
        try:
            return int(pq.read_metadata(path).num_rows)
        except (pa.ArrowInvalid, OSError) as error:
            raise CorruptFileError(f"not a parquet file ({error})", where=path) from error
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            return sum(1 for _ in csv.reader(file)) - 1
    return None


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise CorruptFileError("too large", where=path, expected=f"at most {_MAX_BYTES} bytes")
        return data.decode("utf-8")
    except FileNotFoundError as error:
        raise MissingFileError(
            "no such file", where=path, fix="Is this a release? Build one with: sqid build."
        ) from error
    except (UnicodeDecodeError, OSError) as error:
        raise CorruptFileError(f"cannot be read ({error})", where=path) from error


def _check(manifest: Manifest) -> None:
    """ValueError unless the values have the types their class declares."""
    for problem in _wrong(manifest):
        raise ValueError(problem)


def _wrong(manifest: Manifest) -> Iterator[str]:
    for key in ("name", "version", "model"):
        if not isinstance(getattr(manifest, key), str):
            yield f"{key} is not text"
    if not isinstance(manifest.revision, str | None):
        yield "revision is not text"
    for key in ("recipe", "versions", "counts", "kept"):
        if not isinstance(getattr(manifest, key), dict):
            yield f"{key} is not an object"
    if not all(type(n) is int for n in (manifest.width, *manifest.counts.values())):
        yield "width or a count is not a whole number"
    yield from _wrong_selection(manifest.recipe.get("selection", {}))
    yield from _wrong_card(manifest.recipe.get("card"))
    declared = {name for config in schemas.CARRYING for name in schemas.DECLARED[config].names}
    for name, dtype in manifest.kept.items():
        if name in declared or not isinstance(dtype, str) or dtype not in schemas.KEPT_TYPES:
            yield f"kept states a column {name!r} that a catalogue cannot keep"
    for name, file in manifest.files.items():
        if not inside(name):
            yield f"the path {name!r} leaves the release"
        if type(file.bytes) is not int or not isinstance(file.sha256, str) or not isinstance(file.rows, int | None):
            yield f"{name}: bytes, sha256 or rows has another type"


def _wrong_card(card: Any) -> Iterator[str]:
    """What validation reads of [card]: texts, and the lists licence and language."""
    if card is None:
        return
    if not isinstance(card, dict):
        yield "recipe.card is not an object"
        return
    for key in ("licence", "language"):
        value = card.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            yield f"recipe.card.{key} is not a list of texts"
    if not isinstance(card.get("title", ""), str):
        yield "recipe.card.title is not text"


def _wrong_selection(selection: Any) -> Iterator[str]:
    """What validation reads from the recipe: locales and labels."""
    if not isinstance(selection, dict):
        yield "recipe.selection is not an object"
        return
    locales, labels = selection.get("locales") or [], selection.get("labels") or {}
    if not isinstance(locales, list) or not all(isinstance(locale, str) for locale in locales):
        yield "recipe.selection.locales is not a list of texts"
    if not isinstance(labels, dict) or not all(
        type(gain) in (int, float) and 0 <= gain <= _MAX_GAIN for gain in labels.values()
    ):
        yield "recipe.selection.labels is not a table of label = gain, with gains >= 0"
