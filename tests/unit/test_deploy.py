"""What lies in deploy/ is what the code gives, and what the tools that read it take."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from streamcvit.monitoring.definitions import METRICS, PREFIX

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture(scope="module")
def made() -> ModuleType:
    pytest.importorskip("grafana_foundation_sdk")
    spec = importlib.util.spec_from_file_location("make_dashboard", DEPLOY / "grafana" / "make_dashboard.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["make_dashboard"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_dashboard_is_what_its_code_gives(made: ModuleType) -> None:
    assert made.text() == made.TARGET.read_text(encoding="utf-8"), "run `python deploy/grafana/make_dashboard.py`"


def test_the_dashboard_shows_every_metric_in_panels_that_grafana_has(made: ModuleType) -> None:
    dashboard = json.loads(made.TARGET.read_text())
    panels = dashboard["panels"]
    assert {panel["type"] for panel in panels} <= {"row", "timeseries", "stat", "bargauge"}
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert all(target["datasource"]["uid"] == made.DATASOURCE.uid for target in panel.get("targets", ()))
    asked = " ".join(target["expr"] for panel in panels for target in panel.get("targets", ()))
    names = {re.sub("_bucket$", "", name) for name in re.findall(rf"{PREFIX}(\w+)", asked)}
    # The best score and the lower end of forgetting are seen in forgetting itself; a metric of one's own is not known.
    unseen = {"task_best_score_points", "task_forgetting_low_points", "own_metric_points"}
    unseen |= {"samples_learned_total", "run_finished"}  # states, for alerts
    assert names == set(METRICS) - unseen


def test_grafana_is_given_the_data_source_that_the_dashboard_asks(made: ModuleType) -> None:
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["uid"] == made.DATASOURCE.uid
    assert source["url"] == "http://prometheus:9090" and "prometheus" in COMPOSE["services"]
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/streamcvit.yaml").read_text())["providers"]
    mounted = [volume.split(":")[1] for volume in COMPOSE["services"]["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounted


def test_the_compose_file_keeps_to_the_specification() -> None:
    pytest.importorskip("check_jsonschema")
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml"]
    done = subprocess.run(words, cwd=DEPLOY, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_that_the_compose_file_mounts_is_there() -> None:
    for service in COMPOSE["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists(), source
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


@pytest.mark.parametrize(
    "words",
    [
        ("promtool", "check", "config", "--syntax-only", "prometheus/prometheus.yaml"),
        ("amtool", "check-config", "alertmanager/alertmanager.yaml"),
    ],
    ids=["prometheus", "alertmanager"],
)
def test_the_servers_take_their_configurations(words: tuple[str, ...]) -> None:
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    done = subprocess.run(words, cwd=DEPLOY, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_runs_the_command_as_nobody_special() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    assert 'ENTRYPOINT ["streamcvit"]' in lines
    assert lines.index("USER runner") < lines.index('ENTRYPOINT ["streamcvit"]')
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((DEPLOY.parent / word).exists() for word in copied)
