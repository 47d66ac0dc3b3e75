"""`streamcvit compare` and `export`: what is called best, what is written, and what is refused."""

from __future__ import annotations

import csv
import json
import re
import shutil
import zlib
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from compared_runs import right, write_points
from matplotlib.text import Text
from rich.console import Console
from synthetic_run import write_run
from typer.testing import CliRunner

from streamcvit.cli import app
from streamcvit.comparison import compare_runs
from streamcvit.comparison.baselines import baselines_of
from streamcvit.comparison.export import report_figures
from streamcvit.comparison.folder import write_comparison, write_folder
from streamcvit.comparison.pages import page_for
from streamcvit.comparison.plots import chart_figure, colours, heat_figure
from streamcvit.comparison.sheets import sheets_of
from streamcvit.comparison.whole import whole_comparison
from streamcvit.comparison.writers import terminal, tex
from streamcvit.data import Sample
from streamcvit.data.sample import TaskSpec
from streamcvit.data.shards.write import write_stream
from streamcvit.errors import UserError
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.report.charts import Heat, number
from streamcvit.monitoring.runs import compared
from streamcvit.monitoring.verdict import task_key

LOW = {"a": [0.5, 0.25], "b_1": [None, 0.25]}
MIDDLE = {"a": [0.5, 0.5], "b_1": [None, 0.5]}
HIGH = {"a": [0.5, 0.8], "b_1": [None, 0.525]}


