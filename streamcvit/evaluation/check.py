"""Whether the samples of a test set have what their task's rules read of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from streamcvit.data.sample import Sample, TaskSpec
from streamcvit.evaluation.follow import FOLLOW_RULES
from streamcvit.evaluation.needs import needs_of
from streamcvit.evaluation.scorers import SCORERS
from streamcvit.evaluation.strcvit import STRCVIT_SCORERS


def check_test_set(spec: TaskSpec, samples: Iterable[Sample]) -> Iterator[Sample]:
    """The samples as they come; nothing is held.

    Raises:
        UserError: one lacks in `meta` what a rule of the task reads; the message names sample and key, and says what
            is expected.
    """
    rules = [SCORERS[spec.scorer], FOLLOW_RULES[spec.follow]]
    if spec.strcvit:
        rules.append(STRCVIT_SCORERS[spec.strcvit])
    readers = dict.fromkeys(reader for rule in rules for reader in needs_of(rule))
    for sample in samples:
        for read in readers:
            read(sample)
        yield sample
