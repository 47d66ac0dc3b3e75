"""A run under fire leaves behind what an undisturbed one leaves (chaos.py does the same with more kills)."""

from __future__ import annotations

from pathlib import Path

from chaos import CUT_OFF, Fire, differences, restarts
from running import METHODS, ROOT, SMALL, Run

ALL = ["zero-shot", "lora", "smolora", "replay", "joint"]
WORDS = [str(ROOT / "pipelines/embedded.yaml"), *METHODS, *SMALL]
STEPS = 4 * 4 * 48 // 8  # of four methods that learn


def test_ten_kills_of_anything_change_nothing(local_run: Run, tmp_path: Path) -> None:
    fire = Fire(WORDS, tmp_path / "small", STEPS, kills=10, seed=3)
    assert fire.burn() + differences(local_run.folder, tmp_path / "small", ALL) == []
    assert any(hit.inside for hit in fire.hits)
    assert sum(restarts(tmp_path / "small").values()) > 0


def test_nodes_die_or_are_cut_off_with_all_that_runs_on_them_and_nothing_is_lost(
    local_run: Run, tmp_path: Path
) -> None:
    victims = ["the learner's node", CUT_OFF]
    fire = Fire(WORDS, tmp_path / "small", STEPS, kills=2, seed=1, nodes=2, victims=victims)
    assert fire.burn() + differences(local_run.folder, tmp_path / "small", ALL) == []
    assert all(hit.learner for hit in fire.hits)
