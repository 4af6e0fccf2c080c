"""sqid_lib.encoders.texts: what is a text, and long texts that are cut with nothing lost."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers")

from encoder_families import write_family
from encoder_fixtures import write_clip

from sqid_lib.encoders import Encoder, load_encoder
from sqid_lib.encoders.texts import cut, splits_at_spaces
from sqid_lib.errors import UsageError

TEXTS = ["red shoes", "", "oak lamp", "red shoes"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load_encoder(str(write_clip(tmp_path_factory.mktemp("clip"))), device="cpu")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizers")
    write_clip(folder / "clip")
    for family in ("siglip", "siglip2", "chinese_clip"):
        write_family(folder / family, family)
    return {each.name: AutoTokenizer.from_pretrained(each) for each in folder.iterdir()}


# -- what is a text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given_as",
    [
        tuple,
        iter,
        lambda texts: (text for text in texts),
        np.array,
        pd.Series,
        pa.array,
        lambda t: pa.chunked_array([t]),
    ],
)
def test_every_kind_of_list_gives_the_same_vectors(encoder: Encoder, given_as: Any) -> None:
    assert np.array_equal(encoder.encode_text(given_as(TEXTS)), encoder.encode_text(TEXTS))
    batches = encoder.text_batches(given_as(TEXTS))
    assert sorted(row for rows in batches.rows for row in rows) == [0, 1, 2, 3]


def test_one_string_is_one_text(encoder: Encoder) -> None:
    assert encoder.encode_text("red shoes").shape == (1, 32)
    assert np.array_equal(encoder.encode_text("red shoes"), encoder.encode_text(["red shoes"]))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (None, r"texts\[2\]: not a text; expected str, got None\. Where there is no text, use"),
        (float("nan"), r"texts\[2\]: not a text; expected str, got nan"),
        (12, r"texts\[2\]: not a text; expected str, got 12"),
        (b"red", r"texts\[2\]: not a text; expected str, got bytes"),
        (["red"], r"texts\[2\]: not a text; expected str, got list"),
        ("shoe \ud83d", r"texts\[2\]: not valid Unicode; got the surrogate U\+D83D at character 5\. Repair"),
        ("\udc00", r"texts\[2\]: not valid Unicode; got the surrogate U\+DC00 at character 0"),
    ],
)
def test_what_is_no_text_is_refused_by_its_number(encoder: Encoder, item: Any, message: str) -> None:
    for encode in (encoder.encode_text, encoder.text_batches):
        with pytest.raises(UsageError, match=message):
            encode(["red", "blue", item])


@pytest.mark.parametrize("texts", [None, 3, b"red", {"red": 1}, {"red"}])
def test_what_is_no_list_of_texts_is_refused(encoder: Encoder, texts: Any) -> None:
    with pytest.raises(
        UsageError, match=f"texts: cannot be encoded; expected a list of strings, got {type(texts).__name__}"
    ):
        encoder.encode_text(texts)


def test_the_repair_that_the_message_names_works(encoder: Encoder) -> None:
    with pytest.raises(UsageError) as refused:
        encoder.encode_text("a\ud83d\ude00b\ud800")
    repair = re.search(r"with (text\.encode\(.*\))\.$", str(refused.value))
    assert repair
    repaired = eval(repair[1], {"text": "a\ud83d\ude00b\ud800"})
    assert repaired == "a😀b\ufffd"
    assert encoder.encode_text(repaired).shape == (1, 32)


# -- long texts --------------------------------------------------------------------------------------------------------

PIECES = [
    *(" ", "  ", "\t", "\n", "\r\n", "\x0b", "\x1c", "\x85", "\xa0", "\u2028", "\u200b", "\u3000", "\x00", "\ufeff"),
    *("red", "shoes ", "A", "7", "½", "'s", "'", "!", "_", "-", "&#34;", "“", "，", "ß", "Σ", "İ", "ﬁ", "\ufffd"),
    *(
        "é",
        "e\u0301",
        "\u0301",
        "\u0338",
        "\u0344",
        "靴",
        "赤い",
        "각",
        "ᄀ",
        "ᅡ",
        "क्",
        "ำ",
        "👟",
        "👩\u200d👧",
        "\U0001f3fb",
    ),
    *("<|endoftext|>", "<|startoftext|>", "<|end", "[SEP]", "[UNK]", "</s>", "##s", "\u0378"),
]
HOSTILE = st.lists(
    st.builds(lambda piece, times: piece * times, st.sampled_from(PIECES), st.integers(1, 9)), max_size=60
)


@settings(max_examples=400, deadline=None)
@given(HOSTILE.map("".join), st.sampled_from(["clip", "chinese_clip", "siglip"]), st.sampled_from([3, 4, 9, 16, 77]))
def test_the_tokens_of_a_cut_text_are_those_of_the_whole(
    tokenizers: dict[str, Any], text: str, family: str, limit: int
) -> None:
    from sqid_lib.encoders import texts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "_LONG", 0)
        shorter = cut(text, limit)
    assert text.startswith(shorter)
    whole, part = (tokenizers[family](each, truncation=True, max_length=limit) for each in (text, shorter))
    assert dict(whole) == dict(part)


def test_which_tokenizers_keep_words_apart(tokenizers: dict[str, Any]) -> None:
    found = {name: splits_at_spaces(tokenizer) for name, tokenizer in tokenizers.items()}
    assert found == {"clip": True, "chinese_clip": True, "siglip": True, "siglip2": False}
    tokenizers["clip"].truncation_side = "left"
    assert not splits_at_spaces(tokenizers["clip"])
    tokenizers["clip"].truncation_side = "right"


def test_a_token_that_holds_a_space_forbids_to_cut(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(write_clip(tmp_path))
    tokenizer.add_tokens(["oak lamp"])
    assert not splits_at_spaces(tokenizer)


def test_a_text_of_a_megabyte_is_cut_before_it_is_tokenized(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "oak lamp " * 100_000
    whole = encoder.encode_text(" ".join(text.split()[:200]))
    seen: list[int] = []
    tokens: Any = encoder._tokens
    tokenizer = tokens._tokenizer

    def counting(texts: list[str], **options: Any) -> Any:
        seen.extend(len(each) for each in texts)
        return tokenizer(texts, **options)

    monkeypatch.setattr(tokens, "_tokenizer", counting)
    monkeypatch.setattr(tokens, "inputs", type(tokens)(tokenizer, tokens._rule).inputs)
    assert np.array_equal(encoder.encode_text(text), whole)
    assert seen == [len("oak lamp ") * 38 + len("oak")]  # 77 words


@pytest.mark.parametrize("text", [" " * 50_000 + "red", "靴" * 5_000, "! " * 3_000, "\u0301" * 5_000, "👟 " * 3_000])
def test_long_texts_without_words_are_encoded_whole(encoder: Encoder, text: str) -> None:
    assert cut(text, 77) == text
    assert np.isfinite(encoder.encode_text(text)).all()
