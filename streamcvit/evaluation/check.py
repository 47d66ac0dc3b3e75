"""Whether the samples of a test set have what their task's rules read of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from streamcvit.data.sample import Sample, TaskSpec
from streamcvit.evaluation.follow import FOLLOW_RULES
from streamcvit.evaluation.needs import needs_of
from streamcvit.evaluation.scorers import SCORERS, Scorer
from streamcvit.evaluation.strcvit import STRCVIT_SCORERS


def check_test_set(spec: TaskSpec, samples: Iterable[Sample], scorer: Scorer | None = None) -> Iterator[Sample]:
    """The samples as they come; nothing is held.

    Args:
        spec: of the task.
        samples: its test set.
        scorer: the task's; one that is not of the package is tried on the first sample.

    Raises:
        UserError: one lacks in `meta` what a rule of the task reads; the message names sample and key, and says what
            is expected.
    """
    strict = scorer or SCORERS[spec.scorer]
    tried = spec.scorer in SCORERS
    rules = [strict, FOLLOW_RULES[spec.follow]]
    if spec.strcvit:
        rules.append(STRCVIT_SCORERS[spec.strcvit])
    readers = dict.fromkeys(reader for rule in rules for reader in needs_of(rule))
    for sample in samples:
        for read in readers:
            read(sample)
        if not tried:
            strict([sample.answer], [sample])
            tried = True
        yield sample
