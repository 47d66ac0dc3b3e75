"""What a run learned, used: answers of any commit, files of questions, exported adapters."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from peft import PeftModel
from running import ROOT, Run, environment, streamcvit
from safetensors.torch import load_file, save_file

from streamcvit.data.sample import Sample
from streamcvit.data.shards.index import StreamIndex
from streamcvit.data.shards.read import ShardReader
from streamcvit.errors import UserError
from streamcvit.export import export
from streamcvit.learning import commit
from streamcvit.models.base import load_base
from streamcvit.models.snapshot import adapter_state, state_digest
from streamcvit.predict import predict_file, predictor_of
from streamcvit.questions import question
from streamcvit.trained import find

TASKS = ("shape", "colour")


@pytest.fixture(scope="module")
def tests_of(local_run: Run) -> dict[str, list[Sample]]:
    """The run's test samples of some tasks."""
    index = StreamIndex.open(local_run.folder / "stream").eval_index()
    found: dict[str, list[Sample]] = {task: [] for task in TASKS}
    with ShardReader(index) as reader:
        for sample in reader.read(range(len(index))):
            if isinstance(sample, Sample) and sample.task in found:
                found[sample.task].append(sample)
    return found


@pytest.fixture
def asked(tests_of: dict[str, list[Sample]], tmp_path: Path) -> Path:
    """These samples as a file of questions with their pictures beside it, references left out."""
    rows = []
    for sample in [sample for samples in tests_of.values() for sample in samples]:
        picture = f"{sample.task}-{len(rows)}.{sample.pictures[0].ext}"
        (tmp_path / picture).write_bytes(sample.pictures[0].data)
        row = {"id": sample.sample_id, "image": picture, "question": sample.question, "task": sample.task}
        rows.append(row | {"instruction": sample.instruction})
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def scored(folder: Path, version: str) -> dict[str, str]:
    """sample id -> answer of the run's own evaluation."""
    files = [path for task in TASKS if (path := folder / "predictions" / version / f"{task}.parquet").is_file()]
    rows = [row for path in files for row in pq.read_table(path).to_pylist()]
    return {row["sample_id"]: row["prediction"] for row in rows}


def ones(run: Run, method: str, chunk: int) -> Path:
    """The commit of a chunk's end, from 1."""
    return commit.list_commits(run.folder / method / "commits")[chunk - 1]


def ask_like(run: Run, sample: Sample, *methods: str, **which: Any) -> list[str]:
    return [answer.text for answer in predictor_of(run.folder, methods, **which).ask(sample)]


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("chunk", [None, 2])
def test_a_file_of_test_samples_gets_the_answers_of_the_runs_own_evaluation(
    local_run: Run, asked: Path, tmp_path: Path, chunk: int | None
) -> None:
    before, methods = tree(local_run.folder), ("zero-shot", "lora", "smolora")
    predictor = predictor_of(local_run.folder, methods, chunk)
    report = predict_file(predictor, asked, tmp_path / "out.jsonl")
    assert (report.rows, report.answered, report.bad) == (24, 24, 0)
    found = lines(tmp_path / "out.jsonl")
    assert [line["id"] for line in found] == [row["id"] for row in lines(asked)]
    for method in methods:
        version = "zero" if method == "zero-shot" else ones(local_run, method, chunk or 4).name.split("-")[0]
        wanted = scored(local_run.folder / method, version)
        assert wanted and wanted == {line["id"]: line["answers"][method] for line in found if line["id"] in wanted}
    assert len({json.dumps(line["answers"], sort_keys=True) for line in found}) > 1
    assert tree(local_run.folder) == before


