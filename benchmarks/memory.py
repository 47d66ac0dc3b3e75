"""Memory: how far the estimate (`streamcvit.memory`) is from what runs hold, and settings for 7-8 B models by estimate.

    python benchmarks/memory.py measure     real steps and answers of models built from config, on the CPU (minutes)
    python benchmarks/memory.py cards       the table of docs/models.md: 7-8 B models, without weights (seconds)

`measure` counts every tensor that lives at the same time while a learner takes two steps and an evaluator answers a
task: bytes that do not depend on the machine. Rows are written to results/memory.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from streamcvit.adapters import InstructionEncoder, attach
from streamcvit.config import EvaluationConfig, LearnerConfig, MethodConfig, ModelConfig, RunConfig, StreamConfig
from streamcvit.data.sample import Sample, TaskSpec
from streamcvit.evaluation import Evaluator
from streamcvit.learning import STRATEGIES, OnlineLearner
from streamcvit.memory import Memory, Row, estimate, row_of
from streamcvit.models.base import Base
from streamcvit.models.batch import Batch
from streamcvit.models.dryrun import Held
from streamcvit.models.vision import vision_dim

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "memory.json"
GIB = 1 << 30
BATCH = 4
FAMILIES = {"llava": "tiny_llava", "qwen2_5_vl": "tiny_qwen25vl"}
# family, width, layers, question's bytes, adapter, dtype, attention, further settings of the learner
ROWS: list[tuple[str, int, int, int, str, str, str, dict[str, Any]]] = [
    ("llava", 512, 4, 256, "lora", "float32", "sdpa", {}),
    ("llava", 512, 8, 256, "lora", "float32", "sdpa", {}),
    ("llava", 512, 8, 256, "lora", "float32", "sdpa", {"gradient_checkpointing": True}),
    ("llava", 512, 4, 900, "lora", "float32", "sdpa", {"micro_batch": 1}),
    ("llava", 512, 4, 512, "lora", "float32", "eager", {}),
    ("llava", 512, 4, 512, "lora", "bfloat16", "sdpa", {}),
    ("llava", 512, 4, 256, "moelora", "float32", "sdpa", {}),
    ("llava", 512, 4, 256, "smolora", "float32", "sdpa", {}),
    ("llava", 512, 4, 256, "smolora", "bfloat16", "sdpa", {"gradient_checkpointing": True}),
    ("llava", 512, 4, 256, "strlora", "float32", "sdpa", {"micro_batch": 2}),
    ("qwen2_5_vl", 512, 4, 512, "lora", "float32", "sdpa", {}),
    ("qwen2_5_vl", 512, 6, 512, "smolora", "float32", "sdpa", {"gradient_checkpointing": True, "micro_batch": 2}),
    ("qwen2_5_vl", 1024, 4, 256, "strlora", "bfloat16", "sdpa", {}),
    ("qwen2_5_vl", 1536, 4, 256, "lora", "bfloat16", "sdpa", {"gradient_checkpointing": True}),
]


def build(family: str, width: int, layers: int, dtype: torch.dtype, attention: str) -> tuple[Any, Any]:
    """A model of the tests' family with the proportions of a real one, and its processor."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    import models

    model, processor = getattr(models, FAMILIES[family])()
    config = model.config
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = width, 11 * width // 4, layers
    text.num_attention_heads = text.num_key_value_heads = width // 64
    text.vocab_size, text.max_position_embeddings, text.head_dim = 32000, 4096, 64
    if family == "qwen2_5_vl":
        text.num_key_value_heads = width // 256
        text.layer_types = ["full_attention"] * layers
        text.rope_parameters["mrope_section"] = [8, 12, 12]
        config.vision_config.out_hidden_size = width
    config._attn_implementation = attention
    torch.manual_seed(0)
    return type(model)(config).to(dtype), processor


def samples_of(count: int, question: int) -> list[Sample]:
    """Samples whose rows are about that long."""
    from models import tiny_samples

    made = tiny_samples(count, sizes=((64, 64),))
    return [
        Sample(one.sample_id, "tiny", ("what is it " * question)[:question], one.instruction, ("red",), one.pictures)
        for one in made
    ]


