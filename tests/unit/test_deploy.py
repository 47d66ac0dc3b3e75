"""What lies in deploy/ is what the code gives, and what the tools that read it take."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from streamcvit.monitoring.definitions import METRICS, PREFIX
from streamcvit.pipeline import builtin, load_config

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
CONSTRAINTS = (DEPLOY.parent / "constraints.txt").read_text()
PROJECT = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]
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


@pytest.mark.parametrize("name", ["compose.yaml", "compose-cluster.yaml"])
def test_the_compose_files_keep_to_the_specification(name: str) -> None:
    pytest.importorskip("check_jsonschema")
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", name]
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


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cuda"])
def test_the_images_run_the_command_as_nobody_special(name: str) -> None:
    lines = (DEPLOY / name).read_text().splitlines()
    assert 'ENTRYPOINT ["streamcvit"]' in lines
    assert lines.index("USER runner") < lines.index('ENTRYPOINT ["streamcvit"]')
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((DEPLOY.parent / word).exists() for word in copied)
    asked = re.findall(r"\.\[([\w,]+)\]", "\n".join(lines))[0].split(",")
    assert set(asked) <= set(PROJECT["optional-dependencies"])


def test_the_cluster_of_the_compose_files_is_one_that_the_run_joins() -> None:
    services = yaml.safe_load((DEPLOY / "compose-cluster.yaml").read_text())["services"]
    assert services["worker"]["deploy"] == {"replicas": 2}
    said = " ".join(services["run"]["command"])
    for name in ("head", "worker"):
        assert services[name]["volumes"] == COMPOSE["services"]["run"]["volumes"]
    # Over compose.yaml's: what it says of the run there holds here, too.
    assert all(f"--set {word}" in said for word in re.findall(r"--set (\S+)", COMPOSE["services"]["run"]["command"]))
    config = load_config(builtin("embedded"), re.findall(r"--set (\S+)", said), name="x", out="runs")
    assert config.cluster.address == "auto" and config.monitor.port == 9464


@pytest.mark.parametrize("name", ["aws", "on-premise"])
def test_ray_up_takes_the_cluster_files(name: str) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    asked = yaml.safe_load((DEPLOY / f"ray/{name}.yaml").read_text())
    whole = util.prepare_config(asked)
    util.validate_config(whole)
    assert whole["max_workers"] == asked["max_workers"] >= 2
    starts = " ".join(asked["head_start_ray_commands"] + asked["worker_start_ray_commands"])
    assert starts.count("RAY_AUTH_MODE=token") == 2, "nobody joins without the cluster's token"
    shell = "\n".join(asked["setup_commands"] + asked["head_start_ray_commands"] + asked["worker_start_ray_commands"])
    assert subprocess.run(["bash", "-n"], input=shell, text=True).returncode == 0


def pods(name: str) -> dict[str, dict]:
    """Group -> pod template of a KubeRay manifest, and what else the cluster's specification says."""
    manifest = yaml.safe_load((DEPLOY / f"kuberay/{name}.yaml").read_text())
    assert (manifest["apiVersion"], manifest["metadata"]["name"]) == ("ray.io/v1", "streamcvit")
    cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    assert f"ray=={cluster['rayVersion']}" in CONSTRAINTS.splitlines(), "head and workers are of the image's version"
    assert cluster["authOptions"] == {"mode": "token"}
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert all(g["minReplicas"] <= g["replicas"] <= g["maxReplicas"] for g in groups.values())
    return {name: group["template"] for name, group in {"head": cluster["headGroupSpec"], **groups}.items()}


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_kubernetes_takes_the_pods_of_the_kuberay_manifests(name: str) -> None:
    kubernetes = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    volume = yaml.safe_load((DEPLOY / "kuberay/runs-volume.yaml").read_text())
    kubernetes.validate(volume, "1.33", strict=True)
    found = pods(name)
    assert set(found) == {"head", "gpu"}
    for template in found.values():
        kubernetes.validate({"apiVersion": "v1", "kind": "Pod", **template}, "1.33", strict=True)
        there = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        (container,) = template["spec"]["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == set(there)
        assert there["runs"]["persistentVolumeClaim"]["claimName"] == volume["metadata"]["name"]
    assert pods("raycluster")["head"]["spec"]["containers"] != pods("raycluster")["gpu"]["spec"]["containers"]


def test_the_job_on_kubernetes_runs_a_pipeline_on_its_own_cluster() -> None:
    spec = yaml.safe_load((DEPLOY / "kuberay/rayjob.yaml").read_text())["spec"]
    program, command, pipeline, *rest = shlex.split(spec["entrypoint"])
    assert (program, command) == ("streamcvit", "run")
    config = load_config(builtin("embedded"), [word for word in rest if word != "--set"], name="x")
    assert config.cluster.address == "auto"
    mounts = {mount["mountPath"] for mount in pods("rayjob")["head"]["spec"]["containers"][0]["volumeMounts"]}
    assert config.out in mounts and str(Path(pipeline).parent) in mounts


def test_the_slurm_script_is_one_that_bash_and_slurm_read() -> None:
    script = DEPLOY / "slurm/streamcvit.sbatch"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    lines = script.read_text().splitlines()
    asked = [number for number, line in enumerate(lines) if line.startswith("#SBATCH ")]
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(asked) < first, "Slurm reads no #SBATCH below the first command"
    assert "--ntasks-per-node=1" in script.read_text(), "one Ray node on each of Slurm's"
