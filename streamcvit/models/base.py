"""Loads a frozen base model with its processor and collator, from the package, a folder or the hub."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from streamcvit.adapters import keep_activations, plain_layers
from streamcvit.errors import UserError
from streamcvit.models.attention import check_attention, with_attention
from streamcvit.models.collate import Collator
from streamcvit.models.pictures import PictureRules, follow
from streamcvit.models.processor import (
    at,
    image_token_of,
    image_tokens,
    load_config,
    load_processor,
    loading_error,
    resolve,
)
from streamcvit.models.quantize import NONE, check_quantize, held_bytes, loading_options, settle_layers
from streamcvit.models.sight import check_sight, places_picture
from streamcvit.models.unlike import check_config, fitted
from streamcvit.models.weights import checksum

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.safetensors"]  # what a model consists of
_GIB = 1024**3
_GROUP = Path("/sys/fs/cgroup")


class Base:
    """A frozen vision-language model and what goes with it.

    Attributes:
        model: Hugging Face image-text-to-text model, in eval mode, `requires_grad` False throughout.
        processor: its processor.
        collator: samples to model inputs.
        device: where the model is.
        dtype: of its floating-point weights.
        source: the folder it came from.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        source: str | None = None,
        max_length: int | None = None,
        turns: str = "all",
        template_options: Mapping[str, Any] | None = None,
        pictures: PictureRules | None = None,
        chat_template: str = "",
    ) -> None:
        self.model = fitted(model).requires_grad_(False).eval()
        self.processor = fitted(processor)
        placeholder = image_token_of(model.config)
        self.collator = Collator(processor, max_length, turns, template_options, placeholder, pictures, chat_template)
        follow(model.config, pictures)
        self.device: torch.device = model.device
        self.dtype: torch.dtype = model.dtype
        self.source = source
        if not source:
            from streamcvit.models.snapshot import state_digest

            # Now: once adapters are put into the model, its state dict holds theirs too.
            self.digest = state_digest(model.state_dict())
        self._modules = dict(model.named_modules())
        self._checksum = checksum(model.state_dict())
        if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
            raise UserError(
                f"{type(model).__name__} does not take image features computed beforehand",
                where=source or "",
                fix="Use a family that does: LLaVA, Qwen-VL, Gemma 3, InternVL, SmolVLM ...",
            )
        named = image_tokens(processor)
        if placeholder is not None and placeholder not in named and not places_picture(self.collator):
            raise UserError(
                f"model and processor disagree on the image token (ids {placeholder} and {next(iter(named), 'none')})",
                where=source or type(model).__name__,
                fix="Use the processor that was saved with the model",
            )

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    def restore(self) -> bool:
        """Take every adapter out, and say whether the model then is as it was loaded.

        Modules that PEFT put something in place of (also trained copies, `modules_to_save`) are put back. What an
        adapter wrote into a weight itself (PiSSA's and OLoRA's starts, trained biases) cannot be; a sum over all
        weights as they are (`streamcvit.models.weights`) tells of it, and of anything else.
        """
        for name, module in self._modules.items():
            if name:
                parent, _, child = name.rpartition(".")
                self._modules[parent]._modules[child] = module
        keep_activations(self.model)
        plain_layers(self.model)
        self.model.requires_grad_(False).eval()
        return checksum(self.model.state_dict()) == self._checksum

    @cached_property
    def digest(self) -> str:
        """`model_digest`; SHA-256 of the state dict where the model came from no folder."""
        return model_digest(str(self.source))


def model_digest(folder: str) -> str:
    """SHA-256 of a model folder's files, names and bytes: which weights, configuration, processor and chat template."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in FILES for file in Path(folder).glob(pattern)}):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def load_base(
    name_or_path: str | Path = "embedded",
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    attn: str = "sdpa",
    quantize: str = NONE,
    revision: str = "",
    max_length: int | None = None,
    turns: str = "all",
    template_options: Mapping[str, Any] | None = None,
    pictures: PictureRules | None = None,
    chat_template: str = "",
) -> Base:
    """Loads a base model, frozen and ready for adapters.

    Args:
        name_or_path: `"embedded"` (packaged, tiny), a folder written by `save_pretrained`, or a hub name.
        device: `"auto"` takes CUDA where there is one, else the CPU.
        dtype: `"auto"` takes bfloat16 on a CUDA device that has it, else float32.
        attn: attention implementation of transformers (`sdpa`, `eager`, `flash_attention_2`, `flex_attention` ...).
        quantize: `8bit` or `4bit` holds the language model's linear layers so (needs bitsandbytes); `none`.
        revision: branch, tag or commit of a hub name; empty: its main branch.
        max_length: the most tokens a row may have; see `Collator`.
        turns: which answers of a conversation are learned; see `Collator`.
        template_options: keyword arguments of the chat template; see `ChatTemplate`.
        pictures: bounds on pictures, and settings of the processor's picture half; see `PictureRules`.
        chat_template: text of a chat template in the place of the model's own.

    Raises:
        UserError: nothing there, no network, no image-text-to-text model, weights missing in the files, a processor
            that does not do images, a model that would not see them, a chat template that cannot be served, an unknown
            dtype, an attention implementation that it cannot have, no bitsandbytes, or too little memory for its
            weights.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    folder = fetch(name_or_path, revision)
    config = load_config(folder)
    check_config(config)
    where = device_of(device)
    kind = dtype_of(dtype, where)
    check_attention(attn, where, kind)
    check_quantize(quantize, config)
    bare = skeleton(folder) if quantize != NONE else None
    check_memory(folder, where, kind, quantize, bare)
    options: dict[str, Any] = {"dtype": kind, "attn_implementation": attn, "output_loading_info": True}
    options["trust_remote_code"] = False  # left open, transformers asks on the terminal, and runs what it finds
    if bare is not None:
        options |= loading_options(quantize, bare, kind)
    if bare is not None or where.type == "cuda":
        options["device_map"] = {"": where}
    processor = load_processor(folder)
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        loader: Any = AutoModelForImageTextToText
        model, info = loader.from_pretrained(folder, **options)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        skeleton(folder, attn=attn)  # which says so where it is the attention that the model cannot have
        raise loading_error(folder, "model", error) from error
    finally:
        if bars:
            logging.enable_progress_bar()
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{len(missing)} weights are not in the files (first: {missing[0]}) and would start at random",
            where=folder,
            fix="Download or save the model again",
        )
    settle_layers(model)
    base = Base(model, processor, folder, max_length, turns, template_options, pictures, chat_template)
    check_sight(base.model, base.collator)
    return base


