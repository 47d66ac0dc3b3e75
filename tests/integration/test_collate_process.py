"""What a collator gives does not depend on the process that asks."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from streamcvit.models.batch import ModelInputs
from streamcvit.models.collate import Collator
from tests.models import save, tiny_gemma3, tiny_samples

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from tests.integration.test_collate_process import fingerprint
from tests.models import tiny_samples
from streamcvit.models.collate import Collator
collator = Collator.from_pretrained(sys.argv[1])
print(fingerprint(collator.train(tiny_samples(5))), fingerprint(collator.prompts(tiny_samples(5))))
"""


def fingerprint(inputs: ModelInputs) -> str:
    digest = hashlib.sha256()
    masks = {"answer": inputs.answer_mask, "prompt": inputs.prompt_mask, "image": inputs.image_mask}
    for name, tensor in sorted({**inputs.tensors, **masks}.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def test_fresh_processes_with_other_hash_seeds_and_thread_counts_give_the_same_bits(tmp_path):
    folder = save(tiny_gemma3(), tmp_path)
    collator = Collator.from_pretrained(folder)
    here = [fingerprint(collator.train(tiny_samples(5))), fingerprint(collator.prompts(tiny_samples(5)))]
    for seed, threads, parallel in (("1", "1", "false"), ("2", "2", "true")):
        settings = {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": parallel}
        found = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(folder)],
            env=os.environ | settings | {"PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.split() == here
