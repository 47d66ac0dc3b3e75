"""Every summary of the score matrix, against numbers worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamcvit.errors import UserError
from streamcvit.evaluation.matrix import METRICS, WHERE_DEFINED, Plan, metrics, summarise

NAN = float("nan")


def constant_rows(matrix: dict[str, list[float]], n: int = 4) -> dict[str, np.ndarray]:
    """Per-sample points whose row means are the matrix (task -> score after each chunk)."""
    return {task: np.repeat(np.array(scores, dtype=float)[:, None], n, axis=1) for task, scores in matrix.items()}


@pytest.fixture
def plan() -> np.ndarray:
    """Four chunks; task a comes first and last, b second, c third."""
    return np.array([[5, 0, 0], [0, 5, 0], [0, 0, 5], [2, 0, 0]])


@pytest.fixture
def by_hand() -> dict[str, list[float]]:
    return {"a": [80, 90, 70, 75], "b": [NAN, 50, 30, 40], "c": [NAN, NAN, 90, 60]}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ap", (75 + 40 + 60) / 3),
        ("map", (80 + 70 + 190 / 3 + 175 / 3) / 4),
        ("mfn", (75 + 40 + 60) / 3),
        ("mft", (80 + 50 + 90) / 3),
        ("bwt_first", ((75 - 80) + (40 - 50) + (60 - 90)) / 3),
        ("bwt_last", ((40 - 50) + (60 - 90)) / 2),
        ("bwt_max", ((75 - 90) + (40 - 50) + (60 - 90)) / 3),
        ("maf_cross", (-10 + (20 + 20) / 2 + (15 + 10 + 30) / 3) / 3),
        ("maf_best", (-10 + (20 + 20) / 2 + (15 + 10 + 30) / 3) / 3),
        ("maf_first", (-10 + (10 + 20) / 2 + (5 + 10 + 30) / 3) / 3),
        ("maf_previous", (-10 + (20 + 20) / 2 + (-5 - 10 + 30) / 3) / 3),
    ],
)
def test_metrics_by_hand(name, value, plan, by_hand):
    found = summarise(constant_rows(by_hand), None, plan, set(by_hand)).metrics[name]
    assert found == pytest.approx((value, value, value))


def test_average_and_seen_tasks_by_chunk(plan, by_hand):
    summary = summarise(constant_rows(by_hand), None, plan, set(by_hand))
    assert summary.ap_by_chunk == pytest.approx([80, 70, 190 / 3, 175 / 3])
    assert summary.seen == [["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]
    assert summary.forgetting == pytest.approx({"a": 15, "b": 10, "c": 30})


def test_scores_of_tasks_not_yet_learned_change_nothing_but_forward_transfer(plan, by_hand):
    early = {"a": by_hand["a"], "b": [35, 50, 30, 40], "c": [99, 25, 90, 60]}
    zero_shot = {"a": np.full(4, 10.0), "b": np.full(4, 20.0), "c": np.full(4, 30.0)}
    without = summarise(constant_rows(by_hand), None, plan, set(by_hand), zero_shot=zero_shot)
    found = summarise(constant_rows(early), None, plan, set(by_hand), zero_shot=zero_shot)
    assert "fwt" not in without.metrics
    assert found.metrics.pop("fwt").value == pytest.approx(((35 - 20) + (25 - 30)) / 2)
    for name, estimate in without.metrics.items():
        assert found.metrics[name] == pytest.approx(estimate, nan_ok=True)
    assert found.forgetting == without.forgetting


def test_a_task_outside_the_average_is_in_the_matrix_but_in_no_metric_of_scores(plan, by_hand):
    captions = {**by_hand, "d": [NAN, 150, 140, 120]}
    plan = np.column_stack([plan, [0, 3, 0, 0]])
    summary = summarise(constant_rows(captions), None, plan, set(by_hand))
    alone = summarise(constant_rows(by_hand), None, plan[:, :3], set(by_hand))
    assert summary.matrix[3].tolist() == [75, 40, 60, 120]
    assert summary.ap_by_chunk.tolist() == alone.ap_by_chunk.tolist()
    assert {name: m.value for name, m in summary.metrics.items() if name != "mif"} == pytest.approx(
        {name: m.value for name, m in alone.metrics.items() if name != "mif"}
    )
    assert summary.forgetting["d"] == 30


def test_following_is_averaged_over_seen_tasks_then_over_chunks(plan, by_hand):
    following = {
        "a": np.array([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=bool),
        "b": np.array([[NAN] * 4, [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]]),
    }
    mif = summarise(constant_rows(by_hand), following, plan, set(by_hand)).metrics["mif"]
    assert mif.value == pytest.approx((50 + (100 + 0) / 2 + (100 + 50) / 2 + (0 + 100) / 2) / 4)
    assert mif.low < mif.value < mif.high


def test_a_missing_evaluation_leaves_a_gap_and_no_quiet_average(plan, by_hand):
    by_hand["b"][2] = NAN
    summary = summarise(constant_rows(by_hand), None, plan, set(by_hand)).to_json()
    assert summary["ap_by_chunk"][2] is None and summary["ap_by_chunk"][3] == pytest.approx(175 / 3)
    assert summary["matrix"][2][1] is None
    assert summary["metrics"]["map"] == {"value": None, "low": None, "high": None}
    assert summary["metrics"]["ap"]["value"] == pytest.approx(175 / 3)


def test_one_chunk_has_an_average_and_nothing_to_forget():
    summary = summarise(constant_rows({"a": [40], "b": [60]}), None, np.ones((1, 2)), {"a", "b"}).to_json()
    assert summary["metrics"]["ap"]["value"] == summary["metrics"]["map"]["value"] == 50
    undefined = {name for name, metric in summary["metrics"].items() if metric["value"] is None}
    assert undefined == {"bwt_first", "bwt_last", "maf_cross", "maf_best", "maf_first", "maf_previous", "mif"}
    assert summary["forgetting"] == {"a": 0.0, "b": 0.0}


def test_a_task_that_never_comes_counts_nowhere():
    plan = np.array([[3, 0], [3, 0]])
    summary = summarise(constant_rows({"a": [50, 40], "b": [10, 90]}), None, plan, {"a", "b"})
    assert summary.metrics["ap"].value == summary.metrics["mfn"].value == 40
    assert summary.metrics["mft"].value == 50
    assert summary.forgetting == {"a": 10.0}


def test_json_is_the_contract_of_summary_json(plan, by_hand):
    content = json.loads(json.dumps(summarise(constant_rows(by_hand), None, plan, {"a"}).to_json(), allow_nan=False))
    assert list(content) == [
        "family",
        "tasks",
        "chunks",
        "matrix",
        "ap_by_chunk",
        "seen",
        "metrics",
        "forgetting",
    ]
    assert content["family"] == "strict" and content["tasks"] == ["a", "b", "c"] and content["chunks"] == [0, 1, 2, 3]
    assert content["matrix"][0] == [80, None, None]
    assert set(content["metrics"]) == set(METRICS) - set(WHERE_DEFINED)
    assert all(set(metric) == {"value", "low", "high"} for metric in content["metrics"].values())


def test_smolora_published_average_is_reproduced():
    # SMoLoRA, CVIT single-type, LLaVA-1.5-7B: AP 83.44, a mean of six that holds a CIDEr of 151.99.
    final = {"SQA": 77.36, "TextVQA": 58.29, "Flickr": 151.99, "IN": 95.35, "GQA": 51.96, "VQAv2": 65.71}
    summary = summarise(constant_rows({task: [points] for task, points in final.items()}), None, np.ones((1, 6)), final)
    assert round(summary.metrics["ap"].value, 2) == 83.44


def test_mllm_cl_published_transfer_is_reproduced():
    # MLLM-CL, LoRA-FT: MFT 64.98, MFN 53.00, BWT -14.97 over five tasks; the last task cannot have been forgotten.
    rest = (5 * 53.00 - 64.98) / 4
    matrix = {
        f"t{task}": [64.98 if chunk == task else NAN if chunk < task else rest for chunk in range(5)]
        for task in range(5)
    }
    found = summarise(constant_rows(matrix), None, np.eye(5), set(matrix)).metrics
    assert found["mft"].value == pytest.approx(64.98) and found["mfn"].value == pytest.approx(53.00)
    assert found["bwt_first"].value == pytest.approx(-14.97, abs=0.006)


@pytest.mark.parametrize(
    ("scores", "trained", "in_average", "message"),
    [
        ({"a": np.zeros((2, 3))}, np.ones((3, 1)), {"a"}, "per-sample points"),
        ({"a": np.zeros(3)}, np.ones((3, 1)), {"a"}, "per-sample points"),
        ({"a": np.zeros((2, 3))}, np.ones((2, 2)), {"a"}, "plan has shape"),
        ({"a": np.zeros((2, 3))}, np.ones((2, 1)), {"b"}, "without scores"),
    ],
)
def test_shapes_and_names_that_do_not_fit_are_refused(scores, trained, in_average, message):
    with pytest.raises(ValueError, match=message):
        summarise(scores, None, trained, in_average)


def test_no_scores_at_all_is_a_mistake_of_the_user():
    with pytest.raises(UserError, match="no scores"):
        summarise({}, None, np.ones((1, 0)), set())


SIZES = st.tuples(st.integers(2, 6), st.integers(1, 5))


@st.composite
def matrices(draw) -> tuple[np.ndarray, np.ndarray]:
    """A full matrix of points and a plan in which every task comes and the first chunk is not empty."""
    shape = draw(SIZES)
    scores = draw(hnp.arrays(float, shape, elements=st.floats(0, 100)))
    trained = draw(hnp.arrays(int, shape, elements=st.integers(0, 1)))
    trained[draw(st.integers(0, shape[0] - 1)), trained.sum(axis=0) == 0] = 1
    trained[0, 0] = 1
    return scores, trained


def all_metrics(scores: np.ndarray, trained: np.ndarray) -> dict[str, float]:
    counted = np.ones(scores.shape[1], dtype=bool)
    return {name: float(value) for name, value in metrics(scores, Plan(trained), counted).items()}


@given(matrices(), st.floats(0, 100))
def test_a_constant_matrix_forgets_nothing(case, level):
    found = all_metrics(np.full_like(case[0], level), case[1])
    assert [found[name] for name in ("ap", "map", "mfn", "mft")] == pytest.approx([level] * 4)
    for name in ("bwt_first", "bwt_last", "maf_best", "maf_first", "maf_previous"):
        assert np.isnan(found[name]) or found[name] == pytest.approx(0, abs=1e-9)


@given(matrices())
def test_metrics_keep_to_their_bounds(case):
    scores, trained = case
    found = all_metrics(scores, trained)
    low, high = scores.min() - 1e-9, scores.max() + 1e-9
    assert all(low <= found[name] <= high for name in ("ap", "map", "mfn", "mft"))
    assert found["ap"] == pytest.approx(found["mfn"])
    if not np.isnan(found["maf_best"]):
        assert found["maf_best"] >= max(found["maf_first"], found["maf_previous"]) - 1e-9


@given(matrices(), st.randoms(use_true_random=False))
def test_the_order_of_tasks_does_not_matter(case, random):
    scores, trained = case
    order = list(range(scores.shape[1]))
    random.shuffle(order)
    shuffled = all_metrics(scores[:, order], trained[:, order])
    assert shuffled == pytest.approx(all_metrics(scores, trained), nan_ok=True)


@given(matrices())
def test_scores_that_only_rise_have_negative_forgetting(case):
    scores, trained = case
    found = all_metrics(np.sort(scores, axis=0), trained)
    for name in ("maf_best", "maf_first", "maf_previous"):
        assert np.isnan(found[name]) or found[name] <= 1e-9
    assert np.isnan(found["bwt_first"]) or found["bwt_first"] >= -1e-9


@given(matrices())
def test_every_metric_agrees_with_its_definition_written_as_loops(case):
    scores, trained = case
    chunks, tasks = scores.shape
    seen = [[i for i in range(tasks) if trained[: t + 1, i].any()] for t in range(chunks)]
    came = [np.flatnonzero(trained[:, i]) for i in range(tasks)]
    end = chunks - 1

    def mean(values):
        values = list(values)
        return sum(values) / len(values) if values else NAN

    def maf(earlier):
        rows = [[earlier(t, i) - scores[t, i] for i in seen[t - 1]] for t in range(1, chunks)]
        return mean(mean(row) for row in rows if row)

    aps = [mean(scores[t, i] for i in seen[t]) for t in range(chunks)]
    expected = {
        "ap": aps[-1],
        "map": mean(aps),
        "mfn": mean(scores[end, i] for i in range(tasks)),
        "mft": mean(scores[came[i][0], i] for i in range(tasks)),
        "bwt_first": mean(scores[end, i] - scores[came[i][0], i] for i in range(tasks) if came[i][0] < end),
        "bwt_last": mean(scores[end, i] - scores[came[i][-1], i] for i in range(tasks) if came[i][-1] < end),
        "maf_best": maf(lambda t, i: scores[came[i][0] : t, i].max()),
        "maf_first": maf(lambda t, i: scores[came[i][0], i]),
        "maf_previous": maf(lambda t, i: scores[t - 1, i]),
        "bwt_max": mean(min(scores[end, i] - scores[t, i] for t in range(came[i][0], chunks)) for i in range(tasks)),
    }
    expected |= dict.fromkeys(set(METRICS) - set(expected), NAN)
    assert all_metrics(scores, trained) == pytest.approx(expected, nan_ok=True, abs=1e-9)
