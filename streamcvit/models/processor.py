"""Loads a base model's processor, whole or not at all: with an image processor that gives pixels."""

from __future__ import annotations

import inspect
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from streamcvit.errors import UserError
from streamcvit.models.unlike import fitted

EMBEDDED = "embedded"
_PARTS = {
    "processor settings": ("preprocessor_config.json", "processor_config.json"),
    "tokenizer": ("tokenizer.json", "tokenizer.model", "vocab.*", "*.model", "*.tiktoken", "tekken.json"),
}


def resolve(name_or_path: str | Path, revision: str = "") -> str:
    """Folder or hub name behind a base model's name; `"embedded"` is the one packaged with streamcvit.

    Raises:
        UserError: a path that does not exist, a folder without `config.json`, or a revision of one that has none.
    """
    if revision and (str(name_or_path) == EMBEDDED or Path(name_or_path).expanduser().is_dir()):
        raise UserError(
            f"{name_or_path} has no revisions, as models of the hub have",
            where=f"model.revision {revision}",
            fix="Leave it out, or give a Hugging Face model name",
        )
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
    that half; images go through the PIL path, which gives the same pixels on every machine, where there is one.

    Args:
        name_or_path: `"embedded"`, a folder, or a hub name.
        kwargs: passed on to `from_pretrained`; an empty `revision` is the main branch.

    Raises:
        UserError: nothing there, no network, or what comes back cannot process images. A processor saved under a
            class name that transformers does not know comes back as a bare tokenizer; with that the images would
            vanish in silence.
    """
    from transformers import AutoProcessor

    revision = kwargs.pop("revision", "")
    source = resolve(name_or_path, revision)
    kwargs = {"backend": "pil", **kwargs, **at(revision), "trust_remote_code": False}
    try:
        stock = _processor_class(source, revision)
        if stock is not None and "video_processor" in inspect.signature(stock.__init__).parameters:
            processor = image_only(stock).from_pretrained(source, **kwargs)
        else:
            processor = AutoProcessor.from_pretrained(source, **kwargs)
    except (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError) as error:
        if Path(source).is_dir() and (absent := _absent(Path(source))):
            raise UserError(
                f"the folder holds no {absent}",
                where=source,
                fix="Copy it from where the model came from, or save the processor there: "
                "AutoProcessor.from_pretrained(MODEL).save_pretrained(FOLDER)",
            ) from error
        raise loading_error(source, "processor", error) from error
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise UserError(
            f"what was loaded as its processor is a {type(processor).__name__} without an image processor, "
            "so images would be dropped in silence",
            where=source,
            fix="Save the model's own processor there: AutoProcessor.from_pretrained(MODEL).save_pretrained(FOLDER)",
        )
    return fitted(processor)


@lru_cache
def image_only(stock: Any) -> Any:
    """A processor class like `stock`, but without its video processor; it saves under the stock name.

    Where `stock` asks for one (`video_processor`), None may be given.
    """
    from transformers import ProcessorMixin

    all_parts = stock.get_attributes()
    parts = [part for part in all_parts if part != "video_processor"]

    class WithoutVideo(ProcessorMixin):
        """Stands between `stock` and what all processors are: takes the parts in the order of `stock`."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            given = {**dict(zip(all_parts, args, strict=False)), **kwargs}
            given.pop("video_processor", None)
            super().__init__(**given)

        @classmethod
        def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
            loaded = dict(zip(parts, args, strict=True))
            options = {key: value for key, value in processor_dict.items() if key not in all_parts}
            return super().from_args_and_dict([loaded.get(part) for part in all_parts], options, **kwargs)

    members = {
        "get_attributes": classmethod(lambda cls: parts),
        # SmolVLM's own asks the video processor for its frame rate.
        "apply_chat_template": ProcessorMixin.apply_chat_template,
        "__module__": __name__,
        "__doc__": stock.__doc__,
    }
    return type(stock.__name__, (stock, WithoutVideo), members)


def loading_error(source: str, part: str, error: Exception) -> UserError:
    """A user's view of what transformers raised while it loaded `part` of `source`."""
    if "trust_remote_code" in str(error):  # transformers' own advice is to allow it
        return UserError(
            f"its {part} needs Python code from the model's folder, which is never run here",
            where=source,
            fix="Use a model that transformers has a class for",
        )
    detail = " ".join(str(error).split())
    lacking = re.search(r"requires the (\w+) library|No module named '(\w+)'|Package `(\w+)` is required", detail)
    if isinstance(error, ImportError) and lacking:
        package = next(filter(None, lacking.groups())).lower()
        return UserError(
            f"its {part} needs {package}, which is not installed",
            where=source,
            fix=f"pip install {package}" + (" (of torch's own kind: CPU or CUDA)" if package == "torchvision" else ""),
        )
    if len(detail) > 300:
        detail = detail[:297] + "..."
    if Path(source).is_dir():
        fix = "Save model and processor there with save_pretrained, or name another model"
    else:
        fix = "Check the name and the network (hf auth login for gated models), or give the folder of a downloaded one"
    return UserError(f"cannot load its {part}: {type(error).__name__}: {detail}", where=source, fix=fix)


def at(revision: str) -> dict[str, Any]:
    """Keywords that name a branch, tag or commit of the hub; none for its main branch."""
    return {"revision": revision} if revision else {}


def load_config(name_or_path: str | Path, revision: str = "") -> Any:
    """The configuration of the model at a name. Code of the model's own is never run.

    Raises:
        UserError: nothing there, no network, or no model that transformers knows.
    """
    from transformers import AutoConfig

    source = resolve(name_or_path, revision)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False, **at(revision))
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise loading_error(source, "configuration", error) from error


def image_token_of(config: Any) -> int | None:
    """The placeholder that a model replaces with image features, as its configuration names it; None: it does not."""
    for name in ("image_token_id", "image_token_index", "image_patch_id"):
        if (number := getattr(config, name, None)) is not None:
            return int(number)
    return None


def image_tokens(processor: Any) -> list[int]:
    """Tokens that stand for pictures, as a processor names them, the placeholder first; none where it names none."""
    named = [int(number) for number in getattr(processor, "image_token_ids", ()) if number is not None]
    if named or not (word := getattr(processor, "image_token", None)):
        return named
    number = processor.tokenizer.convert_tokens_to_ids(word)
    return [] if number is None or number == processor.tokenizer.unk_token_id else [int(number)]


def _absent(folder: Path) -> str:
    """The part of a processor that a folder has no file of; empty: it has some of each."""
    for part, names in _PARTS.items():
        if not any(any(folder.glob(name)) for name in names):
            return f"{part} ({' or '.join(names[:2])})"
    return ""


def _processor_class(source: str, revision: str) -> Any:
    """The processor class that transformers knows for the model at `source`; None where it knows none."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    return PROCESSOR_MAPPING.get(type(load_config(source, revision)), None)
