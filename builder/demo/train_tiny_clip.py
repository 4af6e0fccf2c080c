"""Train the demo's tiny CLIP on drawings and words of the made-up shop: python -m builder.demo.train_tiny_clip.

It is trained only on looks that `catalogue.held_out` does not hold out, so that no test query of a shop asks for a look
of the training. The result is a toy, but a real `transformers` CLIPModel with its tokenizer and processor.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from builder.demo.catalogue import Goods, Look, Wish, goods, held_out, looks, query_text, title
from sqid_lib.errors import missing_extra

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

SIDE = 64  # pixels of the model's input
WIDTH = 64  # of the embeddings
MAX_TOKENS = 48
VOCABULARY = 900
START, END = "<|startoftext|>", "<|endoftext|>"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # those of OpenAI's CLIP


def train(out: Path, steps: int, drawings: int, batch: int, seed: int) -> None:
    """Train for `steps` batches on `drawings` images of each look; save model, tokenizer and processor to `out`."""
    try:
        import torch
        from transformers import CLIPProcessor
    except ImportError as error:
        raise missing_extra(error.name or "transformers", "build", "to train the demo's model") from error
    torch.manual_seed(seed)
    rng = Random(f"training {seed}")
    seen = [look for look in looks() if not held_out(look)]
    save_processor(out, seen, Random(f"vocabulary {seed}"))
    processor = CLIPProcessor.from_pretrained(out)
    model = new_model(processor.tokenizer.convert_tokens_to_ids(END), len(processor.tokenizer))
    pixels = draw_all(seen, drawings, rng, processor.image_processor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.5e-3, total_steps=steps, pct_start=0.08)
    model.train()
    began = time.monotonic()
    for step in range(1, steps + 1):
        chosen = rng.sample(range(len(seen)), batch)
        images = pixels[[look * drawings + rng.randrange(drawings) for look in chosen]]
        items = [goods(seen[look], rng) for look in chosen]
        texts = [query_text(_asked(item, rng), rng) for item in items] + [title(item, rng) for item in items]
        tokens = processor.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        loss = contrastive_loss(model, _augmented(images), tokens)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps:
            sys.stderr.write(f"step {step}/{steps} loss {loss.item():.3f} {time.monotonic() - began:.0f} s\n")
    model.eval().save_pretrained(out, safe_serialization=True)


def contrastive_loss(model: Any, images: torch.Tensor, tokens: Any) -> torch.Tensor:
    """CLIP's symmetric loss between image and query, image and title, and query and title.

    Args:
        model: a CLIPModel.
        images: float32 [B, 3, SIDE, SIDE].
        tokens: the tokenizer's output for B queries followed by B titles.
    """
    import torch
    from torch.nn.functional import cross_entropy, normalize

    image = normalize(_vectors(model.get_image_features(pixel_values=images)), dim=-1)
    query, name = normalize(_vectors(model.get_text_features(**tokens)), dim=-1).chunk(2)
    target = torch.arange(len(image))
    scale = model.logit_scale.exp().clamp(max=100)
    losses = []
    for left, right, weight in ((image, query, 1.0), (image, name, 0.5), (query, name, 0.3)):
        logits = scale * left @ right.T
        losses.append(weight * (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2)
    return torch.stack(losses).sum()


def new_model(end_id: int, vocabulary: int) -> Any:
    """A CLIPModel of about half a million random weights."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        "vocab_size": vocabulary,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": end_id - 1,
        "eos_token_id": end_id,
        "pad_token_id": end_id,
    }
    vision = {
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "image_size": SIDE,
        "patch_size": 16,
    }
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    return CLIPModel(config)


def save_processor(out: Path, seen: Sequence[Look], rng: Random) -> None:
    """Write a tokenizer and image processor settings like those of OpenAI's CLIP, but smaller."""
    items = [goods(look, rng) for look in seen for _ in range(6)]
    tokenizer = _bpe(text.lower() for item in items for text in (title(item, rng), query_text(_asked(item, rng), rng)))
    model = json.loads(tokenizer.to_str())["model"]
    letters = sorted(token for token in model["vocab"] if len(token) == 1)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    words = [*letters, *(f"{x}</w>" for x in letters), *(pair.replace(" ", "") for pair in merges), START, END]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    out.mkdir(parents=True, exist_ok=True)
    _save_json(out / "vocab.json", vocabulary)
    (out / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    _save_json(out / "special_tokens_map.json", special)
    _save_json(
        out / "tokenizer_config.json",
        {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "do_lower_case": True},
    )
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": "CLIPProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": SIDE},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }
    _save_json(out / "preprocessor_config.json", settings)


def draw_all(seen: Sequence[Look], count: int, rng: Random, image_processor: Any) -> torch.Tensor:
    """`count` images of each look, as the image processor gives them: float32 [looks * count, 3, SIDE, SIDE]."""
    import torch

    from builder.demo.drawings import draw

    drawn = []
    for look in seen:
        images = [draw(look, rng, (160, 160)) for _ in range(count)]
        drawn.append(image_processor(images, return_tensors="pt")["pixel_values"])
    sys.stderr.write(f"{len(seen) * count} images drawn\n")
    return torch.cat(drawn)


def _augmented(images: torch.Tensor) -> torch.Tensor:
    """The images shifted by up to 3 pixels, half of them mirrored, with a little noise."""
    import torch

    dx, dy = (int(x) for x in torch.randint(-3, 4, (2,)))
    images = images.roll((dy, dx), dims=(2, 3))
    mirrored = torch.rand(len(images)) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    return images + 0.05 * torch.randn_like(images)


def _asked(item: Goods, rng: Random) -> Wish:
    """A query that this product answers: its look, and in some queries its brand or material."""
    asked = rng.random()
    return Wish(item.look, item.brand if asked < 0.25 else None, item.material if asked > 0.75 else None)


def _bpe(texts: Iterator[str]) -> Tokenizer:
    """A byte-level BPE tokenizer with CLIP's end-of-word marks."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _vectors(output: Any) -> torch.Tensor:
    """Projected vectors: transformers 5 wraps them, 4 does not."""
    return output.pooler_output if hasattr(output, "pooler_output") else output  # type: ignore[no-any-return]


def _save_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(prog="python -m builder.demo.train_tiny_clip", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny_clip")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--drawings", type=int, default=4, help="images drawn of each look")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    train(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