def test_one_question_is_answered_by_all_methods_side_by_side(
    local_run: Run, tests_of: dict[str, list[Sample]], tmp_path: Path
) -> None:
    sample = tests_of["colour"][0]
    (tmp_path / "a.png").write_bytes(sample.pictures[0].data)
    words = ["predict", str(local_run.folder), "--image", "a.png", "--question", sample.question, "--task", "colour"]
    done = streamcvit(*words, "--instruction", sample.instruction, "--show-routes", "--json", cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    found = {one["method"]: one for one in json.loads(done.stdout)["answers"]}
    assert set(found) == {"zero-shot", "lora", "smolora", "replay", "joint"}
    for method in ("lora", "smolora", "replay"):
        newest = ones(local_run, method, 4)
        assert (found[method]["chunk"], found[method]["digest"]) == (4, commit.read_note(newest)["digest"])
        wanted = scored(local_run.folder / method, newest.name.split("-")[0])
        assert found[method]["answer"] == wanted[sample.sample_id]
    assert set(found["smolora"]["routes"]) == {"visual", "instruction"}
    assert "routes" not in found["lora"]


def test_the_commit_of_a_step_answers_as_the_chunk_that_it_ends(
    local_run: Run, tests_of: dict[str, list[Sample]]
) -> None:
    sample, place = tests_of["shape"][0], ones(local_run, "lora", 2).name
    wanted = scored(local_run.folder / "lora", place.split("-")[0])[sample.sample_id]
    for name in (place, str(int(place.split("-")[0]))):
        assert ask_like(local_run, sample, "lora", commit=name) == [wanted]


def test_a_run_that_goes_on_answers_with_its_newest_boundary(local_run: Run, tmp_path: Path) -> None:
    copy = tmp_path / "going"
    shutil.copytree(local_run.folder / "lora", copy)
    for chunk in (3, 4):
        shutil.rmtree(copy / "commits" / ones(local_run, "lora", chunk).name)
    record = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**record, "finished": None}))
    assert "no commit of the end of chunk 3" in str(pytest.raises(UserError, predictor_of, copy, chunk=3).value)
    predictor = predictor_of(copy)
    assert [(one.method, one.chunk) for one in predictor.trained] == [("lora", 2)]


def test_methods_without_such_a_commit_are_left_out_by_name_where_none_is_asked_for(local_run: Run) -> None:
    said: list[str] = []
    found = find(local_run.folder, chunk=3, say=said.append)
    assert sorted(one.method for one in found) == ["lora", "replay", "smolora", "zero-shot"]
    assert len(said) == 1 and "joint" in said[0]
    with pytest.raises(UserError, match="no commit of the end of chunk 3"):
        find(local_run.folder, ["joint"], chunk=3)


def test_an_instruction_in_the_question_is_found_by_the_runs_naming(local_run: Run) -> None:
    from streamcvit.data.instructions import Naming

    one = question("How many?\nSay a number.", naming=Naming(("Say a number.",)), task="counting")
    other = question("How many?", instruction="Say a number.", task="counting")
    assert one == other and one.routing_text == "Say a number."


