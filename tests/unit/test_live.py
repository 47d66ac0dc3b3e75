"""The live view and the table of results, as a terminal and as a log file show them."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from synthetic_run import write_run, write_runs

from streamcvit.monitoring.liverows import Change
from streamcvit.monitoring.record import RunRecord
from streamcvit.monitoring.terminal import LiveView, plan_table, results_table
from streamcvit.screen import Screen, plain_streams


def console(terminal: bool, width: int = 120) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, highlight=False, color_system=None)


def shown(screen: Console) -> str:
    """What is left when control codes are taken out."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.file.getvalue()).replace("\u00a0", " ")  # type: ignore[attr-defined]


def said(screen: Console) -> list[str]:
    """Plain lines without the time that each begins with."""
    lines = shown(screen).splitlines()
    assert all(re.match(r"\d\d:\d\d:\d\d ", line) for line in lines)
    return [line[9:] for line in lines]


def tell(view: LiveView) -> None:
    view.progress("lora", 64, 1.234, 213.4)
    view.chunk_done("lora", 0, {"samples": 64, "loss": 1.234, "correct": 0.25, "busy_s": 0.5})
    scores = {"shape": 40.0, "digit": 10.0, "ocr": 70.0, "land": 55.0}
    lost = {"shape": 3.0, "digit": 60.0, "ocr": 0.0, "land": 20.0}
    changes = {"shape": Change(-3.0, False), "digit": Change(-60.0, True), "land": Change(5.0, True)}
    view.scores("lora", 0, scores, lost, changes, doubtful={"shape"})


def test_without_a_terminal_there_is_a_plain_line_a_chunk() -> None:
    screen = console(terminal=False)
    with LiveView(["lora"], total_samples=960, chunks=15, console=screen) as view:
        view.progress("lora", 32, 2.0, 100.0)
        tell(view)
        view.message("stopped")
    assert said(screen) == [
        "lora: chunk 1/15 learned, 64 samples, loss 1.234, prequential accuracy 25 %, 128 samples/s, about 0:04 left",
        "lora: scores after chunk 1/15: AP 43.8; shape 40 (≈−3), digit 10 (↓60), ocr 70, land 55 (↑5); "
        "forgotten: digit -60, land -20, shape ≈-3",
        "stopped",
    ]


def test_skipped_steps_are_said_when_they_happen_and_in_the_chunks_line() -> None:
    screen = console(terminal=False)
    with LiveView(["lora"], total_samples=960, chunks=15, console=screen) as view:
        for skipped in ({}, {"loss": 1}, {"loss": 1}, {"loss": 1, "gradient": 2}):
            view.progress("lora", 32, None, 100.0, skipped)
        view.chunk_done("lora", 0, {"samples": 64, "loss": None, "skipped": {"loss": 1, "gradient": 2}})
    assert said(screen) == [
        "lora: 1 step skipped (loss not finite) so far",
        "lora: 3 steps skipped (loss or gradient not finite) so far",
        "lora: chunk 1/15 learned, 64 samples, about 0:09 left, 3 steps skipped (loss or gradient not finite)",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_samples_that_are_left_out_are_said_with_the_first_reason(terminal: bool) -> None:
    screen = console(terminal)
    bad = {"position": 3, "sample_id": "a", "reason": "too_long", "detail": "2721 tokens, at most 2048"}
    with LiveView(["lora"], total_samples=960, chunks=15, console=screen) as view:
        view.chunk_done("lora", 0, {"samples": 62}, [bad, bad])
    assert "2 left out, the first: too_long: 2721 tokens, at most 2048" in shown(screen)


def test_on_a_terminal_the_view_shows_progress_scores_and_what_is_forgotten() -> None:
    screen = console(terminal=True)
    with LiveView(["lora", "smolora"], total_samples=960, chunks=15, console=screen) as view:
        tell(view)
    last = shown(screen)
    assert re.search(r"lora .*chunk  2/15 +6 %  213 samples/s  loss 1\.234  0:00  about 0:04 left", last)
    assert "after chunk 1  AP 43.8  shape 40 ≈−3  digit 10 ↓60  ocr 70  land 55 ↑5" in last
    assert "forgetting  digit −60  land −20  shape ≈−3" in last
    assert "↑ ↓ since the boundary before  ≈ may be noise  (95 % interval)" in last
    assert re.search(r"smolora .*waiting", last)


def test_only_the_three_most_forgotten_are_shown() -> None:
    screen = console(terminal=False)
    view = LiveView(["lora"], 960, 15, console=screen)
    view.scores("lora", 0, {}, {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0})
    assert "forgotten: d -4, c -3, b -2\n" in shown(screen)


def test_a_run_at_its_end_keeps_one_line() -> None:
    screen = console(terminal=True)
    with LiveView(["lora"], total_samples=64, chunks=1, console=screen) as view:
        tell(view)
        view.done("lora")
    lines = [line for line in shown(screen).splitlines() if line.strip()]
    assert lines == ["lora  finished  AP 43.8  0:00  forgetting  digit −60  land −20  shape ≈−3"]


def test_one_that_is_learned_is_at_its_end_whatever_is_still_to_be_scored() -> None:
    screen = console(terminal=True)
    with LiveView(["lora", "zero-shot"], total_samples=64, chunks={"lora": 1, "zero-shot": 1}, console=screen) as view:
        view.progress("lora", 60, 1.0, 20.0)
        view.progress("lora", 64, 1.0, 20.0)
        view.scores("zero-shot", -1, {"a": 5.0})
        view.done("zero-shot")
    last = shown(screen)
    assert re.search(r"lora .*chunk 1/1  100 %  loss 1\.000  0:00  scoring", last) and " left" not in last
    assert re.search(r"zero-shot +finished  AP 5\.0", last)


def test_scores_before_any_learning_are_named_so() -> None:
    for terminal, text in (
        (False, "zero-shot: scores before any learning: AP 5.0; a 5"),
        (True, "at first  AP 5.0"),
    ):
        screen = console(terminal)
        with LiveView(["zero-shot"], 960, 15, console=screen) as view:
            view.scores("zero-shot", -1, {"a": 5.0})
        assert text in shown(screen)


def test_each_run_may_have_its_own_number_of_chunks() -> None:
    screen = console(terminal=False)
    view = LiveView(["lora", "joint"], 960, {"lora": 15, "joint": 1}, console=screen)
    view.chunk_done("lora", 0)
    view.chunk_done("joint", 0)
    assert said(screen) == ["lora: chunk 1/15 learned", "joint: chunk 1/1 learned"]


def test_messages_stand_above_the_view() -> None:
    screen = console(terminal=True)
    with LiveView(["lora"], 960, 15, console=screen) as view:
        tell(view)
        view.message("learner restarted")
    text = shown(screen)
    assert text.rindex("learner restarted") < text.rindex("forgetting")


def test_a_name_with_markup_is_shown_as_it_is() -> None:
    screen = console(terminal=False)
    view = LiveView(["[red]x[/]"], 10, 1, console=screen)
    view.scores("[red]x[/]", 0, {"[bold]": 1.0, "[/nothing]": 2.0})
    view.message("[link=x]")
    assert "[red]x[/]: scores after chunk 1/1: AP 1.5; [bold] 1, [/nothing] 2" in shown(screen)
    assert "[link=x]" in shown(screen)


def test_the_table_holds_each_metric_with_its_interval(tmp_path: Path) -> None:
    records = [RunRecord.load(folder) for folder in write_runs(tmp_path, ("joint", "lora", "smolora"))]
    screen = console(terminal=False, width=140)
    screen.print(results_table(records))
    text = shown(screen)
    assert text.index("lora") < text.index("smolora") < text.index("joint") < text.index("upper bound")
    for record in records:
        for name in ("ap", "map", "bwt_first", "bwt_last", "maf_best", "mif"):
            value, low, high = record.metric(name)
            assert f"{value:.1f}" in text and f"[{low:.1f}, {high:.1f}]" in text
    assert "chunks" not in text


def test_the_table_says_which_runs_are_not_finished(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / "lora", "lora", done=4), write_run(tmp_path / "replay", "replay", done=0)]
    screen = console(terminal=False, width=140)
    screen.print(results_table([RunRecord.load(folder) for folder in folders]))
    text = shown(screen)
    assert "4/15" in text and "0/15" in text and "not finished" in text and "–" in text