def device_of(device: str | torch.device) -> torch.device:
    """The device of that name; `"auto"` is CUDA where there is one, else the CPU.

    Raises:
        UserError: no name of a device, or this machine has none of that kind or number.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = f"device {device}"
    try:
        where = torch.device(device)
    except RuntimeError:
        raise UserError("is no device", where=place, fix="Use auto, cpu, cuda, cuda:0 ...") from None
    if where.type == "cuda":
        if not (count := torch.cuda.device_count()):
            raise UserError("there is no CUDA device here", where=place, fix='Use device "auto" or "cpu"')
        if (where.index or 0) >= count:
            raise UserError(f"there are {count} CUDA devices here", where=place, fix=f"Use one up to cuda:{count - 1}")
    elif where.type != "cpu":
        accelerator = getattr(torch, where.type, None)
        if accelerator is None or not accelerator.is_available():
            raise UserError("there is no such device here", where=place, fix="Use auto, cpu, cuda, cuda:0 ...")
    return where


def fetch(name_or_path: str | Path, revision: str = "") -> str:
    """The local folder of a base model; downloads config, processor and safetensors of a hub name.

    Raises:
        UserError: no such folder, a revision of one, or the hub cannot be reached or does not hold it.
    """
    source = resolve(name_or_path, revision)
    if Path(source).is_dir():
        return source
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(source, allow_patterns=FILES, **at(revision))
    except Exception as error:  # the hub client raises its own, httpx's and OS errors; to the user they are one
        raise loading_error(source, "files", error) from error


def skeleton(name_or_path: str | Path, revision: str = "", attn: str | None = None) -> nn.Module:
    """A model's modules without weights (on the meta device): its names and shapes at no cost in memory.

    Args:
        name_or_path: `"embedded"`, a folder, or a hub name; of the last only the configuration is downloaded.
        revision: branch, tag or commit of a hub name; empty: its main branch.
        attn: attention implementation; None: the model's own default.

    Raises:
        UserError: nothing there, no network, no model that transformers knows, or one that cannot have that attention.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    source, config = resolve(name_or_path, revision), load_config(name_or_path, revision)
    check_config(config)

    def build(attn: str | None) -> nn.Module:
        loader: Any = AutoModelForImageTextToText
        if type(config) not in loader._model_mapping:
            loader = AutoModelForCausalLM
        with torch.device("meta"):
            return fitted(loader.from_config(config, trust_remote_code=False, attn_implementation=attn))

    try:
        return with_attention(build, attn)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise loading_error(source, "configuration", error) from error


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a model folder, by name."""
    return sorted(Path(folder).glob("*.safetensors"))


def check_memory(
    folder: str, device: torch.device, dtype: torch.dtype, quantize: str = NONE, bare: nn.Module | None = None
) -> None:
    """Raises a UserError if the weights at `folder`, so quantised, do not fit into the device's free memory.

    `bare` is the model without weights, which tells what is quantised; None where nothing is.
    """
    stored = sum(file.stat().st_size for file in weight_files(folder))
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    stored_bytes = _DTYPES.get(str(name), torch.float32).itemsize
    need = stored * dtype.itemsize / stored_bytes
    if config.get("quantization_config"):  # they stay as they are
        need = stored
    elif bare is not None:
        need = held_bytes(bare, quantize, dtype)
    free = device_memory(device)[0]
    if need > free:
        kind = str(dtype).removeprefix("torch.") if quantize == NONE else quantize
        raise UserError(
            f"its weights need {need / _GIB:.1f} GiB as {kind}, and {free / _GIB:.1f} GiB are free on {device}",
            where=folder,
            fix="Take a smaller model, a smaller model.dtype, model.quantize 4bit, or a machine with more memory",
        )


def device_memory(device: torch.device) -> tuple[int, int]:
    """Bytes that are free on a device, and all it has; on a CPU those of this process's control group, if any."""
    if device.type == "cuda":
        free, whole = torch.cuda.mem_get_info(device)
        return int(free), int(whole)
    return _free_memory(), _limit()


def dtype_of(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The type of that name; `"auto"` is bfloat16 on a CUDA device that has it, else float32."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    if dtype not in _DTYPES:
        raise UserError(f"unknown dtype {dtype!r}", fix=f"Use auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _free_memory() -> int:
    """Bytes free to this process: of the machine, or of its control group (a container) if that is less."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        used = int((_GROUP / "memory.current").read_text())
        free = min(free, max(0, _limit() - used))
    return free


def _limit() -> int:
    """Bytes that this process may have at most: the machine's, or those of its control group if that is less."""
    whole = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # also where it says `max`
        whole = min(whole, int((_GROUP / "memory.max").read_text()))
    return whole