def measure(row: tuple[str, int, int, int, str, str, str, dict[str, Any]]) -> dict[str, Any]:
    """Estimated and measured bytes beyond the base's weights, of a learner's second step and of an evaluator."""
    family, width, layers, question, adapter, kind, attention, more = row
    dtype = getattr(torch, kind)
    began = time.perf_counter()
    model, processor = build(family, width, layers, dtype, attention)
    base = Base(model, processor)
    samples = samples_of(BATCH, question)
    inputs = base.collator.train(samples)
    config = RunConfig(
        model=ModelConfig(dtype=kind, attention=attention),
        learner=LearnerConfig(batch_size=BATCH, **more),
        methods={"m": MethodConfig(adapter=adapter)},
        stream=StreamConfig(test_samples=1),
        evaluation=EvaluationConfig(batch_size=BATCH),
    )

    def bare() -> torch.nn.Module:
        model.config._attn_implementation = attention
        with torch.device("meta"):
            return type(model)(model.config)

    memory = estimate(config, "m", bare, row_of(inputs, model), local=True, device="cpu")
    assert memory.learner is not None
    encoder = InstructionEncoder.from_model(base.model, base.tokenizer)
    with Held() as held:
        adapted = attach(base.model, adapter, sizes={"instruction_dim": encoder.dim, "visual_dim": vision_dim(model)})
        routed = adapter in ("smolora", "strlora")
        learner = OnlineLearner(
            base, adapted, STRATEGIES["sequential"](0), encoder=encoder if routed else None,
            micro_batch=config.learner.micro_batch, gradient_checkpointing=config.learner.gradient_checkpointing,
        )  # fmt: skip
        for step in range(2):
            given = base.collator.train(samples)
            positions = tuple(range(step * BATCH, (step + 1) * BATCH))
            learner.learn(Batch(step * BATCH, (step + 1) * BATCH, 0, positions, tuple(samples), given))
    learned = held.most
    kept = held.now
    learner.optimizer.zero_grad(set_to_none=True)
    evaluator = Evaluator(
        base, {"tiny": TaskSpec("tiny", "exact", "single_word", max_new_tokens=16)}, {"tiny": samples}, BATCH, instruction_encoder=encoder
    )
    with Held() as held:
        evaluator.evaluate(adapted, "tiny")
    answered = held.most
    expected = {
        "learner": memory.learner.total - memory.learner.parts["weights"] - memory.learner.parts["process"],
        "evaluator": sum(
            memory.evaluator.parts[part] for part in ("key-value cache", "activations", "vision", "picture features")
        ),
    }
    found = {"learner": learned, "evaluator": answered}
    shape = row_of(inputs, model)
    return {
        "family": family, "hidden": width, "layers": layers, "tokens": shape.tokens, "adapter": adapter, "dtype": kind,
        "attention": attention, "settings": more, "weights": memory.learner.parts["weights"], "estimated": expected,
        "measured": found, "kept": kept, "ratio": {who: round(expected[who] / found[who], 3) for who in found},
        "seconds": round(time.perf_counter() - began, 1), "row": asdict(shape),
    }  # fmt: skip


def measured_table(rows: list[dict[str, Any]]) -> str:
    """Rows for people, in MiB."""
    lines = [
        "| model | rows of | adapter | settings | learner: estimated, measured | ratio | evaluator: estimated, measured | ratio |",
        "|" + " --- |" * 8,
    ]
    for row in rows:
        named = [row["dtype"], *([row["attention"]] if row["attention"] != "sdpa" else [])]
        named += [f"{key} {str(value).lower()}" for key, value in row["settings"].items()]
        cells = [f"{row['family']}, {row['hidden']} x {row['layers']}", f"{row['tokens']}", row["adapter"]]
        cells.append(", ".join(named))
        for who in ("learner", "evaluator"):
            mib = [round(row[side][who] / 2**20) for side in ("estimated", "measured")]
            cells += [f"{mib[0]}, {mib[1]} MiB", f"{row['ratio'][who]:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=("measure", "cards"))
    parser.add_argument("--only", type=int, help="one row of `measure`, from 0; nothing is written")
    given = parser.parse_args()
    if given.what == "cards":
        print(cards_table())
        return
    from streamcvit.run.folder import machine

    torch.set_num_threads(1)
    chosen = ROWS if given.only is None else ROWS[given.only : given.only + 1]
    rows = []
    for one in chosen:
        rows.append(measure(one))
        print({key: rows[-1][key] for key in ("family", "adapter", "ratio", "seconds")}, file=sys.stderr)
    if given.only is None:
        about = {"date": f"{datetime.date.today()}", "machine": machine(), "torch": torch.__version__}
        RESULT.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print(measured_table(rows))


if __name__ == "__main__":
    main()