def test_the_plan_is_a_table_of_chunks_by_tasks() -> None:
    screen = console(terminal=False)
    screen.print(plan_table(["a", "[b]"], np.array([[10, 0], [3, 7]])))
    rows = [line.split() for line in shown(screen).splitlines() if line.strip() and "─" not in line]
    assert rows == [
        ["chunk", "a", "[b]", "all"],
        ["1", "10", "·", "10"],
        ["2", "3", "7", "10"],
        ["all", "13", "7", "20"],
    ]


def test_numbers_of_a_plan_are_whole_in_a_narrow_terminal() -> None:
    counts = np.full((25, 11), 2000)
    screen = console(terminal=False, width=80)
    screen.print(plan_table([f"a_long_task_name_{i}" for i in range(11)], counts))
    text = shown(screen)
    assert text.count("2000") == 275 + 25 and text.count("50000") == 12 and "550000" in text and "…" not in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_view_keeps_to_the_width_of_the_terminal(width: int) -> None:
    screen = console(terminal=True, width=width)
    with LiveView(["a-rather-long-run-name", "lora"], 960, 15, console=screen) as view:
        tell(view)
    assert max(len(line) for line in shown(screen).replace("\r", "\n").splitlines()) <= width


def test_a_notice_stands_below_the_view_and_is_refused_where_none_is_shown() -> None:
    screen = console(terminal=True)
    with LiveView(["lora"], total_samples=960, chunks=15, console=screen) as view:
        tell(view)
        before = shown(screen)
        assert view.notice("stopping after this batch")
        assert shown(screen) == before  # drawn by the next refresh, not into the midst of one
    last = shown(screen).splitlines()
    assert last[-1] == "stopping after this batch" and "forgetting" in last[-3]
    with LiveView(["lora"], total_samples=960, chunks=15, console=console(terminal=False)) as plain:
        assert not plain.notice("stopping after this batch")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_signs_that_the_readers_encoding_lacks_are_said_plainly(
    tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "said", "w", encoding=encoding) as file:
        monkeypatch.setattr("sys.stdout", file)
        plain_streams()
        Screen().print("AP ↑ MAF ↓ 1 – 2 ± 3 \udcff 鳥")
    arrows = "AP ↑ MAF ↓ 1 – 2 ± 3" if encoding == "utf-8" else "AP ^ MAF v 1 "
    said = (tmp_path / "said").read_text(encoding=encoding)
    assert said.startswith(arrows) and said.rstrip().endswith("鳥" if encoding == "utf-8" else "? ?")
