"""Small inputs after what people reported: each becomes a stream, or one line that says why not and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from streamcvit.config import RunConfig
from streamcvit.data.sample import PICTURE
from streamcvit.data.shards.read import ShardReader
from streamcvit.errors import UserError
from streamcvit.run.losses import stream_lines
from streamcvit.run.stream import prepare_stream


@pytest.fixture
def stream_of(shared_dir, tmp_path):
    """Makes the stream of a case's pipeline; changes are of its one task."""

    def build(case, pipeline, **changes):
        (folder,) = (shared_dir / "cases").glob(f"{case}-*")
        tree = yaml.safe_load((folder / pipeline).read_text())
        tree["stream"]["data"] = str(folder)
        tree["stream"]["tasks"]["colour"].update(changes)
        index = prepare_stream(RunConfig.model_validate(tree), tmp_path / "s")
        return index, ShardReader(index).read(range(len(index)))

    return build


@pytest.mark.parametrize(
    ("case", "pipeline", "count", "pictures"),
    [
        ("01", "pipeline.yaml", 32, {0, 1}),
        ("02", "one.yaml", 8, {1}),
        ("02", "two.yaml", 8, {2}),
        ("03", "pipeline.yaml", 8, {1}),
        ("04", "uri.yaml", 8, {1}),
        ("04", "bytes.yaml", 8, {1}),
        ("05", "swift.yaml", 8, {1}),
        ("05", "llava.yaml", 8, {1}),
        ("06", "lines.yaml", 24, {1}),
        ("06", "list.yaml", 8, {1}),
        ("06", "short.yaml", 8, {1}),
        ("07", "pipeline.yaml", 30, {1}),
        ("07", "few.yaml", 40, {1}),
        ("08", "pipeline.yaml", 8, {1}),
        ("09", "pipeline.yaml", 8, {1}),
        ("12", "pipeline.yaml", 8, {1}),
        ("13", "pipeline.yaml", 8, {1}),
    ],
)
def test_a_case_becomes_a_stream_of_all_its_rows(stream_of, case, pipeline, count, pictures):
    index, samples = stream_of(case, pipeline)
    assert len(samples) == count and len(index.eval_index()) == 4
    assert {len(one.pictures) for one in samples} == pictures
    assert not any("cannot be used" in line for line in stream_lines(Path(index.folder), index))


def test_pictures_of_a_list_stand_where_the_row_puts_them(stream_of):
    _, samples = stream_of("02", "two.yaml")
    assert {one.prompts[0].partition("What")[0] for one in samples} == {f"First: {PICTURE}\nSecond: {PICTURE}\n"}


def test_pictures_at_an_address_are_said_to_be_not_fetched(stream_of):
    with pytest.raises(UserError, match="8 of 8 rows cannot be read.*pictures are not fetched, download them first"):
        stream_of("04", "http.yaml")


@pytest.mark.parametrize("pipeline", ["swift.yaml", "llava.yaml"])
def test_a_system_turn_is_read_and_routes(stream_of, pipeline):
    _, samples = stream_of("05", pipeline, instructions=["Answer with one word."])
    assert {(one.system, one.routing_text, one.question) for one in samples} == {
        (
            "Reply in capital letters only.",
            "Reply in capital letters only.\nAnswer with one word.",
            "What colour fills the picture?",
        )
    }


def test_no_option_of_a_question_is_lost_and_none_is_taken_for_the_instruction(stream_of):
    index, samples = stream_of("09", "pipeline.yaml")
    assert {(one.instruction, one.prompt.count("\n")) for one in samples} == {("", 3)}


def test_a_wording_stands_behind_all_options(stream_of):
    index, samples = stream_of("09", "single.yaml")
    tests = ShardReader(index.eval_index()).read(range(4))
    assert all([line[:2] for line in one.question.split("\n")[1:]] == ["A.", "B.", "C."] for one in [*samples, *tests])
    assert all(one.prompt == f"{one.question}\nAnswer with the option's letter." for one in [*samples, *tests])
    assert any(
        "8 of 8 samples of" in line and "train.json hold none" in line
        for line in stream_lines(Path(index.folder), index)
    )


def test_several_turns_become_a_sample_each_where_that_is_asked_for(stream_of):
    _, samples = stream_of("12", "pipeline.yaml", split_turns=True)
    assert sorted(one.sample_id for one in samples) == [f"q{row}/{turn}" for row in range(8) for turn in range(2)]
    assert {len(one.turns) for one in samples if one.sample_id.endswith("/1")} == {1}


def test_half_of_the_pictures_cut_off_stop_before_anything_is_written(stream_of, tmp_path):
    with pytest.raises(UserError, match="10 of 20 samples .*1 of 4 test samples of task 'colour' cannot be used"):
        stream_of("18", "pipeline.yaml")
    assert list(tmp_path.iterdir()) == []
