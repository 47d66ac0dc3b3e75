"""The field's names stand for what the field computes: published rows, and Avalanche's numbers for a fixed matrix."""

from __future__ import annotations

import numpy as np
import pytest

from streamcvit.evaluation import summarise
from streamcvit.evaluation.matrix import METRICS
from streamcvit.evaluation.names import ALIASES, AVALANCHE, ours

NAN = float("nan")
MATRIX = np.array([[80, NAN, NAN, NAN], [70, 60, NAN, NAN], [75, 40, 90, NAN], [50, 45, 85, 30]])
# The `Forgetting` and `BWT` classes of avalanche-lib 0.6.0 (avalanche/evaluation/metrics/forgetting_bwt.py), given each
# score as `update(task, score, initial=first)`; its stream metrics are the means over tasks that have both scores.
AVALANCHE_SAYS = {"StreamForgetting": {0: 30.0, 1: 15.0, 2: 5.0}, "StreamBWT": {0: -30.0, 1: -15.0, 2: -5.0}}


@pytest.fixture(scope="module")
def found():
    rows = {f"t{task}": np.repeat(MATRIX[:, [task]], 4, axis=1) for task in range(4)}
    return summarise(rows, None, np.eye(4), set(rows), draws=10).metrics


@pytest.mark.parametrize("name", list(AVALANCHE))
def test_avalanche_gives_the_same(found, name):
    metric, factor = AVALANCHE[name]
    assert factor * found[metric].value == pytest.approx(np.mean(list(AVALANCHE_SAYS[name].values())))


def test_every_name_of_the_field_is_one_of_our_metrics(found):
    assert set(ALIASES.values()) <= set(METRICS)
    assert ours("MAA") == "map" and ours("bwt_last") == "bwt_last"
    assert found[ours("Last")].value == pytest.approx((50 + 45 + 85 + 30) / 4)
    assert found[ours("Avg")].value == pytest.approx((80 + 65 + 205 / 3 + 52.5) / 4)
    assert found[ours("MFT")].value == pytest.approx((80 + 60 + 90 + 30) / 4)
    assert found[ours("bwt_max")].value == pytest.approx((-30 - 15 - 5 + 0) / 4)


@pytest.mark.parametrize(
    ("mft", "last", "bwt"),
    [
        (64.98, 53.00, -14.97),
        (65.16, 55.54, -12.03),
        (66.06, 54.88, -13.96),
        (65.01, 58.51, -8.13),
        (69.64, 69.63, -0.01),
    ],
)
def test_rows_of_mllm_cl_hold_together_under_our_formulae(mft, last, bwt):
    """LoRA-FT, O-LoRA, CL-MoE, SEFE, MR-LoRA on the five tasks of DCL: BWT = (MFN - MFT) * 5 / 4."""
    rest = (5 * last - mft) / 4
    rows = {f"t{i}": np.full((5, 4), mft) for i in range(5)}
    for task in range(4):
        rows[f"t{task}"][task + 1 :] = rest
    told = summarise(rows, None, np.eye(5), set(rows), draws=10).metrics
    assert told[ours("MFT")].value == pytest.approx(mft) and told[ours("MFN")].value == pytest.approx(last)
    assert told[ours("BWT")].value == pytest.approx(bwt, abs=0.018)  # three rounded numbers
