"""How many titles get other tokens from open_clip than from transformers, which cleans texts less.

    python benchmarks/open_clip_texts.py PRODUCTS.parquet openai/clip-vit-large-patch14

Needs ftfy, as open_clip does. Only open_clip's cleaning is imitated; its vocabulary and its rule of words are CLIP's.
"""

from __future__ import annotations

import argparse
import html
import importlib
import re
from collections import Counter

import pyarrow.parquet as pq
import transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("products", help="ESCI's products file")
    parser.add_argument("model", help="Hub id or folder of a CLIP; only its tokenizer is read")
    parser.add_argument("--column", default="product_title")
    parser.add_argument("--show", type=int, default=3, metavar="N", help="examples of each cause")
    args = parser.parse_args()
    texts = [text for text in pq.read_table(args.products, columns=[args.column])[0].to_pylist() if text]
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    ours, theirs = (
        tokenizer(each, truncation=True, max_length=tokenizer.model_max_length)["input_ids"]
        for each in (texts, [cleaned(text) for text in texts])
    )
    differ = [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]
    print(f"{len(differ)} of {len(texts)} texts ({len(differ) / len(texts):.2%}) get other tokens")
    causes = Counter(cause(text) for text in differ)
    for name, count in causes.most_common():
        print(f"  {count:5}  {name}")
        for text in [text for text in differ if cause(text) == name][: args.show]:
            print(f"           {text[:110]!r}")


def _fix_text(text: str) -> str:
    fixed: str = importlib.import_module("ftfy").fix_text(text)
    return fixed


def cleaned(text: str) -> str:
    """What open_clip's tokenizer does to a text before it splits it into tokens."""
    text = html.unescape(html.unescape(_fix_text(text))).strip()
    return re.sub(r"\s+", " ", text).strip().lower()


def cause(text: str) -> str:
    """The first difference that explains it."""
    if html.unescape(text) != text:
        return "HTML entities"
    if _fix_text(text) == text:
        return "other"
    if re.search("[‘’“”‚„‛‟ʼ]", text):
        return "curly quotes"
    if re.search("[\uff01-\uff60\uffe0-\uffee\u3000]", text):
        return "full-width characters"
    if re.search("[ﬀ-ﬆ]", text):
        return "ligatures"
    if re.search("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]", text):
        return "control characters"
    return "wrongly decoded text, and other repairs of ftfy"


if __name__ == "__main__":
    main()
