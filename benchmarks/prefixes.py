"""What share of the tokens of real titles an encoder would save by sharing equal prefixes:

    python benchmarks/prefixes.py PRODUCTS_PARQUET CLIP_DIRECTORY

In a causal text tower the states of equal prefixes are equal. Counted are the tokens of all distinct titles, and the
nodes of the tree of their prefixes: the most that could be saved, over all titles and within batches of 512 tokens of
titles next to each other in the alphabet.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pyarrow.parquet as pq
from transformers import AutoTokenizer


def share(rows: Sequence[Sequence[int]]) -> float:
    """The share of tokens that are in a prefix of an earlier row."""
    return 1 - nodes(rows) / sum(map(len, rows))


def nodes(rows: Sequence[Sequence[int]]) -> int:
    return len({tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("products")
    parser.add_argument("model")
    args = parser.parse_args()
    titles = sorted({t for t in pq.read_table(args.products)["product_title"].to_pylist() if t})
    rows = AutoTokenizer.from_pretrained(args.model)(titles, truncation=True, max_length=77)["input_ids"]
    tokens = sum(map(len, rows))
    print(f"{len(titles):,} distinct titles, {tokens:,} tokens, {tokens / len(titles):.1f} a title")
    print(f"in prefixes of other titles: {share(rows):.1%} of the tokens, the start token included")
    batches: list[list[list[int]]] = [[]]
    for row in sorted(rows):
        if sum(map(len, batches[-1])) + len(row) > 512:
            batches.append([])
        batches[-1].append(row)
    left = sum(nodes(batch) for batch in batches)
    print(f"within {len(batches):,} batches of 512 tokens in the order of the alphabet: {1 - left / tokens:.1%}")


if __name__ == "__main__":
    main()
