"""The result of comparing two releases, as text for a changelog and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from builder.diff.rows import RowsDiff
from builder.diff.vectors import VectorsDiff

Interval: TypeAlias = tuple[float, float, float]  # the value, and the ends of its 95 % interval
_LONGEST = 80  # characters of a value in the text
_ROUNDING = 1e-6  # of a cosine: vectors nearer than this were computed in another order


@dataclass(frozen=True)
class Setting:
    """Something the releases were made from that changed; None where one of them does not state it."""

    key: str
    before: Any
    after: Any


@dataclass(frozen=True)
class Ndcg:
    """nDCG of a ranking method in each release, on its own judgments; None where it has none."""

    method: str
    before: Interval | None
    after: Interval | None


@dataclass(frozen=True)
class Difference:
    """What changed between two releases.

    Attributes:
        before, after: what was compared: name, version and address.
        settings: what differs in the manifests: version, model, recipe, packages.
        rows: "products", "supplementary products", "queries", "judgments" → their changes, where both have them.
        statuses: "products", "supplementary products" → image_status → rows before and after.
        vectors: changes of vectors; none where they cannot be compared.
        ndcg: of clip_text, clip_image and fusion.
        notes: what could not be compared, and why.
    """

    before: str
    after: str
    settings: tuple[Setting, ...]
    rows: Mapping[str, RowsDiff]
    statuses: Mapping[str, Mapping[str, tuple[int, int]]]
    vectors: tuple[VectorsDiff, ...]
    ndcg: tuple[Ndcg, ...]
    notes: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether nothing that was compared differs."""
        parts: list[RowsDiff | VectorsDiff] = [*self.rows.values(), *self.vectors]
        return not self.settings and all(part.same for part in parts)

    def to_json(self) -> str:
        """The fields as one object, with "same"."""
        return json.dumps({"same": self.same, **asdict(self)}, indent=2, ensure_ascii=False, default=str)

    def __str__(self) -> str:
        """Markdown: a section for each part that changed."""
        lines = [f"# {self.before} → {self.after}"]
        if self.same:
            lines += ["", "no differences"]
        else:
            sections = (self._settings(), *self._rows(), *self._statuses(), self._vectors(), self._ndcg())
            for title, body in sections:
                if body:
                    lines += ["", f"## {title}", "", *body]
        if self.notes:
            lines += ["", "## Not compared", "", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines)

    def _settings(self) -> tuple[str, list[str]]:
        lines = [f"- {s.key}: {_shown(s.before)} → {_shown(s.after)}" for s in self.settings]
        return "Made from", lines

    def _rows(self) -> Iterator[tuple[str, list[str]]]:
        for name, rows in self.rows.items():
            lines = []
            for verb, keys in (("added", rows.added), ("removed", rows.removed)):
                if keys.count:
                    lines.append(f"- {keys.count:,} {verb}: {_listed(keys.examples, keys.count)}")
            for verb, columns in (("new", rows.new_columns), ("lost", rows.lost_columns)):
                if columns:
                    lines.append(f"- {verb} columns: {', '.join(columns)}")
            for column, changed in rows.changed.items():
                lines.append(f"- {column}: {changed.count:,} changed")
                lines += [f"  - {c.key}: {_shown(c.before)} → {_shown(c.after)}" for c in changed.examples]
            yield f"{name.capitalize()}: {rows.before:,} → {rows.after:,}", lines

    def _statuses(self) -> Iterator[tuple[str, list[str]]]:
        for name, counts in self.statuses.items():
            if any(old != new for old, new in counts.values()):
                table = _table(("image_status", "before", "after"))
                table += [f"| {status} | {old:,} | {new:,} |" for status, (old, new) in counts.items()]
                yield f"Images of {name}", table

    def _vectors(self) -> tuple[str, list[str]]:
        lines = []
        for part in self.vectors:
            if part.changed and part.median is not None and part.minimum is not None:
                line = (
                    f"- {part.name}: {part.changed:,} of {part.compared:,} changed; cosine of those: median "
                    f"{part.median:.6f}, minimum {part.minimum:.6f}"
                )
                far = [f"{key} {cosine:.6f}" for key, cosine in part.worst if cosine < 1 - _ROUNDING]
                lines.append(f"{line}; moved most: {', '.join(far)}" if far else f"{line} (rounding, or length alone)")
            if part.gained or part.lost:
                lines.append(f"- {part.name}: {part.gained:,} gained a vector, {part.lost:,} lost it")
        return "Vectors", lines

    def _ndcg(self) -> tuple[str, list[str]]:
        rows = [f"| {row.method} | {_interval(row.before)} | {_interval(row.after)} |" for row in self.ndcg]
        title = "nDCG (95 % interval), each on its own judgments"
        return title, [*_table(("method", "before", "after")), *rows] if rows else []


def _table(header: tuple[str, ...]) -> list[str]:
    return [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]


def _interval(value: Interval | None) -> str:
    return "-" if value is None else f"{value[0]:.4f} ({value[1]:.4f}–{value[2]:.4f})"


def _listed(examples: tuple[str, ...], count: int) -> str:
    return ", ".join(map(_plain, examples)) + (", …" if count > len(examples) else "")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    text = f"{value:.6g}" if isinstance(value, float) else _plain(str(value))
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    return f'"{text}"' if isinstance(value, str) else text


def _plain(text: str) -> str:
    """On one line, without control characters: texts are untrusted."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
