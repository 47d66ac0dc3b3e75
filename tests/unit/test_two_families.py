"""The published family has a summary of its own, and instruction following is told by form and by wording."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from streams import TASKS, stream_samples, test_sets
from test_run_folder import answer, opened, report

from streamcvit.data.shards.write import write_stream
from streamcvit.errors import UserError
from streamcvit.monitoring.record import RunRecord


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    specs = {**TASKS, "colour": replace(TASKS["colour"], strcvit="vqav2")}
    return write_stream(tmp_path_factory.mktemp("s") / "stream", stream_samples(), specs, test_sets(), 0)


@pytest.fixture
def record(tmp_path, index):
    folder = opened(tmp_path, index)
    for chunk in range(4):
        for job in folder.missing(report(chunk)):
            more = {"instructions": ["One word.", "One word.", "Be brief."]}
            if job.task == "colour":
                more |= {
                    "published": np.array([100.0, 100.0, 100.0]),
                    "follows_published": np.array([True, True, False]),
                }
            folder.add(replace(answer(job), follows=np.array([True, False, False]), **more))
    folder = opened(tmp_path, index)  # as a restart reads it
    folder.write_scores()
    return RunRecord.load(folder.path)


def test_the_published_family_stands_beside_the_strict_one_and_holds_its_tasks_alone(record):
    published = record.summary["published"]
    assert published["family"] == "strcvit" and published["tasks"] == ["colour"]
    assert record.metric("ap")[0] == pytest.approx(200 / 3) and record.metric("ap", "strcvit")[0] == 100
    assert record.metric("mif")[0] == pytest.approx(100 / 3) and record.metric("mif", "strcvit")[0] == pytest.approx(
        200 / 3
    )
    assert record.matrix("strcvit")[:, 0].tolist() == [100] * 4 and np.isnan(record.matrix("strcvit")[:, 1]).all()


def test_following_is_told_by_form_and_by_wording_with_its_spread(record):
    told = record.summary["following"]
    assert told["forms"]["single_word"]["value"] == pytest.approx(100 / 3)
    rates = {(row["task"], row["wording"]): (row["n"], row["following"]) for row in told["wordings"]}
    assert rates["colour", "One word."] == (2, 50) and rates["shape", "Be brief."] == (1, 0)
    assert told["spread"]["single_word"]["mif"]["range"] == 50 and told["spread"]["single_word"]["tasks"] == 2


def test_mif_over_chosen_tasks_names_tasks_of_the_stream(tmp_path, index):
    assert opened(tmp_path / "a", index, mif_tasks=["shape"]).scores.mif_tasks == ["shape"]
    with pytest.raises(UserError, match="there is no task 'form'"):
        opened(tmp_path / "b", index, mif_tasks=["form"])


def test_one_tasks_interval_near_the_edge_is_wilsons(record):
    row = next(row for row in record.scores if row["family"] == "strcvit")
    assert row["score"] == row["high"] == 100 and row["low"] == pytest.approx(43.85, abs=0.01)
