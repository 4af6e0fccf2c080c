"""Small random dual encoders of other families than CLIP: SigLIP, SigLIP 2 (NaFlex), ChineseCLIP, ALIGN."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from encoder_fixtures import WORDS

_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIDE = 32


def write_family(folder: Path, family: str) -> Path:
    """One of `FAMILIES`, with tokenizer and image processor of its own."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = FAMILIES[family](transformers, folder)
    with torch.no_grad():
        for parameter in model.parameters():
            # batch norms at their initial statistics let little of small weights through
            parameter.add_(torch.randn_like(parameter) * (0.3 if family == "align" else 0.05))
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def _siglip(transformers: Any, folder: Path) -> Any:
    size = _write_word_tokenizer(folder, limit=16)
    transformers.SiglipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    text = {**_TOWER, **_IDS, "vocab_size": size, "max_position_embeddings": 16, "projection_size": 32}
    vision = {**_TOWER, "image_size": SIDE, "patch_size": 8}
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision))


def _siglip2(transformers: Any, folder: Path) -> Any:
    size = _write_word_tokenizer(folder, limit=16)
    processor = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 16}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    text = {**_TOWER, **_IDS, "vocab_size": size, "max_position_embeddings": 16, "projection_size": 32}
    vision = {**_TOWER, "patch_size": 8, "num_patches": 16}
    return transformers.Siglip2Model(transformers.Siglip2Config(text_config=text, vision_config=vision))


def _chinese_clip(transformers: Any, folder: Path) -> Any:
    size = _write_bert_tokenizer(folder)
    processor = {"image_processor_type": "ChineseCLIPImageProcessor"}
    processor |= {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}  # type: ignore[dict-item]
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    text = {**_TOWER, "vocab_size": size, "max_position_embeddings": 40}
    vision = {**_TOWER, "image_size": SIDE, "patch_size": 8}
    config = transformers.ChineseCLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
    return transformers.ChineseCLIPModel(config)


def _align(transformers: Any, folder: Path) -> Any:
    size = _write_bert_tokenizer(folder)
    processor = {
        "image_processor_type": "EfficientNetImageProcessor",
        "size": {"height": 40, "width": 40},
        "crop_size": {"height": SIDE, "width": SIDE},
        "do_center_crop": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    text = {**_TOWER, "vocab_size": size, "max_position_embeddings": 512}
    vision = {
        "image_size": SIDE,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.3,
        "hidden_dim": 128,
        "kernel_sizes": [3, 3],
        "in_channels": [32, 16],
        "out_channels": [16, 128],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 6],
    }
    config = transformers.AlignConfig(text_config=text, vision_config=vision, projection_dim=32)
    return transformers.AlignModel(config)


_IDS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
FAMILIES: dict[str, Callable[[Any, Path], Any]] = {
    "siglip": _siglip,
    "siglip2": _siglip2,
    "chinese_clip": _chinese_clip,
    "align": _align,
}


def _write_word_tokenizer(folder: Path, limit: int) -> int:
    """As Google's SigLIP repositories have it: pads with its end token, gives input_ids alone."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {word: number for number, word in enumerate(["<unk>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": limit,
        "model_input_names": ["input_ids"],
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(words)


def _write_bert_tokenizer(folder: Path) -> int:
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(dict.fromkeys(words)) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": 512, "do_lower_case": True})
    )
    return len(dict.fromkeys(words))
