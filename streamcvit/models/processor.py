"""Loads a base model's processor, whole or not at all: with an image processor that gives pixels."""

from __future__ import annotations

import inspect
from functools import lru_cache
from pathlib import Path
from typing import Any

from streamcvit.errors import UserError

EMBEDDED = "embedded"


def resolve(name_or_path: str | Path) -> str:
    """Folder or hub name behind a base model's name; `"embedded"` is the one packaged with streamcvit.

    Raises:
        UserError: a path that does not exist, or a folder without `config.json`.
    """
    if str(name_or_path) == EMBEDDED:
        return str(Path(__file__).parents[1] / EMBEDDED / "weights")
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                "the folder holds no model (config.json is missing)",
                where=str(path),
                fix="Give the folder that save_pretrained wrote, or a Hugging Face model name",
            )
        return str(path)
    # A hub name is `name` or `owner/name`; everything else was meant as a path.
    text = str(name_or_path)
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") > 1 or path.exists():
        raise UserError(
            "there is no such model folder", where=text, fix="Check the path, or give a Hugging Face model name"
        )
    return text


def load_processor(name_or_path: str | Path, **kwargs: Any) -> Any:
    """The processor of a vision-language model. Code of the model's own is never run.

    Processors that ask for torchvision only because of their video half (Qwen-VL, InternVL) are loaded without
    that half; images go through the PIL path, which gives the same pixels on every machine.

    Args:
        name_or_path: `"embedded"`, a folder, or a hub name.
        kwargs: passed on to `from_pretrained`.

    Raises:
        UserError: nothing there, no network, or what comes back cannot process images. A processor saved under a
            class name that transformers does not know comes back as a bare tokenizer; with that the images would
            vanish in silence.
    """
    from transformers import AutoProcessor

    source = resolve(name_or_path)
    kwargs = {"backend": "pil", **kwargs, "trust_remote_code": False}
    try:
        stock = _processor_class(source)
        if stock is not None and "video_processor" in inspect.signature(stock.__init__).parameters:
            processor = image_only(stock).from_pretrained(source, **kwargs)
        else:
            processor = AutoProcessor.from_pretrained(source, **kwargs)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        raise loading_error(source, "processor", error) from error
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise UserError(
            f"what was loaded as its processor is a {type(processor).__name__} without an image processor, "
            "so images would be dropped in silence",
            where=source,
            fix="Save the model's own processor there: AutoProcessor.from_pretrained(MODEL).save_pretrained(FOLDER)",
        )
    return processor


@lru_cache
def image_only(stock: Any) -> Any:
    """A processor class like `stock`, but without its video processor; it saves under the stock name."""
    parts = [part for part in stock.get_attributes() if part != "video_processor"]
    members = {"get_attributes": classmethod(lambda cls: parts), "__module__": __name__, "__doc__": stock.__doc__}
    return type(stock.__name__, (stock,), members)


def loading_error(source: str, part: str, error: Exception) -> UserError:
    """A user's view of what transformers raised while it loaded `part` of `source`."""
    if "trust_remote_code" in str(error):  # transformers' own advice is to allow it
        return UserError(
            f"its {part} needs Python code from the model's folder, which is never run here",
            where=source,
            fix="Use a model that transformers has a class for",
        )
    detail = " ".join(str(error).split())
    if len(detail) > 300:
        detail = detail[:297] + "..."
    if Path(source).is_dir():
        fix = "Save model and processor there with save_pretrained, or name another model"
    else:
        fix = "Check the name and the network (hf auth login for gated models), or give the folder of a downloaded one"
    return UserError(f"cannot load its {part}: {type(error).__name__}: {detail}", where=source, fix=fix)


def _processor_class(source: str) -> Any:
    """The processor class that transformers knows for the model at `source`; None where it knows none."""
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    return PROCESSOR_MAPPING.get(type(config), None)