def test_rows_of_every_format_are_told_by_their_keys_and_bad_ones_are_named(
    local_run: Run, tests_of: dict[str, list[Sample]], tmp_path: Path
) -> None:
    sample = tests_of["colour"][0]
    (tmp_path / "a.png").write_bytes(sample.pictures[0].data)
    (tmp_path / "cut.png").write_bytes(sample.pictures[0].data[:60])
    ask = f"{sample.question}\n{sample.instruction}"
    rows = [
        {"id": 1, "image": "a.png", "conversations": [{"from": "human", "value": f"<image>\n{ask}"}]},
        {"messages": [{"role": "user", "content": f"<image>{ask}"}], "images": ["a.png"]},
        {"id": "s", "task": "colour", "question": sample.question, "instruction": sample.instruction, "image": "a.png"},
        {"question": ask, "image": "a.png"},
        {"question_id": 9, "text": ask, "image": "gone.png", "answer": "x"},
        {"question": ask, "image": "cut.png"},
        {"question": "word " * 3000, "image": "a.png"},
        {"question": "", "image": "a.png"},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows) + "{not json\n"
    (tmp_path / "q.jsonl").write_text(text)
    words = ["--method", "lora", "--file", "q.jsonl", "--out", "out.jsonl"]
    done = streamcvit("predict", str(local_run.folder), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 of 9 rows answered" in done.stdout and "5 cannot be asked, the first: row 4 (9): missing" in done.stdout
    found = lines(tmp_path / "out.jsonl")
    assert [line["row"] for line in found] == list(range(9))
    assert len({line["answers"]["lora"] for line in found[:4]}) == 1
    kinds = ["missing", "image", "length", "shape", "json"]
    assert [line["error"].split(":")[0] for line in found[4:]] == kinds


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is no question"),
        (["--question", "  "], "there is no question"),
        (["--question", "a", "--method", "nonsense"], "the run has no method 'nonsense'. Choose from"),
        (["--question", "a", "--chunk", "9"], "no commit of the end of chunk 9. There are the ends of chunks 1"),
        (["--question", "a", "--commit", "5"], "no commit '5'. There are steps"),
        (["--question", "a", "--method", "lora", "--image", "gone.png"], "gone.png"),
        (["--question", "a", "--method", "lora", "--image", "q.txt"], "neither PNG"),
        (["--question", "a", "--method", "lora", "--image", "cut.png"], "the picture cannot be decoded"),
        (["--question", "word " * 3000, "--method", "lora"], "max_length"),
        (["--question", "<image> a", "--method", "lora"], "mark the places of 1 pictures, 0 are given"),
        (["--question", "a", "--method", "lora", "--task", "nonsense"], "no task 'nonsense'. Its tasks: "),
        (["--file", "q.txt"], "--file takes --out"),
        (["--file", "q.txt", "--out", "q.txt"], "q.txt: exists already"),
        (["--file", "q.txt", "--out", "new.jsonl", "--method", "lora"], "q.txt: is no JSON list of rows"),
        (["--file", "gone.jsonl", "--out", "new.jsonl", "--method", "lora"], "gone.jsonl: cannot be read"),
        (["--question", "a", "--method", "lora", "--device", "toaster"], "device toaster: is no device"),
    ],
)
def test_a_question_that_cannot_be_asked_is_one_line(
    local_run: Run,
    tests_of: dict[str, list[Sample]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    words: list[str],
    said: str,
) -> None:
    from streamcvit.cli import main

    (tmp_path / "q.txt").write_text("this is no picture")
    (tmp_path / "cut.png").write_bytes(tests_of["colour"][0].pictures[0].data[:60])
    before = sorted(os.listdir(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")
    monkeypatch.setattr(sys, "argv", ["streamcvit", "predict", str(local_run.folder), *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert len(printed.err.strip().splitlines()) == 1 and said in printed.err, printed.err
    assert sorted(os.listdir(tmp_path)) == before


def test_weights_that_are_not_the_commits_are_refused(
    local_run: Run, tests_of: dict[str, list[Sample]], tmp_path: Path
) -> None:
    shutil.copytree(local_run.folder / "lora", tmp_path / "lora")
    predictor = predictor_of(tmp_path / "lora")
    weights = predictor.trained[0].adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = min(tensors)
    save_file({**tensors, name: tensors[name] + 1}, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="checksum differs"):
        predictor.ask(tests_of["colour"][0])


def test_another_base_is_refused_unless_it_is_asked_for(
    local_run: Run, tests_of: dict[str, list[Sample]], tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "streamcvit" / "embedded" / "weights", tmp_path / "base")
    predictor_of(local_run.folder, ["lora"], model=str(tmp_path / "base"))  # the same files elsewhere
    (tmp_path / "base" / "extra.txt").write_text("changed")
    with pytest.raises(UserError, match="the base here has digest .* --other-base"):
        predictor_of(local_run.folder, ["lora"], model=str(tmp_path / "base"))
    changed = predictor_of(local_run.folder, ["lora"], model=str(tmp_path / "base"), other_base=True)
    sample = tests_of["colour"][0]
    assert changed.ask(sample)[0].text == ask_like(local_run, sample, "lora")[0]


@pytest.mark.parametrize("method", ["lora", "smolora"])
def test_commits_and_exported_folders_load_with_stock_peft(local_run: Run, tmp_path: Path, method: str) -> None:
    said = list(export(local_run.folder, tmp_path / "out", method, chunk=3))
    assert f"{method}, chunk 3" in said[0]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "lineage.json",
    }  # fmt: skip
    place = ones(local_run, method, 3)
    digest = commit.read_note(place)["digest"]
    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert (lineage["adapter_digest"], lineage["chunk"], lineage["started_from"]) == (digest, 3, None)
    for folder in (place / "adapter", tmp_path / "out"):
        model = PeftModel.from_pretrained(load_base("embedded", device="cpu").model, str(folder))
        assert state_digest(adapter_state(model)) == digest
    card = (tmp_path / "out" / "README.md").read_text()
    assert digest in card and "embedded" in card and "## Scores" in card
    rows = pq.read_table(local_run.folder / method / "scores.parquet").to_pylist()
    for row in rows:
        if row["chunk"] == 2 and row["family"] == "strict" and row["kind"] == "boundary":
            assert f"| {row['task']} | {row['score']:.1f} | {row['low']:.1f} to {row['high']:.1f} | 12 |" in card
    code = re.findall(r"```python\n(.*?)```", card, re.S)[0].replace("THIS FOLDER", str(tmp_path / "out"))
    names: dict[str, Any] = {}
    exec(code, names)
    assert state_digest(adapter_state(names["model"])) == digest


def test_a_card_says_how_the_base_was_held_and_what_learned(local_run: Run, tmp_path: Path) -> None:
    shutil.copytree(local_run.folder / "lora", copy := tmp_path / "run" / "lora")
    tree = yaml.safe_load((copy / "config.yaml").read_text())
    template = load_base("embedded", device="cpu").collator.processor.chat_template + " "
    tree["model"] |= {"dtype": "bfloat16", "attention": "eager", "max_pixels": 900, "chat_template": template}
    tree["train"] |= {"layers": "last 1"}
    tree["learner"] |= {"group_by_length": True}
    (copy / "config.yaml").write_text(yaml.safe_dump(tree))
    list(export(copy, tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    for said in ("| what learns | `layers=last 1` |", "`dtype=bfloat16`, `attention=eager`", "samples of like length"):
        assert said in card
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", card, re.S)[0].replace("THIS FOLDER", str(tmp_path / "out")), names)
    base = names["base"]
    assert (base.dtype, base.model.config._attn_implementation) == (torch.bfloat16, "eager")
    assert (base.collator.rules.max_pixels, base.collator.processor.chat_template) == (900, template)


def test_a_merged_lora_answers_as_the_unmerged_one(
    local_run: Run, tests_of: dict[str, list[Sample]], tmp_path: Path
) -> None:
    from streamcvit.evaluation.generate import Generator

    list(export(local_run.folder, tmp_path / "whole", "lora", merged=True))
    merged = load_base(str(tmp_path / "whole"), device="cpu", dtype="float32")
    predictor = predictor_of(local_run.folder, ["lora"])
    samples = [sample for found in tests_of.values() for sample in found]
    unmerged = predictor.bench.hold(predictor.trained[0])
    inputs = predictor.bench.base.collator.prompts(samples[:4]).tensors
    with torch.no_grad():
        ours, theirs = merged.model(**inputs).logits, unmerged(**inputs).logits
        bare = load_base("embedded", device="cpu").model(**inputs).logits
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    assert (bare - theirs).abs().max() > 0.1
    generator = Generator(merged)
    wanted = predictor.answers(unmerged, samples)
    assert generator.answer(merged.model, generator.prepare(samples), 16) == wanted
    code = re.findall(r"```python\n(.*?)```", (tmp_path / "whole" / "README.md").read_text(), re.S)[0]
    exec(code.replace("THIS FOLDER", str(tmp_path / "whole")), {})


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(local_run: Run, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    shutil.copytree(ROOT / "streamcvit" / "embedded" / "weights", tmp_path / "small-base")
    config = json.loads((tmp_path / "small-base" / "config.json").read_text())
    quantised = {**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (tmp_path / "small-base" / "config.json").write_text(json.dumps(quantised))
    before = sorted(os.listdir(tmp_path))
    refused: list[tuple[Path, dict[str, Any], str]] = [
        (tmp_path / "full", {"method": "lora"}, "not empty"),
        (tmp_path / "new", {"method": "smolora", "merged": True}, "which expert acts depends on the input"),
        (tmp_path / "new", {"method": "zero-shot"}, "is the bare base"),
        (tmp_path / "new", {}, "holds several methods"),
        (tmp_path / "new", {"method": "lora", "merged": True, "model": str(tmp_path / "small-base")}, "quantised"),
    ]
    for to, how, said in refused:
        with pytest.raises(UserError, match=said):
            list(export(local_run.folder, to, **how))
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    list(export(local_run.folder / "lora", tmp_path / "empty"))
    assert (tmp_path / "empty" / "README.md").is_file()


def test_the_guides_example_answers(local_run: Run, tests_of: dict[str, list[Sample]], tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "predict.md").read_text(), re.S)
    assert len(example.strip().splitlines()) <= 10
    (tmp_path / "photo.png").write_bytes(tests_of["colour"][0].pictures[0].data)
    code = example.replace("runs/demo", str(local_run.folder))
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["zero-shot", "lora", "smolora"]
