"""A run's adapter for others: a plain PEFT folder with a model card, or a LoRA merged into its base."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from transformers.utils import logging

from streamcvit import __version__
from streamcvit.adapters import ADAPTERS
from streamcvit.config import ModelConfig
from streamcvit.errors import UserError
from streamcvit.learning.durable import fsync_folder
from streamcvit.models.base import FILES, fetch
from streamcvit.models.processor import EMBEDDED
from streamcvit.models.quantize import NONE
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.runs import told_task
from streamcvit.run.folder import read_run
from streamcvit.run.origin import LINEAGE
from streamcvit.trained import Bench, Trained, find, learners

CARD = "README.md"
TEMPLATE = "chat_template.jinja"
_DTYPES = ("float32", "bfloat16", "float16")
_HELD = {"dtype": "dtype", "attention": "attn", "quantize": "quantize"}
"""Settings of how a base is held -> what `load_base` calls them."""
_ELSEWHERE = "Choose another folder"


def export(
    run: Path | str,
    to: Path,
    method: str | None = None,
    chunk: int | None = None,
    commit: str | None = None,
    *,
    merged: bool = False,
    model: str | None = None,
    device: str | None = None,
    other_base: bool = False,
) -> Iterator[str]:
    """Write one commit of a run for others; the folder shows whole or not at all.

    Args:
        run: run folder, or one method's.
        to: folder to make; it may be there if it is empty.
        method: which; None: the only one that learned.
        chunk, commit: as of `streamcvit.trained.find`.
        merged: write the base with the adapter merged into it, in the type that the base's files have.
        model: where the base lies, if elsewhere than the run's config says.
        device: where it is merged; None: as the run's config says.
        other_base: merge into a base with another digest than the run's, too.

    Yields:
        What was written, line by line.

    Raises:
        UserError: nothing there to export, a folder that is not empty, an adapter or base that cannot be merged.
    """
    _check_target(to)
    one = _learned(run, method, chunk, commit)
    tensors = one.tensors()
    settings = json.loads((one.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    if merged:
        _check_mergeable(one, settings, model)
        bench = Bench([one], model=model, device=device, dtype=_stored_dtype(one, model), other_base=other_base)
        whole = _merge(bench, one)
        _write(to, lambda draft: _fill_merged(draft, bench, whole, one))
        yield f"{one.method}, chunk {one.chunk}, step {one.step}, merged into {_base_name(one)}: {to}"
        return

    def fill(draft: Path) -> None:
        save_file(tensors, draft / "adapter_model.safetensors", metadata={"format": "pt"})
        base = {"base_model_name_or_path": _base_name(one), "revision": one.config.model.revision or None}
        text = json.dumps({**settings, **base}, indent=2, sort_keys=True)
        (draft / "adapter_config.json").write_text(text, encoding="utf-8")
        if one.config.model.chat_template:
            (draft / TEMPLATE).write_text(one.config.model.chat_template, encoding="utf-8")
        (draft / CARD).write_text(_card(one, settings, merged=False), encoding="utf-8")
        (draft / LINEAGE).write_text(json.dumps(_lineage(one), indent=2, sort_keys=True), encoding="utf-8")

    _write(to, fill)
    yield f"{one.method}, chunk {one.chunk}, step {one.step}, {len(tensors)} tensors: {to}"


def _learned(run: Path | str, method: str | None, chunk: int | None, commit: str | None) -> Trained:
    if method is None:
        ready = learners(run)
        if len(ready) != 1:
            what = "holds several methods" if ready else "holds no method that learned"
            raise UserError(what, where=str(run), fix=f"Name one with --method: {', '.join(ready)}" if ready else "")
        method = ready[0]
    (one,) = find(run, [method], chunk, commit)
    if one.commit is None:
        told = "is the bare base: it has no adapter"
        raise UserError(told, where=f"method {method}", fix="Name a method that learned")
    return one


def _check_target(to: Path) -> None:
    if to.is_symlink() or to.is_file() or (to.is_dir() and any(to.iterdir())):
        raise UserError("is there already, and not empty" if to.is_dir() else "is there already", where=str(to),
                        fix=_ELSEWHERE)  # fmt: skip


def _write(to: Path, fill: Callable[[Path], None]) -> None:
    """Have `fill` write a folder beside its place, then rename it."""
    to = to.absolute()
    draft = to.parent / f".{to.name}.{os.getpid()}"
    try:
        draft.mkdir(parents=True)
        fill(draft)
        for path in draft.iterdir():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        fsync_folder(draft)
        os.rename(draft, to)  # takes the place of an empty folder, and of no other
        fsync_folder(to.parent)
    except (OSError, SafetensorError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot be written ({said})", where=str(to), fix=_ELSEWHERE) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


# -- merging -----------------------------------------------------------------------------------------------------------


def _check_mergeable(one: Trained, settings: dict[str, Any], model: str | None) -> None:
    """What is known without the base's weights."""
    kind = str(settings.get("peft_type"))
    if kind != "LORA":
        raise UserError(
            f"{kind} cannot be merged: which expert acts depends on the input, or on what is told of it",
            where=f"method {one.method}",
            fix="Leave --merged out: the PEFT folder holds all of it",
        )
    if (quantize := one.config.model.quantize) != NONE:
        raise UserError(
            f"it was learned on a base in {quantize}, and would be rounded away in that; in the unquantised one it "
            "would be another model than was scored",
            where=f"method {one.method}",
            fix="Leave --merged out",
        )
    if _base_config(one, model).get("quantization_config"):
        raise _quantised(one, model)


