"""Encoding with CLIP, against the usual way to write it, on seeded weights: python benchmarks/embed.py --help.

Rounds are interleaved, and every figure is a ratio within one round: median (lowest to highest). Weights are random,
made from the published config: speed does not depend on them. Real titles need CLIP's vocabulary, which open_clip_torch
carries (pip install --no-deps open_clip_torch), or --model; made-up ones do without.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import io
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import numpy as np
from goals import state
from PIL import Image

from sqid_lib.encoders import Encoder, load_encoder, pooled
from sqid_lib.encoders.batching import VectorBatches, in_batches
from sqid_lib.encoders.pixels import Pixels
from sqid_lib.images import decode

# hidden, intermediate, layers, heads of text and vision; patch; projection width: configs of openai/clip-vit-*
ARCHITECTURES = {
    "B/32": ((512, 2048, 12, 8), (768, 3072, 12, 12), 32, 512),
    "L/14": ((768, 3072, 12, 12), (1024, 4096, 24, 16), 14, 768),
}
OFFICIAL_IMAGES, OFFICIAL_TEXTS = 164_900, 174_000
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
WHOLE = "forward only, whole last layer"
START, END = "<|startoftext|>", "<|endoftext|>"
SENTENCE = "women's running shoes stainless steel 12-pack kitchen (black) memory foam USB-C 3.5oz for and with set of"


def main() -> None:
    """Run what the arguments ask for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=ARCHITECTURES, default="B/32")
    parser.add_argument("--model", help="a CLIP directory or Hub id instead of seeded weights")
    parser.add_argument("--titles", type=Path, help="parquet file with a column product_title; default: made-up titles")
    parser.add_argument("--texts", type=int, default=1024, help="titles per round; 0: no texts")
    parser.add_argument("--images", type=int, default=32, help="images per round; 0: no images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: its default")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a machine that others load, 1 thread")
    parser.add_argument("--plain", action="store_true", help="torch's own linear layers")
    parser.add_argument("--others", action="store_true", help="also sentence-transformers' own loop")
    parser.add_argument("--quick", action="store_true", help="B/32, three rounds of 96 texts and 16 images")
    args = parser.parse_args()
    if args.quick:
        args.texts, args.images, args.rounds = 96, 16, 3
    import torch

    now[0] = CLOCKS[args.clock]
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.model or str(write_seeded_clip(Path(scratch) / "clip", args.arch, args.titles is not None))
        print(
            f"# {args.model or args.arch}, {args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        )
        if args.device.startswith("cuda"):
            return on_gpu(folder, args.device, args.images, args.rounds)
        naive = Naive(folder, args.device)
        linear = "plain" if args.plain else "auto"
        encoder = load_encoder(folder, device=args.device, linear=linear)
        print(f"linear layers: {encoder.linear}; {args.clock} seconds")
        rates = {}
        if args.texts:
            rates["text"] = compare_texts(naive, encoder, titles(args.titles, args.texts * args.rounds), args)
        if args.images:
            rates["image"] = compare_images(naive, encoder, with_whole_layers(folder, args.device, linear), args)
        report_official_run(rates)
    return None


def with_whole_layers(folder: str, device: str, linear: str) -> Encoder:
    """The encoder with the last layer computed for every row, as it was before `encoders.pooled`."""
    with patch.object(pooled, "pool_last_layers", lambda _: False):
        return load_encoder(folder, device=device, linear=linear)


class Naive:
    """CLIPModel and CLIPProcessor inside `Dataset.map`, as most code does it."""

    def __init__(self, folder: str, device: str) -> None:
        from transformers import CLIPModel, CLIPProcessor

        self.model = CLIPModel.from_pretrained(folder).eval().to(device)
        self.processor, self.device = CLIPProcessor.from_pretrained(folder), device

    def texts(self, texts: Sequence[str], batch: int = 64) -> np.ndarray:
        def encode(rows: dict[str, list[str]]) -> dict[str, Any]:
            inputs = self.processor(text=rows["text"], padding=True, truncation=True, return_tensors="pt")
            return {"vector": self.features(self.model.get_text_features, inputs)}

        return self.map({"text": list(texts)}, encode, batch)

    def images(self, files: Sequence[bytes], batch: int = 64) -> np.ndarray:
        def encode(rows: dict[str, list[bytes]]) -> dict[str, Any]:
            images = [Image.open(io.BytesIO(data)) for data in rows["image"]]
            return {
                "vector": self.features(
                    self.model.get_image_features, self.processor(images=images, return_tensors="pt")
                )
            }

        return self.map({"image": list(files)}, encode, batch)

    def features(self, method: Callable[..., Any], inputs: Any) -> np.ndarray:
        import torch

        with torch.no_grad():
            vectors: np.ndarray = method(**inputs.to(self.device)).pooler_output.cpu().numpy()
        return vectors

    @staticmethod
    def map(columns: dict[str, list[Any]], encode: Callable[..., Any], batch: int) -> np.ndarray:
        import datasets

        datasets.disable_progress_bars()
        made = datasets.Dataset.from_dict(columns)
        mapped = made.map(encode, batched=True, batch_size=batch, new_fingerprint=str(time.time_ns()))
        return np.array(mapped.with_format("numpy")["vector"])


def compare_texts(naive: Naive, encoder: Encoder, every: list[str], args: argparse.Namespace) -> float:
    """Print ratios to the naive map; returns texts per second of ours."""
    lengths = [len(tokens["input_ids"]) for tokens in encoder._tokens.rows(every)]
    print(f"{len(every)} titles, {statistics.mean(lengths):.1f} tokens on average, {max(lengths)} at most")
    runs: dict[str, Callable[[list[str]], np.ndarray]] = {
        "naive map": naive.texts,
        "ours": lambda texts: through_map(encoder.text_batches(texts), len(texts), encoder.width),
        "ours, forward only": lambda texts: forward_only(encoder, texts),
    }
    if args.others:
        runs["sentence-transformers"] = sentence_transformers(naive)
    rounds = [every[start : start + args.texts] for start in range(0, len(every), args.texts)]
    return compare("text", runs, rounds, args.arch)


def compare_images(naive: Naive, encoder: Encoder, whole: Encoder, args: argparse.Namespace) -> float:
    """Print ratios to the naive map; returns images per second of ours."""
    every = list(make_images(args.images * args.rounds))
    print(f"{len(every)} JPEG images of 500 × 500, {statistics.mean(map(len, every)) / 1000:.0f} kB on average")

    def ours(some: list[bytes]) -> np.ndarray:
        rows = list(in_batches(range(len(some)), encoder.image_batch))
        return through_map(VectorBatches(rows, encoder.image_batches(some, decode=decode)), len(some), encoder.width)

    runs: dict[str, Callable[[list[bytes]], np.ndarray]] = {
        "naive map": naive.images,
        "ours": ours,
        "ours, forward only": lambda batch: forward_only_images(encoder, batch),
        WHOLE: lambda batch: forward_only_images(whole, batch),
    }
    rounds = [every[start : start + args.images] for start in range(0, len(every), args.images)]
    rate = compare("image", runs, rounds, args.arch)
    report_profile(encoder, every[:16])
    return rate


def compare(unit: str, runs: dict[str, Callable[[Any], np.ndarray]], rounds: list[list[Any]], arch: str) -> float:
    """Run all on each round's inputs, in turns; "forward only" runs report their own seconds."""
    for run in runs.values():
        run(rounds[0][:2])  # warm up
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    worst = 0.0
    for inputs in rounds:
        vectors = {}
        for name, run in runs.items():
            with timed(seconds[name]):
                vectors[name] = run(inputs)
            if "forward only" in name:
                seconds[name][-1] = CLOCK.pop()
        shown = ", ".join(f"{name} {len(inputs) / values[-1]:.2f}" for name, values in seconds.items())
        print(f"  {unit}s/s: {shown}", flush=True)
        norms = np.linalg.norm(vectors["naive map"], axis=1)
        difference = np.linalg.norm(vectors["ours"] - vectors["naive map"], axis=1) / norms
        worst = max(worst, float(difference.max()))
    for name, values in seconds.items():
        ratios = [first / value for first, value in zip(seconds["naive map"], values, strict=True)]
        rate = sum(map(len, rounds)) / sum(values)
        print(f"{name:32} {rate:10.2f} {unit}s/s   {spread(ratios)} × naive")
    share = [a / b for a, b in zip(seconds["ours, forward only"], seconds["ours"], strict=True)]
    if WHOLE in runs:
        whole = [a / b for a, b in zip(seconds[WHOLE], seconds["ours"], strict=True)]
        state(f"embed {unit}s", whole, f"{arch}, the whole last layer; {spread(share)} of its own")
    else:
        state(f"embed {unit}s", share, arch)
    print(f"ours reaches {spread(share)} of its own forward-only rate; farthest from naive {worst:.1e}")
    return sum(map(len, rounds)) / sum(seconds["ours"])


CLOCK: list[float] = []  # seconds that a "forward only" run found for itself
now: list[Callable[[], float]] = [time.perf_counter]


def forward_only(encoder: Encoder, texts: list[str]) -> np.ndarray:
    """Encode, with the seconds inside forward passes added to CLOCK."""
    with counting_forwards(encoder):
        return encoder.encode_text(texts)


def forward_only_images(encoder: Encoder, batch: list[bytes]) -> np.ndarray:
    """Seconds of the forward passes with all images prepared before go to CLOCK."""
    pixels = cast(Pixels, encoder._pixels)
    prepared = [pixels.prepare(decode(data)) for data in batch]
    start = now[0]()
    size = encoder.image_batch
    outputs = [encoder._forward_images(prepared[at : at + size]) for at in range(0, len(prepared), size)]
    vectors = np.concatenate([output.cpu().numpy() for output in outputs])
    CLOCK.append(now[0]() - start)
    return vectors


@contextmanager
def counting_forwards(encoder: Encoder) -> Iterator[None]:
    total, features = [0.0], encoder._features

    def counted(method: Callable[..., Any], inputs: Any) -> Any:
        start = now[0]()
        out = features(method, inputs)
        total[0] += now[0]() - start
        return out

    encoder.__dict__["_features"] = counted
    try:
        yield
    finally:
        del encoder.__dict__["_features"]
        CLOCK.append(total[0])


def through_map(batches: VectorBatches, count: int, width: int) -> np.ndarray:
    """As the embed stage does it, through its batched `Dataset.map`."""
    from builder.embed.encode import _map

    return _map(batches, count, width, "0", lambda _, __=0: None)


def sentence_transformers(naive: Naive) -> Callable[[list[str]], np.ndarray]:
    """Their loop around the same model: sorted by length, batches of 32."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(naive.model.name_or_path, device=naive.device)
    return lambda texts: np.asarray(model.encode(texts, show_progress_bar=False))


def report_profile(encoder: Encoder, some: list[bytes]) -> None:
    """Milliseconds per image of each step, alone and on one thread."""
    images = [decode(data) for data in some]
    pixels = cast(Pixels, encoder._pixels)
    prepared = [pixels.prepare(image) for image in images]
    size = encoder.image_batch
    steps: dict[str, Callable[[], Any]] = {
        "decode": lambda: [decode(data) for data in some],
        "resize, crop": lambda: [pixels.prepare(image) for image in images],
        "CLIPImageProcessor": lambda: [pixels._whole(image) for image in images],
        "forward": lambda: [encoder._forward_images(prepared[at : at + size]) for at in range(0, len(prepared), size)],
    }
    for name, step in steps.items():
        seconds: list[float] = []
        for _ in range(3):
            with timed(seconds):
                step()
        print(f"  {name:22} {1000 * min(seconds) / len(some):8.2f} ms per image")


def report_official_run(rates: dict[str, float]) -> None:
    """What the whole dataset costs at these rates."""
    for unit, count in (("image", OFFICIAL_IMAGES), ("text", OFFICIAL_TEXTS)):
        if unit in rates:
            print(f"{count:,} {unit}s: {count / rates[unit] / 3600:.1f} hours at {rates[unit]:.2f} {unit}s/s")


def on_gpu(folder: str, device: str, count: int, rounds: int) -> None:
    """bf16 end to end against its own forward-only rate, and how near bf16 is to float32."""
    import torch

    exact = load_encoder(folder, device=device)
    half = load_encoder(folder, device=device, dtype="bfloat16")
    every = list(make_images(count))
    shares, rates = [], []
    half.encode_images(every[:256], decode=decode)
    for _ in range(rounds):
        forward_only_images(half, every)
        torch.cuda.synchronize()
        start = time.perf_counter()
        vectors = half.encode_images(every, decode=decode)
        seconds = time.perf_counter() - start
        shares.append(CLOCK.pop() / seconds)
        rates.append(count / seconds)
    truth = exact.encode_images(every[:512], decode=decode)
    near = cosine(vectors[:512], truth)
    print(f"bf16 end to end {statistics.median(rates):.0f} images/s, {spread(shares)} of forward only")
    print(f"cosine of bf16 and float32: {near.mean():.6f} on average, {near.min():.6f} at least")
    report_official_run({"image": statistics.median(rates)})


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    products: np.ndarray = (a * b).sum(axis=1) / norms
    return products


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    start = now[0]()
    yield
    into.append(now[0]() - start)


def titles(path: Path | None, count: int) -> list[str]:
    """Real titles, or made-up ones of the same lengths: 5 to 40 words."""
    if path is not None:
        import pyarrow.parquet as pq

        found = [
            title for title in pq.read_table(path, columns=["product_title"])["product_title"].to_pylist() if title
        ]
        return [found[row % len(found)] for row in range(count)]
    rng = np.random.default_rng(0)
    words = SENTENCE.split()
    return [" ".join(rng.choice(words, rng.integers(5, 41))) + f" {row}" for row in range(count)]


def make_images(count: int) -> Iterator[bytes]:
    """Smooth seeded noise, as large as a product image after JPEG."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (60, 60, 3), np.uint8))
        sink = io.BytesIO()
        coarse.resize((500, 500), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=85)
        yield sink.getvalue()


def write_seeded_clip(folder: Path, arch: str, real: bool) -> Path:
    """A CLIP of a published architecture with random weights; its tokenizer is the published one for `real` titles."""
    import torch
    import transformers

    text, vision, patch, width = ARCHITECTURES[arch]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    vocabulary = write_tokenizer(folder, published_merges() if real else made_up_merges())
    ids = {"bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1}
    config = transformers.CLIPConfig(
        text_config=dict(zip(names, text, strict=True)) | ids | {"vocab_size": vocabulary, "projection_dim": width},
        vision_config=dict(zip(names, vision, strict=True)) | {"patch_size": patch, "projection_dim": width},
        projection_dim=width,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    return folder


def made_up_merges() -> list[str]:
    """Merges that make one token of each word of SENTENCE."""
    merges = []
    for word in re.findall(r"[a-z]+", SENTENCE.lower()):
        letters = [*word[:-1], f"{word[-1]}</w>"]
        merges += [f"{''.join(letters[:end])} {letters[end]}" for end in range(1, len(letters))]
    return list(dict.fromkeys(merges))


def published_merges() -> list[str]:
    """The merges that OpenAI published."""
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.origin is None:
        sys.exit("CLIP's vocabulary is needed: pip install --no-deps open_clip_torch, or give --model")
    packed = Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
    return gzip.decompress(packed.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]


def write_tokenizer(folder: Path, merges: list[str]) -> int:
    """vocab.json and merges.txt; returns the size of the vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(byte) for byte in plain] + [chr(256 + number) for number in range(256 - len(plain))]
    tokens = [
        *alphabet,
        *(char + "</w>" for char in alphabet),
        *(merge.replace(" ", "") for merge in merges),
        START,
        END,
    ]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {"bos_token": START} | dict.fromkeys(("eos_token", "pad_token", "unk_token"), END)
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)


if __name__ == "__main__":
    main()