def loaded(*folders: Path) -> list[RunRecord]:
    return [RunRecord.load(folder) for folder in folders]


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three methods on one stream; the best two differ on one sample of the task b_1."""
    root = tmp_path_factory.mktemp("three") / "run"
    table = {
        "name": "paper",
        "source": "A paper, table 2",
        "model": "LLaVA-1.5-7B",
        "unscored": ["c"],
        "rows": {"SeqLoRA": {"tasks": {"a": 61.2, "c": 1.0}, "metrics": {"ap": 99.9, "bwt_first": -48.1}}},
    }
    shares = {"low": LOW, "middle": MIDDLE, "high": HIGH}
    return [
        write_points(root / name, right(row), published=right(row), config={"published": [table]})
        for name, row in shares.items()
    ]


def test_best_and_second_are_said_where_every_paired_difference_leaves_zero_out(three: list[Path]) -> None:
    found = compare_runs(loaded(*three))
    assert [side.label for side in found.sides] == ["low", "middle", "high"]
    assert found.ranks("ap") == (2, 1) and found.ranks(task_key("a")) == (2, 1)
    assert found.ranks(task_key("b_1")) == (None, None)  # one sample of forty is no difference
    assert found.ranks("mif") == (None, None)  # bit-equal
    gap = found.gap("ap", 2, 1)
    assert gap.value == pytest.approx((0.3 + 0.025) * 50) and gap.decided and gap.pairs == 1
    # The intervals of the two overlap: an overlap says nothing of a difference.
    assert found.value("ap", 2)[1] < found.value("ap", 1)[2]
    verdict = found.verdict()
    assert verdict.is_best("ap", 2) and verdict.is_second("ap", 1) and not verdict.is_best("mif", 0)
    assert verdict.gaps["ap", 1, 2].value == -gap.value


def test_nothing_is_best_among_two_where_they_are_not_told_apart(tmp_path: Path) -> None:
    folders = [write_points(tmp_path / name, right(MIDDLE)) for name in ("one", "other")]
    found = compare_runs(loaded(*folders))
    assert {found.ranks(number) for number in found.numbers()} == {(None, None)}
    assert {gap.value for gap in found.gaps.values()} == {0.0}


def test_answers_are_paired_by_the_samples_ids(tmp_path: Path, three: list[Path]) -> None:
    other = write_points(tmp_path / "backwards", right(MIDDLE), backwards=True)
    found = compare_runs(loaded(three[2], other), draws=200)
    same = compare_runs(loaded(three[2], three[1]), draws=200)
    assert found.gap("ap", 0, 1) == same.gap("ap", 0, 1)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"digest": "cd"}, "their streams differ"),
        ({"plan": np.array([[8, 0], [4, 4]])}, "their plans differ"),
        ({"ids": "other"}, "they were asked other test samples"),
        ({"finished": False}, "is not finished"),
    ],
)
def test_runs_that_do_not_pair_are_shown_and_none_is_best(
    three: list[Path], tmp_path: Path, how: dict, why: str
) -> None:
    other = write_points(tmp_path / "other", right({"a": [1.0, 1.0], "b_1": [None, 1.0]}), **how)
    found = compare_runs(loaded(three[0], other), draws=50)
    assert any(why in note for note in found.notes)
    assert found.value("ap", 1)[0] == 100.0
    assert not found.gaps and {found.ranks(number) for number in found.numbers()} == {(None, None)}


def test_an_upper_bound_and_what_learns_nothing_do_not_compete(three: list[Path], tmp_path: Path) -> None:
    best = {"a": [1.0, 1.0], "b_1": [None, 1.0]}
    bound = write_points(tmp_path / "joint", right(best), settings={"adapter": "lora", "order": "joint"})
    bare = write_points(tmp_path / "bare", right({"a": [0.1, 0.1], "b_1": [None, 0.1]}), settings={"adapter": "none"})
    found = compare_runs(loaded(*three, bound, bare), draws=200)
    names = [side.label for side in found.sides]
    assert names == ["bare", "low", "middle", "high", "joint"]
    assert [names[place] for place in found.rivals("ap")] == ["high", "middle", "low", "bare"]
    assert "bare" not in [names[place] for place in found.rivals("bwt_first")]
    assert names[found.ranks("ap")[0]] == "high"


def test_seeds_of_a_method_are_one_row_and_are_paired_seed_by_seed(tmp_path: Path) -> None:
    folders = []
    for seed, gain in enumerate((0.2, 0.3, 0.25)):
        for method, more in (("one", gain), ("other", 0.0)):
            shares = {"a": [0.5, 0.3 + 0.1 * seed + more], "b_1": [None, 0.4]}
            folders.append(write_points(tmp_path / f"s{seed}" / method, right(shares), seed=seed, digest=f"{seed}"))
    found = compare_runs(loaded(*folders), draws=50)
    assert [(side.label, len(side.runs)) for side in found.sides] == [("one", 3), ("other", 3)]
    gap = found.gap("ap", 0, 1)
    assert gap.pairs == 3 and gap.decided and gap.value == pytest.approx(12.5)
    assert gap.high - gap.value == pytest.approx(4.3027 * 2.5 / 3**0.5, rel=1e-3)
    # Over seeds alone, without pairs, the two would not be told apart.
    assert found.value("ap", 0)[1] < found.value("ap", 1)[2] and found.ranks("ap") == (0, None)
    alone = compare_runs(loaded(folders[0], folders[3]), draws=50)
    assert not alone.gaps and any("their streams differ" in note for note in alone.notes)


def test_a_lost_file_of_answers_is_named_or_in_a_report_decides_nothing(three: list[Path], tmp_path: Path) -> None:
    copy = shutil.copytree(three[2], tmp_path / "high")
    lost = copy / "predictions" / "00000002" / "a.parquet"
    lost.write_bytes(lost.read_bytes()[:100])
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read"):
        compare_runs(loaded(three[0], copy))
    found = compare_runs(loaded(three[0], copy), strict=False)
    assert "nothing is decided of high" in found.notes[0] and not found.gaps
    lost.unlink()
    with pytest.raises(UserError, match="are missing"):
        compare_runs(loaded(three[0], copy))


def test_published_rows_stand_alone_with_their_source_and_are_never_ranked(three: list[Path]) -> None:
    whole = whole_comparison(three)
    assert [table.name for table, _ in whole.tables] == ["paper"]  # once, though three configs carry it
    sheet = whole.sheets[-1]
    assert sheet.columns == ["a", "c", "AP ↑", "BWT first ↑"]
    (theirs,), ours = sheet.blocks
    assert theirs[0] == "SeqLoRA" and [cell.entry and cell.entry[0] for cell in theirs[2]] == [61.2, 1.0, 99.9, -48.1]
    assert [name for name, _, _ in ours] == ["low", "middle", "high"] and all(note == "ours" for _, note, _ in ours)
    assert ours[2][2][0].entry[0] == 80.0 and ours[2][2][1].entry is None
    assert not any(cell.best or cell.second for block in sheet.blocks for _, _, cells in block for cell in cells)
    assert "A paper, table 2" in sheet.notes[0] and "LLaVA-1.5-7B" in sheet.notes[0]
    assert not any("SeqLoRA" in name for other in whole.sheets[:-1] for block in other.blocks for name, _, _ in block)


def test_an_average_of_the_published_family_holds_all_tasks_or_is_none(tmp_path: Path) -> None:
    tables = right(MIDDLE)
    folder = write_points(tmp_path / "one", tables, published={"a": tables["a"]})
    found = compare_runs(loaded(folder), "strcvit", draws=50)
    assert found.value(task_key("a"), 0)[0] == 50.0 and found.value(task_key("b_1"), 0) is None
    assert found.value("ap", 0) is None and found.value("mif", 0) is not None


def test_a_recipes_tables_come_by_name_and_what_is_wrong_with_them_is_one_line(
    three: list[Path], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    good = {"name": "x", "source": "B", "model": "M", "rows": {"R": {"metrics": {"ap": 1.0}}}}
    recipe.write_text(yaml.safe_dump({"published": [good]}))
    assert [t.source for t, _ in whole_comparison(three[:1], recipes=[recipe]).tables] == ["A paper, table 2", "B"]
    for tables, message in (
        ([{**good, "rows": {"R": {"metrics": {"apex": 1.0}}}}], "unknown metric 'apex'"),
        ({"x": 1}, "must be a list"),
        (None, "carries no published table"),
    ):
        recipe.write_text(yaml.safe_dump({"name": "x", "published": tables}))
        with pytest.raises(UserError, match=message):
            whole_comparison(three[:1], recipes=[recipe])


def test_what_answers_without_a_look_would_get_is_scored_on_the_runs_test_set(tmp_path: Path) -> None:
    def sample(task: str, k: int, answer: str, **meta: object) -> Sample:
        return Sample(f"{task}{k}", task, "q", "i", (answer,), meta=meta)

    options = (["x", "y"], ["x", "y", "z", "w"])
    tests = {
        "word": [sample("word", k, "cat" if k < 6 else f"dog {k}") for k in range(10)],
        "pick": [sample("pick", k, "A" if k < 3 else "B", choices=options[k % 2]) for k in range(10)],
    }
    specs = [TaskSpec("word", "exact", "single_word"), TaskSpec("pick", "choice", "letter")]
    learned = [(0, sample("word", 100, "cat")), (0, sample("pick", 100, "A", choices=["x", "y"]))]
    index = write_stream(tmp_path / "run" / "stream", learned, specs, tests, 0)
    folder = tmp_path / "run" / "lora"
    write_points(folder, right({"word": [0.5], "pick": [0.5]}, 10), plan=np.array([[1, 1]]), digest=index.digest)
    assert baselines_of(loaded(folder)) == {"word": (None, 60.0), "pick": (37.5, 70.0)}
    sheet = whole_comparison([folder]).sheets[0]
    rows = {name: [cell.entry and cell.entry[0] for cell in cells] for name, _, cells in sheet.blocks[0]}
    assert rows["chance"][:3] == [None, 37.5, None] and rows["majority answer"][:3] == [60.0, 70.0, 65.0]
    other = write_points(tmp_path / "run" / "other", right({"word": [0.5], "pick": [0.5]}), digest="of another stream")
    assert baselines_of(loaded(other)) == {}


def test_latex_is_a_whole_table_with_best_bold_second_underlined_and_both_ends(three: list[Path]) -> None:
    for sheet in whole_comparison(three).sheets:
        text = tex(sheet)
        begun, ended = (Counter(re.findall(rf"\\{what}{{(\w+)}}", text)) for what in ("begin", "end"))
        assert begun == ended == {"table": 1, "tabular": 1}
        assert all(text.count(rule) == 1 for rule in (r"\toprule", r"\bottomrule")) and r"\midrule" in text
        plain = re.sub(r"\\[{}$&%#_]", "", text)
        assert plain.count("{") == plain.count("}") and plain.count("$") % 2 == 0
        rows = [line for line in re.sub(r"\\&", "", text).splitlines() if line.endswith(r" \\")]
        assert {row.count("&") for row in rows} == {len(sheet.columns)}
        assert not re.search(r"(?<!\\)[#%_](?!\{)", "".join(rows))
    main = tex(whole_comparison(three).sheets[0])
    assert r"b\_1" in main and r"\textbf{80.0} {\tiny $^{+" in main and r"\underline{50.0}" in main
    up, down = re.search(r"\\textbf\{80.0\} \{\\tiny \$\^\{\+([\d.]+)\}_\{-([\d.]+)\}\$\}", main).groups()
    assert float(up) > 0 and float(down) > 0


@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_terminal_of_any_width_gets_every_number_whole(three: list[Path], width: int) -> None:
    screen = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for sheet in whole_comparison(three).sheets:
        for part in terminal(sheet, screen):
            screen.print(part)
    text = screen.export_text()
    assert max(map(len, text.splitlines())) <= width
    for value in ("25.0", "52.5", "80.0", "66.2", "61.2", "−48.1"):
        assert re.search(rf"(?<![\d.]){value}(?![\d.])", text), value


@pytest.fixture(scope="module")
def written(three: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("written") / "out"
    done = CliRunner().invoke(app, ["compare", *map(str, three), "--to", str(to)])
    assert done.exit_code == 0, done.output
    assert "ap: high is best: above middle (paired difference +16.2" in done.output
    return to


def test_compare_writes_tables_in_four_forms_and_plots(written: Path) -> None:
    names = sorted(str(path.relative_to(written)) for path in written.rglob("*") if path.is_file())
    plots = [f"figures/{name}.{kind}" for name in ("ap", "differences", "tasks") for kind in ("pdf", "svg")]
    tables = ["comparison.csv", "comparison.json", "comparison.md", "differences.tex", "files.json", *plots]
    assert names == sorted([*tables, "main.tex", "metrics.tex", "published-paper.tex"])
    held = json.loads((written / "comparison.json").read_text())
    assert held["best"]["ap"] == "high" and held["second"]["a"] == "middle" and held["best"]["b_1"] is None
    rows = list(csv.DictReader((written / "comparison.csv").open()))
    found = {(row["table"], row["row"], row["column"]): row for row in rows}
    assert found["main", "high", "a"]["value"] == "80.0000" and found["main", "high", "a"]["mark"] == "best"
    assert "**80.0** [" in (written / "comparison.md").read_text()


def fonts(path: Path) -> tuple[int, int]:
    """Fonts of a PDF, and those of them whose file is inside; streams are looked into."""
    data = path.read_bytes()
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", data, re.S):
        try:
            data += zlib.decompress(stream)
        except zlib.error:
            continue
    return len(re.findall(rb"/FontDescriptor\b\s+\d+ 0 R", data)), len(re.findall(rb"/FontFile2\b", data))


def test_plots_embed_their_fonts_and_are_the_same_bytes_again(three: list[Path], written: Path, tmp_path: Path) -> None:
    for path in (written / "figures").glob("*.pdf"):
        used, embedded = fonts(path)
        assert used and used == embedded, path
    for path in (written / "figures").glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.tag.endswith("svg") and not list(root.iter("{http://www.w3.org/2000/svg}text"))
    write_comparison(whole_comparison(three), tmp_path / "again")
    for path in (written / "figures").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / "figures" / path.name).read_bytes()


def test_a_folder_with_files_of_others_is_left_alone_unless_that_is_forced(three: list[Path], tmp_path: Path) -> None:
    note = tmp_path / "mine.txt"
    note.write_text("mine")
    compare = ["compare", str(three[0]), "--to"]
    refused = CliRunner().invoke(app, [*compare, str(tmp_path)])
    assert isinstance(refused.exception, UserError) and "holds files" in str(refused.exception)
    assert list(tmp_path.iterdir()) == [note]
    with pytest.raises(UserError, match="is no folder"):
        CliRunner().invoke(app, [*compare, str(note)], catch_exceptions=False)
    done = CliRunner().invoke(app, [*compare, str(tmp_path), "--force"])
    assert done.exit_code == 0 and note.read_text() == "mine" and (tmp_path / "comparison.csv").exists()


def test_a_command_replaces_what_it_wrote_itself_and_nothing_else(tmp_path: Path) -> None:
    def fill(*names: str):
        return lambda folder: [(folder / name).write_text(str(names)) for name in names]

    to = tmp_path / "out"
    assert write_folder(to, "compare", fill("a", "b")) == ["a", "b"]
    assert write_folder(to, "compare", fill("a", "c")) == ["a", "c"]  # its own older files make room
    assert sorted(path.name for path in to.iterdir()) == ["a", "c", "files.json"]
    with pytest.raises(UserError, match="`export` did not write"):
        write_folder(to, "export", fill("a"))
    (to / "files.json").write_text('{"written_by": "streamcvit compare", "files": ["../keep"]}')
    (tmp_path / "keep").write_text("kept")
    write_folder(to, "compare", fill("d"), force=True)
    assert (tmp_path / "keep").read_text() == "kept"


def test_every_figure_of_the_report_has_a_plot(tmp_path: Path) -> None:
    runs = compared(loaded(write_run(tmp_path / "smolora", chunks=3, tasks=("a b/c", "$x_1$", "z"))))
    drawn = {}
    for name, title, shows in report_figures(runs):
        figure = heat_figure(shows, title) if isinstance(shows, Heat) else chart_figure(shows, colours(runs))
        drawn[name] = " ".join(text.get_text() for text in figure.findobj(Text))
    assert set(drawn) == {
        *("plan", "ap", "forgetting", "forgetting-smolora", "task-a-b-c", "task-x_1", "task-z", "matrix-smolora"),
        *("before-learning-loss", "before-learning-right", "held-out-smolora", "following", "following-by-task"),
        *("experts-smolora-visual", "experts-smolora-instruction", "time-smolora"),
    }
    assert "$x_1$" in drawn["plan"] and "a b/c" in drawn["forgetting-smolora"]
    assert all(number(value, 0) in drawn["matrix-smolora"] for value in runs[0][1].matrix()[-1])


def test_export_writes_the_matrix_the_scores_and_every_figure(tmp_path: Path) -> None:
    points = right({"=a": [0.5]})
    folder = write_points(tmp_path / "lora", points, published=points)
    done = CliRunner().invoke(app, ["export", str(folder), "--to", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    cells = list(csv.DictReader((tmp_path / "out" / "matrix.csv").open()))
    assert [(row["family"], row["chunk"], row["task"], row["score"]) for row in cells] == [
        ("strict", "1", "'=a", "50"),
        ("strcvit", "1", "'=a", "50"),
    ]
    assert len((tmp_path / "out" / "scores.csv").read_text().splitlines()) == 3
    names = [name for name, _, _ in report_figures(compared(loaded(folder)))]
    there = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert there == sorted(f"{name}.{kind}" for name in names for kind in ("svg", "pdf"))


def test_the_report_of_several_runs_never_replaces_a_runs_own_page(tmp_path: Path) -> None:
    for run in ("x", "y"):
        write_points(tmp_path / run / "lora", right(LOW), seed=ord(run))
        (tmp_path / run / "report.html").write_text("its own")
    x, y = tmp_path / "x", tmp_path / "y"
    done = CliRunner().invoke(app, ["report", str(x), str(y)])
    assert done.exit_code == 0 and (tmp_path / "x-y.html").exists()
    assert "<title>x, y</title>" in (tmp_path / "x-y.html").read_text()
    both = [x / "lora", y / "lora"]
    for to in (x / "report.html", x):
        with pytest.raises(UserError, match="page of another run"):
            page_for([x, y], both, to)
    with pytest.raises(UserError, match="page of another run"):
        page_for([y], [y / "lora"], x / "report.html")
    assert [(run / "report.html").read_text() for run in (x, y)] == ["its own"] * 2
    assert page_for([x], [x / "lora"], None) == x / "report.html"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "{tmp}/none"], "there is no such folder"),
        (["compare", "{tmp}"], "no run in this folder"),
        (["compare", "{run}", "--family", "mine"], "unknown family 'mine'"),
        (["compare", "{run}", "--published", "{tmp}/none.yaml"], "no such file"),
        (["export", "{tmp}", "--to", "{tmp}/out"], "no run in this folder"),
    ],
)
def test_what_cannot_be_compared_is_one_line(three: list[Path], tmp_path: Path, words: list[str], message: str) -> None:
    done = CliRunner().invoke(app, [word.format(tmp=tmp_path, run=three[0]) for word in words])
    assert isinstance(done.exception, UserError) and message in str(done.exception)
    assert list(tmp_path.iterdir()) == []


def test_json_is_one_object_and_nothing_else(three: list[Path]) -> None:
    done = CliRunner().invoke(app, ["compare", *map(str, three), "--json"])
    held = json.loads(done.stdout)
    assert [method["name"] for method in held["methods"]] == ["low", "middle", "high"]
    assert held["published"][0]["source"] == "A paper, table 2"
    assert sheets_of(compare_runs(loaded(*three)), {})[0].blocks[0] == []