def _quantised(one: Trained, model: str | None) -> UserError:
    return UserError(
        "the base is quantised, and merging would round the adapter away",
        where=model or one.config.model.name_or_path,
        fix="Leave --merged out",
    )


def _base_config(one: Trained, model: str | None) -> dict[str, Any]:
    place = (model,) if model else (one.config.model.name_or_path, one.config.model.revision)
    path = Path(fetch(*place)) / "config.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _stored_dtype(one: Trained, model: str | None) -> str:
    """The type of the base's files, in which it is merged and written."""
    config = _base_config(one, model)
    text = config.get("text_config") or {}
    names = (config.get("dtype"), config.get("torch_dtype"), text.get("dtype"), text.get("torch_dtype"))
    return next((name for name in names if name in _DTYPES), "float32")


def _merge(bench: Bench, one: Trained) -> Any:
    """The base's model with the adapter in its weights."""
    base = bench.base.model
    if getattr(base, "is_quantized", False) or getattr(base.config, "quantization_config", None):
        raise _quantised(one, bench.base.source)
    held = bench.hold(one)
    try:
        return held.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"cannot be merged: {said}", where=f"method {one.method}", fix="Leave --merged out") from None


def _fill_merged(draft: Path, bench: Bench, whole: Any, one: Trained) -> None:
    """Weights and configuration as transformers writes them; processor, tokenizer and template as the base has them."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        whole.save_pretrained(str(draft))
    finally:
        if bars:
            logging.enable_progress_bar()
    for pattern in FILES:
        for path in Path(str(bench.base.source)).glob(pattern):
            if ".safetensors" not in path.name and not (draft / path.name).exists():
                shutil.copyfile(path, draft / path.name)
    if one.config.model.chat_template:
        (draft / TEMPLATE).write_text(one.config.model.chat_template, encoding="utf-8")
    if changed := bench.base.collator.changed_settings():
        for name in ("preprocessor_config.json", "processor_config.json"):
            if (draft / name).exists():
                held = json.loads((draft / name).read_text(encoding="utf-8"))
                (held.get("image_processor", {}) if name.startswith("processor") else held).update(changed)
                (draft / name).write_text(json.dumps(held, indent=2), encoding="utf-8")
    settings = json.loads((one.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    (draft / CARD).write_text(_card(one, settings, merged=True), encoding="utf-8")


# -- the card ----------------------------------------------------------------------------------------------------------


def _base_name(one: Trained) -> str:
    return one.config.model.name_or_path


def _default(key: str) -> Any:
    return ModelConfig.model_fields[key].default


def _on_hub(name: str) -> bool:
    return name != EMBEDDED and not Path(name).expanduser().exists() and not name.startswith((".", "/", "~"))


def _started_from(one: Trained) -> dict[str, str]:
    """Name and digest of the adapter that the method started from; empty where it started fresh."""
    start = read_run(one.run).get("start") or {}
    return {"name": Path(start["from"]).name, "digest": start["digest"]} if start else {}


def _lineage(one: Trained) -> dict[str, Any]:
    """Where an adapter comes from, for `methods.NAME.from`, which starts from it."""
    return {
        "base": _base_name(one),
        "base_digest": one.base_digest,
        "run": one.config.name,
        "method": one.method,
        "chunk": one.chunk,
        "step": one.step,
        "adapter_digest": one.digest,
        "encoder": one.note.get("encoder"),
        "started_from": _started_from(one) or None,
    }


def _card(one: Trained, settings: dict[str, Any], merged: bool) -> str:
    """The model card: front matter that the hub reads, then what a person wants to know."""
    routed = settings.get("peft_type") != "LORA"
    base = _base_name(one)
    kind = str(settings.get("peft_type", "")).lower()
    front = ["---", f"library_name: {'transformers' if merged else 'peft'}"]
    front += [f"base_model: {base}"] if _on_hub(base) else []
    front += ["tags:", "- streamcvit", f"- {kind}", "---"]
    config, method = one.config, one.config.methods[one.method]
    record = RunRecord.load(one.run)
    grouped = ", batches of samples of like length" if config.learner.group_by_length else ""
    how = {"stream": "once in order", "joint": "once, the whole of it shuffled"}[method.order] + grouped
    learns = (method.train or config.train).model_dump(exclude_defaults=True)
    facts = {
        "base": f"`{base}`" + (f", revision `{config.model.revision}`" if config.model.revision else ""),
        "base digest": f"`{one.base_digest}`",
        "method": f"`{one.method}`: adapter `{method.adapter}`, strategy `{method.strategy}`, order `{method.order}`",
        "adapter options": ", ".join(f"`{key}={value}`" for key, value in method.options.items()) or "defaults",
        "stream": f"run `{config.name}`, source `{config.stream.source}`, {record.total_samples} samples in "
        f"{record.n_chunks} chunks of {len(record.tasks)} tasks, learned {how}",
        "index digest": f"`{record.run.get('index_digest', '')}`",
        "seed": str(config.seed),
        "learned": f"to the end of chunk {one.chunk} of {record.n_chunks}, step {one.step}"
        if one.note.get("boundary", True)
        else f"into chunk {one.chunk} of {record.n_chunks}, step {one.step}",
        "adapter digest": f"`{one.digest}`",
        "made with": f"streamcvit {__version__}",
    }
    model = config.model
    if learns:
        facts["what learns"] = ", ".join(f"`{key}={value}`" for key, value in learns.items())
    held = {key: value for key in _HELD if (value := getattr(model, key)) != _default(key)}
    if held:
        facts["base in the run"] = ", ".join(f"`{key}={value}`" for key, value in held.items())
    if model.chat_template:
        facts["chat template"] = f"the run's own, in `{TEMPLATE}`"
    bounds = {"max_pixels": model.max_pixels, "max_picture_tokens": model.max_picture_tokens}
    given = {**{key: value for key, value in bounds.items() if value}, **model.processor_options}
    if given:
        facts["pictures"] = ", ".join(f"`{key}={value}`" for key, value in given.items())
    if start := _started_from(one):
        facts["started from"] = f"`{start['name']}`, digest `{start['digest']}`"
    if told_task(record):
        facts["told"] = "the task of each sample" + (", to train and to answer" if ADAPTERS[kind].needs_task else "")
    if routed and not ADAPTERS[kind].needs_task:
        facts["instruction encoder"] = f"`{config.model.instruction_encoder}` (`{one.note.get('encoder')}`)"
    return "\n".join(
        [
            *front,
            "",
            f"# {config.name}: {one.method}, chunk {one.chunk}",
            "",
            "A vision-language model's adapter, learned online from a stream, every sample once."
            if not merged
            else "A vision-language model with a LoRA merged into it that was learned online from a stream.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in facts.items()),
            "",
            "## Scores",
            "",
            *_scores(record, one),
            "",
            "## How to load it",
            "",
            *_loading(base, config.model, kind, routed, merged),
            "",
            "## Licence",
            "",
            "None is stated here. That of the base and of the data say what may be chosen.",
            "",
        ]
    )


def _scores(record: RunRecord, one: Trained) -> list[str]:
    """The run's own scores of this commit, a row a task."""
    row = one.chunk - 1
    known = one.note.get("boundary", True) and 0 <= row < record.n_chunks
    columns = ("score", "low", "high", "n", "following")
    tables = [record.matrix(column=column)[row] for column in columns] if known else []
    lines = [
        f"| {task} | {score:.1f} | {low:.1f} to {high:.1f} | {int(n)} | {following:.2f} |"
        for task, score, low, high, n, following in zip(record.tasks, *tables, strict=False)
        if not math.isnan(score)
    ]
    if not lines:
        return ["The run has none of this commit (yet)."]
    average = record.ap_by_chunk()[row]
    found = record.metric("ap") if row == record.n_chunks - 1 else None
    within = f" [{found[1]:.1f}, {found[2]:.1f}]" if found and found[1] is not None and found[2] is not None else ""
    said = "" if math.isnan(average) else f", AP {average:.1f}{within}"
    return [
        f"Points on the run's own test sets with 95 % intervals{said}.",
        "",
        "| task | score | 95 % interval | samples | keeps to the demanded form |",
        "|---|---|---|---|---|",
        *lines,
    ]


