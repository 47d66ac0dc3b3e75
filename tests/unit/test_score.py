"""`streamcvit score`: every row that other people's scripts scored, and the files the field writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from typer.main import get_command

from streamcvit import cli, scoring
from streamcvit.data.sample import Sample
from streamcvit.errors import UserError
from streamcvit.evaluation import FAMILIES, SCORERS
from streamcvit.evaluation.causes import causes
from streamcvit.evaluation.interval import score_interval, wilson
from streamcvit.scorefile import read_pairs

COMMAND = get_command(cli.app)
# (file, its column, rule)
COLUMNS = [
    ("vqa_exact", "strcvit_eval_vqav2", "strcvit/vqav2"),
    ("vqa_exact", "smolora_eval_vqav2", "strcvit/smolora_vqav2"),
    ("vqa_exact", "coin_eval_vqav2", "strcvit/smolora_vqav2"),
    ("vqa_exact", "mcitlib_eval_vqav2", "mcitlib/vqav2"),
    ("vqa_exact", "mcitlib_eval_vqav2", "mcitlib/ucit"),
    ("vqa_soft", "textvqa_m4c", "strcvit/textvqa"),
    ("vqa_soft", "official_vqa_eval", "strcvit/vqa_official"),
    ("chartqa", "strcvit_eval_chartqa", "strcvit/chartqa"),
    ("grounding", "strcvit_eval_grounding", "strcvit/grounding"),
    ("grounding", "coin_eval_grounding", "strcvit/grounding"),
    ("grounding", "mcitlib_eval_grounding", "mcitlib/grounding"),
    ("ocr_contains", "strcvit_eval_ocrvqa", "strcvit/ocrvqa"),
    ("ocr_contains", "smolora_eval_ocrvqa", "strcvit/ocrvqa"),
    ("ocr_contains", "coin_eval_ocrvqa", "strcvit/ocrvqa"),
    ("ocr_contains", "mcitlib_eval_ocrvqa", "mcitlib/ocrvqa"),
    ("ocr_contains", "strcvit_eval_ai2d (AD, RS)", "strcvit/ai2d"),
    ("ocr_contains", "mcitlib_eval_ai2d", "mcitlib/ai2d"),
    ("ocr_contains", "strcvit_eval_finvis (Fin)", "strcvit/finvis"),
    ("ocr_contains", "mcitlib_eval_finvis", "mcitlib/finvis"),
    ("classification", "strcvit_eval_ImagetNet", "strcvit/imagenet"),
    ("classification", "smolora_eval_ImagetNet", "strcvit/smolora_imagenet"),
    ("classification", "coin_eval_ImagetNet", "strcvit/coin_imagenet"),
    ("classification", "mcitlib_eval_imagenet", "mcitlib/imagenet"),
    ("instruction_following", "strcvit_eval_vqa_instruction", "follow/strcvit_short"),
    ("instruction_following", "strcvit_eval_caption_instruction", "follow/strcvit_caption"),
]


def command(*words: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(COMMAND, ["score", *map(str, words), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refusal(*words: str | Path) -> str:
    done = CliRunner().invoke(COMMAND, ["score", *map(str, words)])
    assert isinstance(done.exception, UserError), done.output
    return str(done.exception)


def put(path: Path, content: Any) -> Path:
    lines = isinstance(content, list) and path.suffix == ".jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in content) if lines else json.dumps(content))
    return path


@pytest.mark.parametrize(("file", "column", "rule"), COLUMNS)
def test_every_row_of_the_oracle_and_its_total_come_out(file, column, rule, oracle, tmp_path) -> None:
    content = oracle(file)
    rows = [row for row in content["rows"] if column in row["expected"]]
    found = command("--rule", rule, "--predictions", put(tmp_path / "rows.json", {"rows": rows}), "--rows")
    expected = {row["id"]: 100.0 * row["expected"][column] for row in rows}
    assert found["points"] == pytest.approx(expected, abs=1e-6) and found["n"] == len(rows)
    # The script's own total, printed with two digits or more.
    assert found["score"] == pytest.approx(content["totals_percent"][column.replace("-", "_")], abs=0.0051)


@pytest.mark.parametrize(
    ("rule", "columns"),
    [
        ("strcvit/textcaps", {"peer_cider_whitespace": 11, "peer_ciderD_whitespace": 11, "pycocoevalcap_whitespace": 11,
                              "peer_script_textcaps_proxy": 11, "peer_script_textcaps": 12}),
        ("strcvit/flickr30k", {"peer_script_flickr30k": 11}),
        ("strict/cider", {"pycocoevalcap_ptb": 11}),
    ],
)  # fmt: skip
def test_every_corpus_of_captions_comes_out(rule, columns, oracle, tmp_path) -> None:
    compared = dict.fromkeys(columns, 0)
    for corpus in oracle("cider")["corpora"]:
        scores = {column: corpus["expected"].get(column, {"error": "none"}) for column in columns}
        said = [{"image_id": key, "caption": text} for key, text in corpus["preds"].items()]
        files = ["--predictions", put(tmp_path / "said.jsonl", said)]
        files += ["--references", put(tmp_path / "wanted.json", corpus["refs"]), "--answered"]
        found = command("--rule", rule, *files, "--rows")
        for column, expected in scores.items():
            if "printed_percent" in expected:
                assert found["score"] == pytest.approx(expected["printed_percent"], abs=0.0051), corpus["name"]
                compared[column] += 1
            elif "error" not in expected:
                per_image = {key: 100 * expected["per_image"][key] for key in corpus["preds"]}
                assert found["points"] == pytest.approx(per_image, abs=6e-5), corpus["name"]
                compared[column] += 1
    assert compared == columns


ANSWERED = [{"question_id": "b", "prompt": "which?", "text": "Cat"}, {"question_id": "a", "prompt": "?", "text": "dog"}]
RIGHT = {"a": "dog", "b": "cat"}
LAYOUTS = {
    "a list": [{"question_id": key, "image": "x.jpg", "text": "?", "answer": text} for key, text in RIGHT.items()],
    "annotations of VQA": {
        "annotations": [
            {"question_id": key, "image_id": 1, "multiple_choice_answer": "no", "answers": [{"answer": text}] * 10}
            for key, text in RIGHT.items()
        ]
    },
    "data of TextVQA": {"data": [{"question_id": key, "answers": [text] * 10} for key, text in RIGHT.items()]},
    "questions of GQA": {key: {"question": "?", "answer": text} for key, text in RIGHT.items()},
    "texts by id": RIGHT,
    "several texts by id": {key: [text, "other"] for key, text in RIGHT.items()},
    "LLaVA": [
        {"id": key, "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": text}]}
        for key, text in RIGHT.items()
    ],
    "problems of ScienceQA": {key: {"answer": n, "choices": ["cat", "dog"]} for n, key in enumerate("ba")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_fields_layouts_of_references_are_read(layout, tmp_path) -> None:
    said = put(tmp_path / "merge.jsonl", ANSWERED)
    wanted = put(tmp_path / "wanted.json", LAYOUTS[layout])
    rule = "strict/choice" if "ScienceQA" in layout else "strict/exact"
    found = command("--rule", rule, "--predictions", said, "--references", wanted, "--rows")
    assert found["points"] == {"b": 100.0, "a": 100.0} and found["paired_by"] == "id"


def test_of_vqas_annotations_the_first_reference_is_what_most_people_said(tmp_path) -> None:
    row = {
        "question_id": "a",
        "multiple_choice_answer": "dog",
        "answers": [{"answer": t} for t in ("cat", "dog", "cow")],
    }
    wanted = put(tmp_path / "wanted.json", {"annotations": [row]})
    said = put(tmp_path / "said.json", [{"question_id": "a", "answer": "Dog"}])
    assert read_pairs(said, wanted).samples[0].answers == ("dog", "cat", "cow")


MERGED = [
    {"id": "a", "prediction": "dog", "answer": "dog"},
    {"pred": "dog", "ground_truth": "dog"},
    {"question_id": 3, "text": "dog", "answer": "dog"},
    {"response": "dog", "labels": "dog", "messages": [{"role": "assistant", "content": "dog"}]},
    {"id": "a", "row": 0, "answers": {"lora": "dog"}, "answer": "dog"},
]


@pytest.mark.parametrize("row", MERGED, ids=lambda row: "+".join(row))
def test_files_with_both_sides_are_read(row, tmp_path) -> None:
    pairs = read_pairs(put(tmp_path / "both.json", [row]))
    assert pairs.predictions == ["dog"] and pairs.samples[0].answers == ("dog",) and pairs.how == "row"


def test_a_prediction_is_never_its_own_reference(tmp_path) -> None:
    own = [{"response": "dog", "messages": [{"role": "assistant", "content": "dog"}]}]
    for rows in (own, [{"text": "dog"}], [{"answer": "dog"}]):
        assert "row 1: has no reference" in refusal(
            "--rule", "strict/exact", "--predictions", put(tmp_path / "x.json", rows)
        )


def test_captions_are_paired_as_mcitlib_pairs_them_by_place(tmp_path) -> None:
    wanted = {"images": [], "annotations": [{"image_id": n, "id": 9 - n, "caption": t} for n in (1, 2) for t in "xy"]}
    files = ["--references", put(tmp_path / "w.json", wanted)]
    said = put(tmp_path / "s.jsonl", [{"question_id": key, "text": "x"} for key in ("p7", "p3")])
    found = command("--rule", "strict/exact", "--predictions", said, *files, "--rows")
    assert found["points"] == {"p7": 100.0, "p3": 100.0} and found["paired_by"] == "place"
    swapped = put(tmp_path / "t.jsonl", [{"question_id": key, "text": key} for key in (2, 1)])
    assert read_pairs(swapped, tmp_path / "w.json").samples[0].sample_id == "2"
    assert read_pairs(swapped, tmp_path / "w.json", by_place=True).samples[0].sample_id == "1"


def test_what_does_not_fit_is_refused_in_one_line(tmp_path) -> None:
    said = put(tmp_path / "said.jsonl", ANSWERED)
    less, more = put(tmp_path / "less.json", {"a": "dog"}), put(tmp_path / "more.json", {**RIGHT, "zebra": "x"})
    start = ["--rule", "strict/exact", "--predictions", said]
    assert "the prediction 'b' has no reference" in refusal(*start, "--references", less)
    assert "the reference 'zebra' has no prediction" in refusal(*start, "--references", more)
    assert command(*start, "--references", more, "--answered")["n"] == 2
    put(tmp_path / "plain.json", [{"answer": "dog"}])
    assert "2 predictions for 1 references" in refusal(*start, "--references", tmp_path / "plain.json")
    put(tmp_path / "twice.jsonl", [*ANSWERED, ANSWERED[0]])
    twice = ["--predictions", tmp_path / "twice.jsonl", "--references", more]
    assert "the id 'b' comes twice" in refusal("--rule", "strict/exact", *twice)
    assert "there is no family of rules 'no'" in refusal("--rule", "no/exact", "--predictions", said)
    assert "the family strict has no rule 'no'" in refusal("--rule", "strict/no", "--predictions", said)
    assert "cannot be read" in refusal("--rule", "strict/exact", "--predictions", tmp_path / "none.jsonl")
    few = ["--rule", "strcvit/textvqa", *start[2:], "--references", more, "--answered"]
    assert "1 human answers, the rule wants 10" in refusal(*few)
    (tmp_path / "cut.json").write_text('{"a": "dog"')
    assert "is no JSON list of rows" in refusal(*start, "--references", tmp_path / "cut.json")


def test_diff_lists_the_rows_and_tallies_the_causes(tmp_path) -> None:
    rows = [
        {"id": "same", "prediction": "dog", "answer": "dog"},
        {"id": "stop", "prediction": "dog.", "answer": "dog"},
        {"id": "article", "prediction": "The Dog.", "answer": "dog"},
        {"id": "word", "prediction": "two", "answer": "2"},
        {"id": "long", "prediction": "dog and cat", "answer": "dog"},
    ]
    words = ["--rule", "strcvit/ocrvqa", "--predictions", put(tmp_path / "rows.jsonl", rows), "--diff"]
    diff = command(*words)["diff"]
    assert diff["against"] == "strict/exact" and [row["id"] for row in diff["rows"]] == ["stop", "article", "word"]
    assert diff["causes"] == {"punctuation": 2, "article": 1, "number word or format": 1}
    printed = CliRunner().invoke(COMMAND, ["score", *map(str, words)]).stdout
    assert "strcvit/ocrvqa: 20.00, 95 % interval" in printed and "differ on 3 of 5 rows" in printed
    assert "article: 'The Dog.' for 'dog': 0, there 100 (punctuation, article)" in printed
    other = command(*words, "--against", "strcvit/ai2d")["diff"]
    assert {row["id"]: row["causes"] for row in other["rows"]}["long"] == ["reference within a longer answer"]


@pytest.mark.parametrize(
    ("prediction", "answers", "meta", "found"),
    [
        ("5", ["-5"], {}, "sign or other mark with a meaning"),
        ("", ["dog"], {}, "empty answer"),
        ("dog ", ["dog"], {}, "blanks"),
        ("It is a dog.", ["A"], {"choices": ["dog", "cat"]}, "letter vs text"),
        ("Unanswerable", ["unanswerable"], {}, '"Unanswerable"'),
        ("2,582", ["2,677"], {}, "another number"),
        ("do", ["dog"], {}, "answer is a part of the reference"),
        ("yes", ["yes", "no"], {}, "people who disagree"),
        ("“dog”", ['"dog"'], {}, "typography"),
        ("DOG", ["dog"], {}, "case"),
    ],
)
def test_causes_are_told_apart(prediction, answers, meta, found) -> None:
    sample = Sample("s", "", "", "", tuple(answers), meta=meta)
    assert causes(prediction, sample, "exact", SCORERS["format_exact"]) == (found,)


def test_the_interval_is_wilsons_where_few_are_right_or_wrong() -> None:
    # R 4.4: prop.test(0, 20, correct = FALSE), prop.test(7, 50, correct = FALSE)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611252), abs=1e-7)
    assert wilson(7, 50) == pytest.approx((0.0695, 0.2619), abs=1e-4)
    estimate, how = score_interval(np.zeros(20))
    assert how == "wilson" and estimate.high == pytest.approx(16.11252, abs=1e-5)
    assert score_interval(np.repeat([0.0, 100.0], 20))[1] == "bootstrap"
    assert score_interval(np.full(20, 90.0))[1] == "bootstrap"


def row(*answers: str, question: str = "", **meta: Any) -> Sample:
    return Sample("s0", "", question, "", answers, meta=meta)


FORMULA = "Handwritten Mathematical Expression Recognition"
STATES = row("Texas,Ohio", question="Which states are blue?", image="maps/m_1.png")
MCITLIB = [
    ("ucit", "b", row("B"), 1),
    ("ucit", "B.", row("B"), 0),
    ("pvqa", "It is the Liver.", row("liver"), 1),
    ("pvqa", "Unanswerable liver", row("liver"), 0),
    ("sci", "b", row("B", image="AI2D/AI2D_12.png"), 1),
    ("sci", "B is it", row("B", image="TQA_3.png"), 0),
    ("sci", "texas,ohio", STATES, 1),
    ("sci", "Texas, Ohio", STATES, 0.5),
    ("sci", "Texas", STATES, 0.5),
    ("sci", "the west", row("West", question="Where?", image="m_1.png"), 1),
    ("sci", "Unanswerable", row("unanswerable", image="VQA_1.png"), 0),
    ("sat", "The answer is 1 0.", row("10"), 1),
    ("sat", "Unanswerable 10", row("10"), 1),
    ("sat", "one", row("10"), 0),
    ("ocr", "it says Open\n", row("closed", "OPEN", answer_type="Regular Text Recognition"), 1),
    ("ocr", "op en", row("open", answer_type="Regular Text Recognition"), 0),
    ("ocr", "x ^ 2", row("x^2", answer_type=FORMULA), 1),
    ("ocr", "X ^ 2", row("x^2", answer_type=FORMULA), 0),
    ("scienceqa", "B", row("B"), 1),
    ("scienceqa", "B. cat", row("B"), 1),
    ("scienceqa", "So: The answer is B.", row("B"), 1),
    ("scienceqa", "the answer is B.", row("B"), 0),
    ("scienceqa", "The answer is B. The answer is B.", row("B"), 0),
    ("scienceqa", "B", row("B", choices=["x"] * 2), 1),
]


@pytest.mark.parametrize(("name", "prediction", "sample", "share"), MCITLIB)
def test_mcitlibs_rules_are_those_of_its_scripts(name, prediction, sample, share) -> None:
    assert FAMILIES["mcitlib"][name]([prediction], [sample]).tolist() == [100.0 * share]


@pytest.mark.parametrize(("name", "key"), [("sci", "image"), ("ocr", "answer_type")])
def test_what_a_rule_reads_besides_is_asked_for(name, key, tmp_path) -> None:
    file = put(tmp_path / "rows.jsonl", [{"id": "r1", "prediction": "x", "answer": "x"}])
    assert f'sample r1: meta "{key}" is None' in refusal("--rule", f"mcitlib/{name}", "--predictions", file)


def test_mcitlibs_caption_mean_is_that_of_the_corpus(oracle, tmp_path, monkeypatch) -> None:
    corpus = next(one for one in oracle("cider")["corpora"] if one["name"] == "coco_human")
    said, wanted = put(tmp_path / "said.json", corpus["preds"]), put(tmp_path / "wanted.json", corpus["refs"])
    monkeypatch.setattr(scoring.shutil, "which", lambda name: None)  # METEOR takes half a minute to start
    files = ["--predictions", said, "--references", wanted]
    done = CliRunner().invoke(COMMAND, ["score", "--rule", "mcitlib/caption", *map(str, files), "--json", "--rows"])
    assert "METEOR needs Java" in done.stderr
    found = json.loads(done.stdout)
    # COCOEvalCap with Java on the same files; METEOR was 24.79, the mean of all seven 48.15.
    parts = {"Bleu_1": 64.37, "Bleu_2": 46.00, "Bleu_3": 31.74, "Bleu_4": 21.86, "ROUGE_L": 45.26, "CIDEr": 103.03}
    assert found["rule"] == "mcitlib/caption_no_meteor" and found["parts"] == pytest.approx(parts, abs=0.0051)
    assert found["score"] == pytest.approx(np.mean(list(found["parts"].values())))
    assert np.mean(list(found["points"].values())) == pytest.approx(found["score"])
