"""The field's benchmarks in their own layouts: small files of each, read as a run reads them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from streamcvit.config import RunConfig
from streamcvit.data.layouts import LAYOUTS
from streamcvit.data.layouts.cvit import DESCRIBES, LETTERS
from streamcvit.data.sample import Sample
from streamcvit.data.shards.read import ShardReader
from streamcvit.data.verify import verify
from streamcvit.errors import UserError
from streamcvit.run.losses import import_report, lost_list
from streamcvit.run.stream import plan_of, prepare_stream

ROWS = 4


def tree(folder):
    """Of every file: its path and a checksum."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Name of a benchmark -> folder with small files in its layout."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            LAYOUTS[name].write_small(made[name], ROWS)
        return made[name]

    return folder


def config(name, data, **stream):
    return RunConfig.model_validate({"stream": {"source": "benchmark", "benchmark": name, "data": str(data), **stream}})


def samples_of(index):
    with ShardReader(index) as reader:
        return list(reader.read(range(len(index))))


@pytest.mark.parametrize("name", LAYOUTS)
def test_small_files_of_every_layout_become_a_stream(name, small, tmp_path):
    layout = LAYOUTS[name]
    index = prepare_stream(config(name, small(name)), tmp_path / "s")
    assert verify(tmp_path / "s").ok and not lost_list(tmp_path / "s").exists()
    trained = [task for task, files in layout.tasks.items() if files.train]
    assert set(index.task_of) == set(trained) and list(index.tasks) == list(layout.tasks)
    assert Counter(index.eval_index().task_of) == dict.fromkeys(layout.tasks, ROWS)
    assert index.n_chunks == len(layout.chunks or trained)
    if not layout.chunks:  # a chunk a task, in the layout's order
        assert list(dict.fromkeys(index.task_of)) == trained
    rows = [*samples_of(index), *samples_of(index.eval_index())]
    assert all(isinstance(row, Sample) for row in rows)
    assert all(row.instruction for row in rows if row.task != "grounding")


@pytest.mark.parametrize("name", ["strcvit", "cvit-five", "ucit"])
def test_small_files_are_the_same_each_time(name, small, tmp_path):
    LAYOUTS[name].write_small(tmp_path, ROWS)
    assert tree(tmp_path) == tree(small(name))


def test_chunk_files_keep_their_rows_in_their_order(small, tmp_path):
    folder = small("strcvit")
    index = prepare_stream(config("strcvit", folder), tmp_path / "s")
    listed = [
        (number, row["images"][0].removeprefix("<STRCVIT_IMAGE_ROOT>/"), row["messages"][1]["content"])
        for number in range(25)
        for row in json.loads((folder / f"StrCVIT_dataset/train/data_{number + 1:03d}.json").read_text())
    ]
    drawn = samples_of(index)
    assert [row.answer for row in drawn] == [answer for _, _, answer in listed]
    assert index.chunk_of.tolist() == [chunk for chunk, _, _ in listed]
    pictures = [(folder / "raw_images" / path).read_bytes() for _, path, _ in listed]
    assert [row.pictures[0].data for row in drawn] == pictures
    of = {path.split("/")[0]: row.task for (_, path, _), row in zip(listed, drawn, strict=True) if "COCO" not in path}
    assert of["AD"] == "ad" and of["Textcaps"] == "textcaps" and of["Places"] == "places365" and len(of) == 9
    coco = {path.split("/")[1]: row.task for (_, path, _), row in zip(listed, drawn, strict=True) if "COCO" in path}
    assert coco == {"val2014": "vqav2", "train2014": "grounding"}


def test_paths_that_were_made_whole_and_other_image_folders_are_found(small, tmp_path):
    LAYOUTS["strcvit"].write_small(tmp_path, 1)
    for path in tmp_path.glob("StrCVIT_dataset/*/**/*.json"):
        path.write_text(path.read_text().replace("<STRCVIT_IMAGE_ROOT>", "/data/somebody/raw"))
    (tmp_path / "raw_images").rename(tmp_path / "images")
    assert prepare_stream(config("strcvit", tmp_path), tmp_path / "s").n_chunks == 25


@pytest.mark.parametrize("preset", ["strcvit-0-recut", "strcvit-0-first", "strcvit-26-first", "strcvit-9999-recut"])
def test_a_cut_into_chunks_that_there_cannot_be_is_refused(small, preset):
    with pytest.raises(UserError, match=r"stream.scenario.preset: \d+ chunks are asked for; the stream has"):
        plan_of(config("strcvit", small("strcvit"), scenario={"preset": preset}))


def test_a_bad_row_of_mixed_files_is_named_with_its_file(tmp_path):
    LAYOUTS["strcvit"].write_small(tmp_path, ROWS)
    path = tmp_path / "StrCVIT_dataset" / "train" / "data_007.json"
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows, {"messages": 3}]))
    index = prepare_stream(config("strcvit", tmp_path), tmp_path / "s")
    said = json.loads((Path(index.folder) / "import.json").read_text())
    assert "data_007.json: row" in json.dumps(said)


