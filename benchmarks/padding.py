"""What of a batch is padding, in the stream's order and with `learner.group_by_length`, side by side.

    python benchmarks/padding.py [--config PIPELINE] [--set KEY=VALUE ...] [--batch 8 --batch 32]

Without a pipeline: the embedded stream (four chunks of 480 samples), and a made one of 4 x 480 samples whose questions
have 4 to 400 words (log-normal) and whose pictures number none to two. Tokens are counted as the learner gets them,
sample by sample; a batch is as wide as its longest sample.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from streamcvit.data.sample import Picture, Sample, TaskSpec
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.shards.write import write_stream
from streamcvit.learning import Schedule
from streamcvit.learning.grouping import lengths_of, picture_tokens
from streamcvit.models.collate import Collator, UnusableSamples
from streamcvit.pipeline import builtin, load_config
from streamcvit.run.folder import machine
from streamcvit.run.loading import collation
from streamcvit.run.stream import prepare_stream

CHUNKS, SAMPLES = 4, 480
TASK = TaskSpec("made", "exact", "single_word")


def made(seed: int = 0) -> Iterator[tuple[int, Sample]]:
    """(chunk, sample) of the made stream."""
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(buffer, "PNG")
    picture = Picture(buffer.getvalue())
    for number in range(CHUNKS * SAMPLES):
        words = int(np.clip(rng.lognormal(3.3, 0.9), 4, 400))
        text = " ".join(rng.choice(["what", "colour", "is", "the", "cross", "left", "of"], words))
        pictures = (picture,) * int(rng.choice([0, 1, 1, 1, 2]))
        yield number // SAMPLES, Sample(f"made-{number}", "made", text, "One word.", ("red",), pictures)


def tokens_of(index: StreamIndex, collator: Collator) -> np.ndarray:
    """Tokens of each sample; 0 of one that cannot be learned from."""
    found = np.zeros(len(index), int)
    with ShardReader(index) as reader:
        for place, row in enumerate(reader.read(range(len(index)))):
            if isinstance(row, Sample):
                try:
                    found[place] = int(collator.train([row]).tensors["attention_mask"].sum())
                except UnusableSamples:
                    continue
    return found


def padding(schedule: Schedule, tokens: np.ndarray) -> tuple[int, float]:
    """Tokens of all batches, padding included, and the share of them that is padding."""
    cursor, total = 0, 0
    while cursor < len(schedule):
        stop = schedule.next_cursor(cursor)
        lengths = tokens[schedule.order[cursor:stop]]
        total += int(lengths.max() * (lengths > 0).sum())
        cursor = stop
    return total, 1 - tokens.sum() / total


def report(name: str, index: StreamIndex, collator: Collator, batches: list[int], seed: int) -> None:
    """Print a line for each batch size."""
    tokens, picture = tokens_of(index, collator), picture_tokens(collator)
    ranks = [np.argsort(np.argsort(values)) for values in (tokens, lengths_of(index, picture))]
    agree = np.corrcoef(*ranks)[0, 1]
    low, mid, high = np.percentile(tokens, (5, 50, 95))
    print(f"{name}: {len(index)} samples of {low:.0f} / {mid:.0f} / {high:.0f} tokens (5, 50, 95 %); ", end="")
    print(f"rank correlation of tokens with what the index tells {agree:.2f}")
    for size in batches:
        (plain, share), (less, shared) = (
            padding(Schedule.of(index, size, "stream", seed, lengths), tokens)
            for lengths in (None, lengths_of(index, picture))
        )
        print(f"  batch {size:3d}: padding {share:5.1%} -> {shared:5.1%}, tokens a stream {plain} -> {less} ", end="")
        print(f"({less / plain:.2f}x)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", help="a pipeline whose stream and model are taken in place of the two streams")
    parser.add_argument("--set", action="append", default=[], help="a setting of it")
    parser.add_argument("--batch", type=int, action="append", help="samples a batch (8 and 32)")
    arguments = parser.parse_args()
    batches = arguments.batch or [8, 32]
    small = [f"stream.scenario.chunks={CHUNKS}", f"stream.scenario.samples_per_chunk={SAMPLES}"]
    given = Path(arguments.config) if arguments.config else builtin("embedded")
    config = load_config(given, arguments.set if arguments.config else [*small, *arguments.set])
    print(machine())
    collator = Collator.from_pretrained(config.model.name_or_path, **collation(config)).unbounded()
    with tempfile.TemporaryDirectory() as place:
        name = arguments.config or "embedded stream"
        report(name, prepare_stream(config, Path(place, "stream")), collator, batches, config.seed)
        if not arguments.config:
            tests = {"made": [Sample("test", "made", "what", "One word.", ("red",))]}
            index = write_stream(Path(place, "made"), made(), {"made": TASK}, tests, 0)
            report("made stream", index, collator, batches, config.seed)


if __name__ == "__main__":
    main()
