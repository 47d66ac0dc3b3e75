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
    ("llava", 256, 4, 128, "lora", "float32", "sdpa", {}),
    ("llava", 256, 8, 128, "lora", "float32", "sdpa", {}),
    ("llava", 256, 8, 128, "lora", "float32", "sdpa", {"gradient_checkpointing": True}),
    ("llava", 512, 4, 384, "lora", "float32", "sdpa", {"micro_batch": 1}),
    ("llava", 256, 4, 256, "lora", "float32", "eager", {}),
    ("llava", 256, 4, 128, "lora", "bfloat16", "sdpa", {}),
    ("llava", 256, 4, 128, "moelora", "float32", "sdpa", {}),
    ("llava", 256, 4, 128, "smolora", "float32", "sdpa", {}),
    ("llava", 256, 4, 64, "smolora", "bfloat16", "sdpa", {"gradient_checkpointing": True}),
    ("llava", 256, 4, 128, "strlora", "float32", "sdpa", {"micro_batch": 2}),
    ("qwen2_5_vl", 512, 4, 128, "lora", "float32", "sdpa", {}),
    ("qwen2_5_vl", 512, 6, 128, "smolora", "float32", "sdpa", {"gradient_checkpointing": True, "micro_batch": 2}),
    ("qwen2_5_vl", 256, 6, 64, "strlora", "bfloat16", "sdpa", {}),
    ("qwen2_5_vl", 1024, 4, 128, "lora", "float32", "sdpa", {"gradient_checkpointing": True}),
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
        base,
        {"tiny": TaskSpec("tiny", "exact", "single_word", max_new_tokens=16)},
        {"tiny": samples},
        BATCH,
        instruction_encoder=encoder,
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
        "| model | rows of | adapter | settings | learner: estimated, measured | ratio "
        "| evaluator: estimated, measured | ratio |",
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


def llava() -> Any:
    """LLaVA-1.5-7B: CLIP-L/336 and Vicuna-7B."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    tower = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336,
        patch_size=14,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    return LlavaConfig(vision_config=tower, text_config=text)


def qwen() -> Any:
    """Qwen2.5-VL-7B."""
    from transformers import Qwen2_5_VLConfig

    rope = {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [16, 24, 24]}
    return Qwen2_5_VLConfig(
        text_config={**_QWEN, "vocab_size": 152064, "rope_parameters": rope},
        vision_config={
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
            "out_hidden_size": 3584,
        },
    )  # fmt: skip


def internvl() -> Any:
    """InternVL3-8B: InternViT-300M and Qwen2.5-7B."""
    from transformers import InternVLConfig

    return InternVLConfig(
        text_config={"model_type": "qwen2", **_QWEN, "vocab_size": 151674},
        vision_config={
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": [448, 448], "patch_size": [14, 14],
        },
    )  # fmt: skip


_QWEN = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS = {"LLaVA-1.5-7B": llava, "Qwen2.5-VL-7B": qwen, "InternVL3-8B": internvl}
# A 640 x 480 picture as the published processors take it (docs/models.md), and 64 tokens of text, 4 of them answered.
SHAPES = {
    "LLaVA-1.5-7B": Row(576 + 64, 576, 4, 576, 3 * 336**2),
    "Qwen2.5-VL-7B": Row(391 + 64, 391, 4, 4 * 391, 4 * 391 * 1176),
    "InternVL3-8B": Row(3328 + 64, 3328, 4, 13 * 1024, 13 * 3 * 448**2),
}
# model, GiB of the card, quantize, micro_batch, gradient_checkpointing, evaluation.batch_size
CARDS: list[tuple[str, int, str, int, bool, int]] = [
    ("LLaVA-1.5-7B", 24, "4bit", 1, True, 4),
    ("LLaVA-1.5-7B", 48, "none", 0, True, 16),
    ("LLaVA-1.5-7B", 80, "none", 0, False, 16),
    ("Qwen2.5-VL-7B", 24, "4bit", 1, True, 4),
    ("Qwen2.5-VL-7B", 48, "none", 0, True, 16),
    ("Qwen2.5-VL-7B", 80, "none", 0, False, 64),
    ("InternVL3-8B", 24, "4bit", 1, True, 1),
    ("InternVL3-8B", 48, "8bit", 2, True, 4),
    ("InternVL3-8B", 80, "none", 4, True, 8),
]


def card(name: str, quantize: str, micro: int, checkpointing: bool, batch: int) -> Memory:
    """What learner and evaluator of SMoLoRA need for one of `CONFIGS`, batches of 8."""
    from transformers import AutoModelForImageTextToText

    config = RunConfig(
        model=ModelConfig(dtype="bfloat16").model_copy(update={"quantize": quantize}),
        learner=LearnerConfig(micro_batch=micro, gradient_checkpointing=checkpointing),
        evaluation=EvaluationConfig(batch_size=batch),
    )
    shape = CONFIGS[name]()

    def bare() -> torch.nn.Module:
        loader: Any = AutoModelForImageTextToText
        with torch.device("meta"):
            return loader.from_config(shape)

    return estimate(config, "smolora", bare, SHAPES[name], device="cuda")


def cards_table() -> str:
    """The Markdown table of docs/models.md."""
    head = ["model", "card", "`model.quantize`", "`learner.micro_batch`", "`learner.gradient_checkpointing`"]
    head += ["`evaluation.batch_size`", "learner", "evaluator", "together"]
    return "\n".join([f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *map(card_line, CARDS)])


def card_line(row: tuple[str, int, str, int, bool, int]) -> str:
    """A row of that table."""
    name, whole, quantize, micro, checkpointing, batch = row
    memory = card(name, quantize, micro, checkpointing, batch)
    assert memory.learner is not None
    figures = [f"{count / GIB:.1f} GiB" for count in (memory.learner.total, memory.evaluator.total, memory.total)]
    cells = [name, f"{whole} GB", quantize, str(micro), str(checkpointing).lower(), str(batch), *figures]
    return f"| {' | '.join(cells)} |"


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
        if given.only is None:
            about = {"date": f"{datetime.date.today()}", "machine": machine(), "torch": torch.__version__}
            RESULT.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
        print({key: rows[-1][key] for key in ("family", "adapter", "ratio", "seconds")}, file=sys.stderr)
    print(measured_table(rows))


if __name__ == "__main__":
    main()