@pytest.mark.parametrize("preset", ["strcvit-15-first", "strcvit-15-recut", "strcvit-20-first", "strcvit-20-recut"])
def test_the_published_stream_is_cut_into_fewer_chunks(small, preset):
    whole = plan_of(config("strcvit", small("strcvit")))
    plan = plan_of(config("strcvit", small("strcvit"), scenario={"preset": preset}))
    chunks = int(preset.split("-")[1])
    assert len(plan) == chunks and plan.labels.tolist() == whole.labels[: len(plan.labels)].tolist()
    if preset.endswith("recut"):
        assert len(plan.labels) == len(whole.labels)
    else:
        assert plan.counts.tolist() == whole.counts[:chunks].tolist()


def test_official_annotations_answer_the_test_rows(small, tmp_path):
    folder = small("cvit")
    index = prepare_stream(config("cvit", folder), tmp_path / "s")
    tests = samples_of(index.eval_index())
    science, text, gqa = ([row for row in tests if row.task == task] for task in ("scienceqa", "textvqa", "gqa"))
    assert all(row.answer == "B" and len(row.meta["choices"]) == 3 for row in science)
    assert sorted({len(row.pictures) for row in science}) == [0, 1]
    assert all(len(row.answers) == 10 for row in text)
    official = json.loads((folder / "dataset/GQA/testdev_balanced_questions.json").read_text())
    assert [row.answer for row in gqa] == [official[row.sample_id.removeprefix("gqa/")]["answer"] for row in gqa]
    said = import_report(tmp_path / "s").notes
    assert any(line.startswith("gqa: answers to test rows come from dataset/GQA/") for line in said)


def test_where_official_annotations_may_be_missing_the_rows_own_answers_are_used_and_that_is_said(tmp_path):
    LAYOUTS["coin"].write_small(tmp_path, ROWS)
    (tmp_path / "cl_dataset/GQA/testdev_balanced_questions.json").unlink()
    prepare_stream(config("coin", tmp_path), tmp_path / "s")
    said = import_report(tmp_path / "s").notes
    assert (
        "gqa: the test rows' own answers are used, as cl_dataset/GQA/testdev_balanced_questions.json is not there"
        in said
    )


def test_rows_without_an_annotation_are_left_out_and_named(tmp_path):
    LAYOUTS["ucit"].write_small(tmp_path, 30)
    path = tmp_path / "instructions/VizWiz/val_coco_type_3000.json"
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "images": value["images"][1:]}))
    index = prepare_stream(config("ucit", tmp_path), tmp_path / "s")
    assert Counter(index.eval_index().task_of)["vizwiz_caption"] == 29
    (line,) = [json.loads(line) for line in lost_list(tmp_path / "s").read_text().splitlines()]
    assert line["reason"] == "annotation" and "VizWiz/test_3000.json: row 0" in line["detail"]


def test_five_wordings_are_the_rows_own(small, tmp_path):
    rows = samples_of(prepare_stream(config("cvit-five", small("cvit-five")), tmp_path / "s"))
    asked = {task: {row.instruction for row in rows if row.task == task} for task in ("scienceqa", "flickr30k")}
    assert asked == {"scienceqa": set(LETTERS[:ROWS]), "flickr30k": set(DESCRIBES[:ROWS])}


def test_training_and_test_pictures_may_lie_in_folders_of_their_own(small, tmp_path):
    folder = small("mllmcl-acl")
    index = prepare_stream(config("mllmcl-acl", folder), tmp_path / "s")
    (first,) = [row for row in samples_of(index.eval_index()) if row.task == "vp"][:1]
    assert first.pictures[0].data == (folder / "VP_test" / "images" / f"VQA_{ROWS}.jpg").read_bytes()


def test_missing_files_are_named_with_where_to_get_them(small, tmp_path):
    LAYOUTS["cvit"].write_small(tmp_path, 1)
    (tmp_path / "CVIT_benchmark/Instructions_Single/GQA/train.json").unlink()
    (tmp_path / "dataset/TextVQA/TextVQA_0.5.1_val.json").unlink()
    with pytest.raises(UserError) as fault:
        prepare_stream(config("cvit", tmp_path), tmp_path / "s")
    said = str(fault.value)
    assert "2 of 16 files of CVIT" in said and "Instructions_Single/GQA/train.json" in said
    assert "TextVQA_0.5.1_val.json" in said and "huggingface.co/datasets/zackie29/SMoLoRA" in said
    assert not (tmp_path / "s").exists()
    with pytest.raises(UserError, match="no data folder is named"):
        plan_of(config("cvit", ""))


def test_a_config_holds_a_benchmarks_tasks_and_those_settings_that_were_made_others():
    found = config("cvit", "data", tasks={"flickr30k": {"max_new_tokens": 7}})
    assert found.stream.tasks["flickr30k"].max_new_tokens == 7
    assert found.stream.tasks["gqa"].strcvit == "gqa" and found.stream.scenario.preset == "benchmark"
    assert RunConfig.model_validate(found.model_dump()) == found
    with pytest.raises(ValidationError, match="cvit has no task 'cats'"):
        config("cvit", "data", tasks={"cats": {"max_new_tokens": 7}})
    with pytest.raises(ValidationError, match="unknown name 'cvti'; allowed: coin, "):
        config("cvti", "data")
    with pytest.raises(ValidationError, match="stream.benchmark is read by source `benchmark`"):
        RunConfig.model_validate({"stream": {"benchmark": "cvit"}})