def _loading(base: str, model: ModelConfig, kind: str, routed: bool, merged: bool) -> list[str]:
    if merged:
        lines = [
            "from transformers import AutoModelForImageTextToText, AutoProcessor",
            'model = AutoModelForImageTextToText.from_pretrained("THIS FOLDER", dtype="auto")',
            'processor = AutoProcessor.from_pretrained("THIS FOLDER")',
        ]
        return ["```python", *lines, "```"]
    how = {"revision": repr(model.revision)} if model.revision else {}
    how |= {_HELD[key]: repr(value) for key in _HELD if (value := getattr(model, key)) != _default(key)}
    rules = (model.max_pixels, model.max_picture_tokens, model.processor_options)
    if any(rules):
        how["pictures"] = f"PictureRules{rules!r}"
    if model.template_options:
        how["template_options"] = repr(model.template_options)
    if model.chat_template:
        how["chat_template"] = f'open("THIS FOLDER/{TEMPLATE}").read()'
    lines = [
        "from peft import PeftModel; from streamcvit.models import load_base",
        f"base = load_base({base!r}{''.join(f', {key}={value}' for key, value in how.items())})",
        'model = PeftModel.from_pretrained(base.model, "THIS FOLDER")',
    ]
    if "pictures" in how:
        lines.insert(1, "from streamcvit.models.pictures import PictureRules")
    told = []
    if routed:
        lines[0] += f"; import streamcvit.adapters  # makes {kind} known to PEFT"
        by = "It routes by picture and instruction"
        if ADAPTERS[kind].needs_task:
            by = "It must be told the task of each sample (`tasks` in its configuration)"
        told = [
            "",
            f"{by}, so its forward and `generate` take `routing=`; "
            "`streamcvit.evaluation.Generator(base).answer` does that.",
        ]
    return ["```python", *lines, "```", *told]
