"""The alert rules: each fires and stays quiet where it should, says what to do, and stands on metrics of the table."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamcvit.monitoring.definitions import METRICS, PREFIX

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"][0]["rules"]


@pytest.mark.parametrize("words", [("check", "rules", "rules.yaml"), ("test", "rules", "rules_test.yaml")])
def test_promtool_accepts_the_rules_and_their_cases(words: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run([promtool, *words], cwd=FOLDER, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    cases = yaml.safe_load((FOLDER / "rules_test.yaml").read_text())["tests"]
    fires = {test["alertname"] for case in cases for test in case["alert_rule_test"] if test["exp_alerts"]}
    assert fires == {rule["alert"] for rule in RULES}


def test_every_alert_has_a_severity_a_summary_and_a_paragraph_that_says_what_to_do() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{rule['alert'].lower()}"
        paragraph = page.split(f"### {rule['alert']}\n", 1)[1].split("\n### ", 1)[0]
        assert len(paragraph) > 100, rule["alert"]


def test_alerts_stand_on_metrics_of_the_table() -> None:
    for rule in RULES:
        for name in re.findall(rf"{PREFIX}\w+", rule["expr"]):
            assert name.removeprefix(PREFIX) in METRICS, (rule["alert"], name)


def test_the_page_names_every_metric() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    assert {name for name in METRICS if f"`{PREFIX}{name}" not in page and f"`{name}" not in page} == set()
