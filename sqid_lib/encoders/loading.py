"""Finding and loading an encoder: safetensors only, no remote code; of transformers the PIL image processor."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqid_lib import schemas
from sqid_lib.encoders.encoder import Encoder
from sqid_lib.encoders.model_files import check_weights, read_config
from sqid_lib.encoders.pixels import Pixels
from sqid_lib.encoders.texts import TextRule, Tokens
from sqid_lib.encoders.towers import Towers, without_progress_bars
from sqid_lib.errors import EncoderError, UsageError, first_line, missing_extra

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
TRANSFORMERS, OPEN_CLIP, SENTENCE_TRANSFORMERS = BACKENDS = ("transformers", "open_clip", "sentence-transformers")
_TEXT_FILES = ["*.json", "*.txt", "*.model"]
# the files a model is loaded from, wanted and unwanted: weights in one variant only, and only those of the library
_FILES = {
    TRANSFORMERS: (
        ["model*.safetensors", "model.safetensors.index.json", *_TEXT_FILES],
        ["model.*.safetensors", "*/*"],
    ),
    OPEN_CLIP: (["open_clip*.safetensors", *_TEXT_FILES], ["*/*"]),
    SENTENCE_TRANSFORMERS: (["*.safetensors", *_TEXT_FILES], ["model.*.safetensors", "onnx/*", "openvino/*"]),
}
_COMMIT = re.compile(r"[0-9a-f]{40}")


def load_encoder(
    model: str,
    *,
    revision: str = "main",
    device: str = "auto",
    dtype: str = "float32",
    linear: str = "auto",
    backend: str = TRANSFORMERS,
) -> Encoder:
    """Load any dual encoder of transformers (CLIP, SigLIP, SigLIP 2, ChineseCLIP, ALIGN …), or one of another library.

    Args:
        model: a Hub id, or a directory with config.json, tokenizer, image processor and safetensors.
        revision: branch, tag or commit of a Hub model; ignored for a directory.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", "mps".
        dtype: "float32" (the published meaning), "bfloat16" or "float16"; vectors come back as float32 either way.
        linear: kernels for the linear layers on a CPU: "auto", "packed" or "plain"; see `sqid_lib.encoders.linear`.
        backend: "transformers"; "open_clip", for a directory or repo with open_clip_config.json; or
            "sentence-transformers", for one with modules.json, of texts and images or of texts alone.

    Raises:
        EncoderError: the model does not exist, cannot be downloaded, is not of the backend or has no safetensors.
        UsageError: an unknown dtype, device or backend.
        MissingExtraError: torch, transformers, pillow or the library of the backend is not installed.
    """
    if dtype not in DTYPES:
        raise UsageError("unknown dtype", where="dtype", expected=" or ".join(DTYPES), got=dtype)
    if backend not in BACKENDS:
        raise UsageError("unknown backend", where="backend", expected=" or ".join(BACKENDS), got=backend)
    _require(backend)
    place = _device(device)
    directory, commit = locate(model, revision, backend)
    shared: dict[str, Any] = {"model_id": model, "revision": commit, "device": place, "dtype": dtype}
    if backend == TRANSFORMERS:
        return _load_transformers(model, directory, linear, shared)
    from sqid_lib.encoders import open_clip_model, sentence_model

    load = open_clip_model.load if backend == OPEN_CLIP else sentence_model.load
    with _reporting_bad_models(model, directory):
        loaded = load(directory, model, dtype)
    network = loaded.network.eval().requires_grad_(False).to(place)
    return Encoder(
        network=network, tokens=loaded.tokens, pixels=loaded.pixels, text_limit=loaded.limit, linear="plain", **shared
    )


def _load_transformers(model: str, directory: Path, linear: str, shared: dict[str, Any]) -> Encoder:
    import torch

    config = read_config(directory, model)
    network, tokenizer, processor = _load_parts(directory, config, model, getattr(torch, shared["dtype"]))
    network = network.eval().requires_grad_(False).to(shared["device"])
    from sqid_lib.encoders.activation import replace_quick_gelu  # imported here because they need torch
    from sqid_lib.encoders.linear import choose
    from sqid_lib.encoders.pooled import pool_last_layers

    replace_quick_gelu(network)
    chosen = choose(network, linear)
    if tokenizer.padding_side == "right":
        pool_last_layers(network)
    rule = _text_rule(config, tokenizer, network.config)
    return Encoder(
        network=network,
        tokens=Tokens(tokenizer, rule),
        pixels=Pixels(processor),
        text_limit=rule.limit,
        linear=chosen,
        **shared,
    )


def load_towers(model: str, *, revision: str = "main") -> Towers:
    """Load a dual encoder to train it; `load_encoder` makes vectors, with kernels that have no gradients.

    Args:
        model, revision: as for `load_encoder` with the backend "transformers".

    Raises:
        EncoderError, MissingExtraError: as `load_encoder`.
    """
    _require(TRANSFORMERS)
    import torch

    directory, _ = locate(model, revision)
    config = read_config(directory, model)
    network, tokenizer, processor = _load_parts(directory, config, model, torch.float32)
    tokens = Tokens(tokenizer, _text_rule(config, tokenizer, network.config))
    return Towers(network.train(), Pixels(processor).floats, directory, tokens)


def _load_parts(directory: Path, config: dict[str, Any], model: str, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Network, tokenizer and image processor of a model in a directory, checked."""
    with _reporting_bad_models(model, directory):
        import transformers

        check_weights(directory, config, model)
        network, info = transformers.AutoModel.from_pretrained(
            directory,
            **{"dtype" if _transformers_5() else "torch_dtype": dtype},
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
        processor = _image_processor(directory)
    _check_weights(network, info, model)
    return network, tokenizer, processor


def is_model_path(model: str) -> bool:
    """Whether a model can only be a directory: a Hub id is NAME or ORG/NAME."""
    return Path(model).is_absolute() or model.startswith((".", "~")) or model.count("/") > 1


def locate(model: str, revision: str, backend: str = TRANSFORMERS) -> tuple[Path, str]:
    """The directory of a model and its resolved revision: a commit, or "local-" and a hash of the directory's files.

    Raises:
        EncoderError: not a directory, and not a model that the Hub or the local cache has.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path, content_revision(path, backend)
    if is_model_path(model):
        raise EncoderError(
            "no such model directory", where=model, fix="Give a directory with config.json, or a Hub id like ORG/NAME."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    wanted, unwanted = _FILES[backend]
    try:
        directory = Path(snapshot_download(model, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))
    except GatedRepoError as error:
        raise EncoderError(
            "the model can only be loaded after its terms are accepted",
            where=model,
            fix="Accept them on the Hub and set HF_TOKEN.",
        ) from error
    except RepositoryNotFoundError as error:
        raise EncoderError(
            "no such model on the Hub", where=model, fix="Check the id; a private one needs HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise EncoderError("no such revision", where=model, got=revision, fix="Check encoder.revision.") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise EncoderError(
            f"the model cannot be downloaded, and is not in the cache: {first_line(error)}",
            where=f"{model}@{revision}",
            fix="Check the network and HF_ENDPOINT, or set encoder.model to a directory that holds the model.",
        ) from error
    return directory, directory.name if _COMMIT.fullmatch(directory.name) else revision


def content_revision(directory: Path, backend: str = TRANSFORMERS) -> str:
    """ "local-" and the sha256 (40 hex digits) of the names and bytes of the files a model is loaded from."""
    wanted, unwanted = _FILES[backend]
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir() if "*/*" in unwanted else directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        left_out = any(fnmatch(name, pattern) for pattern in unwanted if "/" in pattern)
        if path.is_file() and not left_out and any(path.match(pattern) for pattern in wanted):
            with path.open("rb") as file:
                digest.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return f"{schemas.LOCAL_REVISION}{digest.hexdigest()[:40]}"


def _require(backend: str) -> None:
    needed = [("torch", "torch", "build"), ("transformers", "transformers", "build"), ("PIL", "pillow", "build")]
    if backend == OPEN_CLIP:
        needed.append(("open_clip", "open_clip_torch", "open-clip"))
    elif backend == SENTENCE_TRANSFORMERS:
        needed.append(("sentence_transformers", "sentence-transformers", "sbert"))
    for module, package, extra in needed:
        try:
            __import__(module)
        except ImportError as error:
            raise missing_extra(package, extra, "to load an encoder") from error


def _device(device: str) -> torch.device:
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.zeros(1, device=place)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"no such device: {first_line(error)}", where="device", got=device, fix='Use "auto" or "cpu".'
        ) from error
    return place


@contextmanager
def _reporting_bad_models(model: str, directory: Path) -> Iterator[None]:
    """Raise EncoderError in place of what transformers raises on untrusted files; hide its progress bars."""
    try:
        with without_progress_bars():
            yield
    except EncoderError:
        raise
    except Exception as error:
        raise EncoderError(
            f"the model cannot be loaded: {type(error).__name__}: {first_line(error)}",
            where=model,
            fix=f"Check the files in {directory}; models that need their own code are not supported.",
        ) from error


def _image_processor(directory: Path) -> Any:
    """The image processor on its PIL path: torchvision's resize differs (features by 1.4e-4)."""
    from transformers import AutoImageProcessor

    choice: dict[str, Any] = {"backend": "pil"} if _transformers_5() else {"use_fast": False}
    return AutoImageProcessor.from_pretrained(directory, trust_remote_code=False, local_files_only=True, **choice)


def _check_weights(network: Any, info: dict[str, Any], model: str) -> None:
    for method in ("get_text_features", "get_image_features"):
        if not hasattr(network, method):
            raise EncoderError(
                f"not a dual encoder: no {method}",
                where=model,
                got=type(network).__name__,
                fix="Name a CLIP, SigLIP, ChineseCLIP or ALIGN model.",
            )
    missing = sorted(key for key in info["missing_keys"] if "position_ids" not in key)
    if missing or info["mismatched_keys"]:
        raise EncoderError(
            "the weights do not match the config, so some would be random",
            where=model,
            got=f"{len(missing)} missing {missing[:3]}, {len(info['mismatched_keys'])} of another shape",
            fix="Download the model again.",
        )


def _text_rule(config: dict[str, Any], tokenizer: Any, loaded: Any) -> TextRule:
    """Limit and padding as in the model's own processor."""
    positions = getattr(getattr(loaded, "text_config", loaded), "max_position_embeddings", None)
    limits = [n for n in (tokenizer.model_max_length, positions) if n is not None and n < 1_000_000]
    if config["model_type"] == "align":
        limits.append(64)  # AlignProcessor's own default
    if not limits:
        raise EncoderError("neither tokenizer nor config states a text limit", where=config.get("_name_or_path"))
    # SigLIP pools the last position, padding included: it always pads to the limit, as it was trained
    return TextRule(limit=min(limits), fixed=config["model_type"] in ("siglip", "siglip2"))


def _transformers_5() -> bool:
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5
