"""Texts to tokens: what is accepted as a text, the tokenizer's rule, and long texts cut before they are tokenized."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sqid_lib.errors import UsageError

Row = dict[str, list[int]]  # the tokens of one text, by the names of the network's inputs
_LONG = 1_000  # characters; shorter texts are tokenized whole
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORD = re.compile(r"[^ \t\n\r]+")  # white space in every tokenizer; others, such as U+001C, are so in some only
# characters that no normalizer removes: a word with one of them is at least one token
_KEPT = re.compile("[0-9A-Za-zÀ-ɏА-я\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3]")
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_PATTERNS = (_CLIP_WORDS, rf"<\|startoftext\|>|<\|endoftext\|>|{_CLIP_WORDS}")
_CLIP_NORMALIZERS = (
    {"type": "NFC"},
    {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
    {"type": "Lowercase"},
)


@dataclass(frozen=True)
class TextRule:
    """How texts become tokens.

    Attributes:
        limit: most tokens of a text, special tokens included; longer texts are truncated.
        fixed: always pad to the limit (SigLIP pools the last position), or only to the longest of a batch.
    """

    limit: int
    fixed: bool


def as_texts(texts: str | Iterable[str]) -> list[str]:
    """The texts as a list, one string as a list of one.

    Raises:
        UsageError: not texts in an order, or an item that is no text; names the item by its number, from 0.
    """
    if isinstance(texts, str):
        texts = [texts]
    if hasattr(texts, "to_pylist"):  # of pyarrow
        texts = texts.to_pylist()
    if isinstance(texts, (bytes, Mapping, Set)) or not isinstance(texts, Iterable):
        raise UsageError("cannot be encoded", where="texts", expected="a list of strings", got=type(texts).__name__)
    found = list(texts)
    for row, text in enumerate(found):
        if not isinstance(text, str):
            raise UsageError(
                "not a text",
                where=f"texts[{row}]",
                expected="str",
                got=repr(text)[:40] if text is None or isinstance(text, (int, float)) else type(text).__name__,
                fix='Where there is no text, use "" or leave the row out.',
            )
        if not text.isascii() and (lone := _SURROGATE.search(text)):
            raise UsageError(
                "not valid Unicode",
                where=f"texts[{row}]",
                got=f"the surrogate U+{ord(lone[0]):04X} at character {lone.start()}",
                fix='Repair it with text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").',
            )
    return found


class Tokens:
    """The tokenizer of one model.

    Args:
        tokenizer: of transformers.
        rule: limit and padding.
    """

    def __init__(self, tokenizer: Any, rule: TextRule) -> None:
        self._tokenizer, self._rule = tokenizer, rule
        self._may_cut = splits_at_spaces(tokenizer)

    def rows(self, texts: Sequence[str]) -> list[Row]:
        """The tokens of each text, truncated to the limit."""
        if not texts:
            return []
        columns = self._tokenizer(
            [cut(text, self._rule.limit) for text in texts] if self._may_cut else list(texts),
            truncation=True,
            max_length=self._rule.limit,
            padding="max_length" if self._rule.fixed else False,
        )
        return [{name: column[row] for name, column in columns.items()} for row in range(len(texts))]

    def length(self, row: Row) -> int:
        """Tokens of one text."""
        return len(row["input_ids"])

    def inputs(self, rows: Sequence[Row]) -> dict[str, NDArray[np.int64]]:
        """The network's inputs for some rows, padded to the longest; each [B, T]."""
        length = max(len(row["input_ids"]) for row in rows)
        pads = {"input_ids": self._tokenizer.pad_token_id or 0, "token_type_ids": self._tokenizer.pad_token_type_id}
        left = self._tokenizer.padding_side == "left"
        inputs = {}
        for name in rows[0]:
            inputs[name] = np.full((len(rows), length), pads.get(name, 0), np.int64)
            for number, row in enumerate(rows):
                ids = row[name]
                inputs[name][number, length - len(ids) if left else 0 :][: len(ids)] = ids
        return inputs


def cut(text: str, limit: int) -> str:
    """The beginning of a long text that holds its first `limit` tokens, for a tokenizer that `splits_at_spaces`.

    It ends before white space, where words end in the whole text as well, after `limit` words of at least one token.
    """
    if len(text) <= _LONG:
        return text
    words = 0
    for word in _WORD.finditer(text):
        words += _KEPT.search(text, word.start(), word.end()) is not None
        if words == limit:
            return text[: word.end()]
    return text


def splits_at_spaces(tokenizer: Any) -> bool:
    """Whether words that a space, tab or line break separates become tokens independently of each other.

    True for the pipelines of CLIP and BERT, which were looked at; in others, such as SentencePiece, a token may hold
    parts of two words.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.truncation_side != "right":
        return False
    if any(re.search(r"\s", token) for token in tokenizer.get_added_vocab()):
        return False
    normalizer, splitter = _state(backend.normalizer), _state(backend.pre_tokenizer)
    steps = normalizer.get("normalizers", [normalizer] if normalizer else [])
    if any(step not in _CLIP_NORMALIZERS and step["type"] != "BertNormalizer" for step in steps):
        return False
    first = splitter.get("pretokenizers", [splitter])[0]
    if first.get("type") == "Split":
        return first["pattern"].get("Regex") in _CLIP_PATTERNS and first["behavior"] == "Removed" and first["invert"]
    return first.get("type") in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")


def _state(part: Any) -> dict[str, Any]:
    """A part of a tokenizer's pipeline as tokenizer.json has it; {} where there is none."""
    found: dict[str, Any] = json.loads(part.__getstate__()) if part is not None else {}
    return found
