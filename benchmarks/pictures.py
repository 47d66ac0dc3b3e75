"""What pictures take with the processors of known models, as they are and under `model.max_picture_tokens`.

    python benchmarks/pictures.py

Processors are built with the sizes that the models' own files name and a byte tokenizer; no weights are needed. Counts
are exact and the same on every machine. Written to results/pictures.json; then the table of docs/models.md is printed.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "pictures.json"
SIZES = ((336, 336), (640, 480), (1024, 768), (4000, 3000))
BOUNDS = (1536, 1024, 512)
BOUNDED = (640, 480)


def processors() -> Iterator[tuple[str, Any]]:
    """Names of models, and processors with their sizes."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from families import QWEN, QWEN_PLACE, _chat, _of, _pixels, tiny_tokenizer

    from streamcvit.models.processor import image_only

    def square(side: int) -> dict[str, int]:
        return {"height": side, "width": side}

    plain = partial(tiny_tokenizer, image_token="<image>")
    clip = {"size": {"shortest_edge": 336}, "crop_size": square(336)}
    chat = _chat("<image>")
    tower = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    yield "LLaVA-1.5", _of("LlavaProcessor")(_pixels("clip", "CLIP", **clip), plain(), chat_template=chat, **tower)
    grid = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    pixels = _pixels("llava_next", "LlavaNext", image_grid_pinpoints=grid, **clip)
    yield "LLaVA-NeXT", _of("LlavaNextProcessor")(pixels, plain(), chat_template=chat, **tower)
    pixels = _pixels("llava_onevision", "LlavaOnevision", size=square(384))
    yield (
        "LLaVA-OneVision",
        image_only(_of("LlavaOnevisionProcessor"))(
            pixels, plain(video_token="<video>"), num_image_tokens=729, vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_9", chat_template=chat,
        ),
    )  # fmt: skip
    for name, kind, patch, edges in (
        ("Qwen2.5-VL", "Qwen2_5_VL", 14, (3136, 12_845_056)),
        ("Qwen3-VL", "Qwen3VL", 16, (65_536, 16_777_216)),
    ):
        size = dict(zip(("shortest_edge", "longest_edge"), edges, strict=True))
        pixels = _pixels("qwen2_vl", "Qwen2VL", patch_size=patch, size=size)
        words = tiny_tokenizer(**QWEN)
        yield name, image_only(_of(f"{kind}Processor"))(pixels, words, chat_template=_chat(QWEN_PLACE))
    words = tiny_tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    pixels = _pixels("got_ocr2", "GotOcr2", size=square(448), crop_to_patches=True, max_patches=12)
    yield (
        "InternVL3",
        image_only(_of("InternVLProcessor"))(pixels, words, image_seq_length=256, chat_template=_chat("<IMG_CONTEXT>")),
    )
    words = tiny_tokenizer(image_token="<image_soft>", boi_token="<boi>", eoi_token="<eoi>")
    pixels = _pixels("gemma3", "Gemma3", size=square(896))
    yield "Gemma-3", _of("Gemma3Processor")(pixels, words, image_seq_length=256, chat_template=_chat("<boi>"))
    tiles = {f"row_{r}_col_{c}_token": f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)}
    words = plain(
        fake_image_token="<fake_token_around_image>", global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>", **tiles,
    )  # fmt: skip
    pixels = _pixels("idefics3", "Idefics3", size={"longest_edge": 1456}, max_image_size={"longest_edge": 364})
    yield "Idefics3", _of("Idefics3Processor")(pixels, words, image_seq_len=169, chat_template=chat)
    pixels = _pixels("smolvlm", "SmolVLM", size={"longest_edge": 2048}, max_image_size={"longest_edge": 512})
    small = image_only(_of("SmolVLMProcessor"))(
        pixels, words, video_processor=None, image_seq_len=64, chat_template=chat
    )
    yield "SmolVLM-500M", small


def measure(processor: Any) -> dict[str, Any]:
    """Image tokens of pictures of `SIZES`, and of one of `BOUNDED` under each of `BOUNDS` (or why not)."""
    from streamcvit.errors import UserError
    from streamcvit.models.collate import Collator
    from streamcvit.models.pictures import PictureRules

    free = Collator(processor)
    found: dict[str, Any] = {"free": [free.picture_row(*size)[1] for size in SIZES], "bounded": {}}
    for bound in BOUNDS:
        try:
            held = Collator(processor, pictures=PictureRules(max_tokens=bound))
            found["bounded"][str(bound)] = [held.picture_row(*BOUNDED)[1], held.lowered]
        except UserError as error:
            found["bounded"][str(bound)] = [None, str(error.what)]
    return found


def table(record: dict[str, Any]) -> str:
    """The Markdown table of a record."""
    head = ["model", *(f"{w}x{h}" for w, h in SIZES), *(f"{BOUNDED[0]}x{BOUNDED[1]} under {b}" for b in BOUNDS), "by"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, row in record.items():
        under = [row["bounded"][str(bound)] for bound in BOUNDS]
        counts = [*row["free"], *("refused" if count is None else count for count, _ in under)]
        ways = dict.fromkeys(how.partition(" ")[0] for count, how in under if count and how)
        scaled = any(count not in (None, row["free"][SIZES.index(BOUNDED)]) and not how for count, how in under)
        by = [*(["scaling"] if scaled else []), *(f"`{way}`" for way in ways)]
        lines.append(f"| {name} | {' | '.join(map(str, counts))} | {', '.join(by)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    record = {name: measure(processor) for name, processor in processors()}
    RESULT.write_text(json.dumps(record, indent=2) + "\n")
    print(table(record))
