"""What is wrong with a sink or with traces is said in one line before a run; switched off, they cost nothing."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from streamcvit.errors import UserError
from streamcvit.explain import explain
from streamcvit.monitoring import traces
from streamcvit.monitoring.definitions import METRICS, BucketCounts, Source
from streamcvit.monitoring.metrics import MetricStore
from streamcvit.monitoring.sinks import SINKS, Target, check_ready, points_of
from streamcvit.monitoring.traces import check_traces
from streamcvit.sections import MonitorConfig


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sinks": ["tensorbord"]}, "unknown sink 'tensorbord'; allowed: tensorboard, wandb, mlflow"),
        ({"sinks": ["wandb", "wandb"]}, "'wandb' stands twice"),
        ({"sink_options": {"wandb": {}}}, "sink_options.wandb: it is none of monitor.sinks"),
        (
            {"sinks": ["wandb"], "sink_options": {"wandb": {"team": "x"}}},
            "no option 'team'; it has project, entity, mode",
        ),
        ({"sinks": ["wandb"], "sink_options": {"wandb": {"mode": "off"}}}, "mode is online or offline"),
        ({"sinks": ["mlflow"], "sink_options": {"mlflow": {"tracking_uri": "http://me:pw@x/"}}}, "no password belongs"),
        ({"traces": "collector:4317"}, "'collector:4317' is neither file, console nor a collector's address"),
        ({"trace_share": 0}, "trace_share"),
    ],
)
def test_a_setting_that_cannot_be_is_said_in_one_line(given: dict, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        MonitorConfig(**given)
    line = explain(caught.value)
    assert said in line
    assert "\n" not in line


@pytest.mark.parametrize("name", SINKS)
def test_a_sink_whose_package_is_missing_names_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, SINKS[name].package, None)
    with pytest.raises(UserError, match=rf"{SINKS[name].package} is not installed.*streamcvit\[{name}\]"):
        check_ready([name], {})


def test_traces_without_their_package_or_without_a_console_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="actors have no console.*--local"):
        check_traces("console", local=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with pytest.raises(UserError, match=r"opentelemetry.sdk is not installed.*streamcvit\[otel\]"):
        check_traces("file", local=True)


def test_weights_and_biases_online_wants_an_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if importlib.util.find_spec("wandb") is None:
        pytest.skip("not installed: pip install 'streamcvit[wandb]'")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    netrc = tmp_path / "netrc"
    netrc.write_text("")
    monkeypatch.setenv("NETRC", str(netrc))
    with pytest.raises(UserError, match="nobody is logged in.*mode=offline"):
        check_ready(["wandb"], {})
    check_ready(["wandb"], {"wandb": {"mode": "offline"}})
    netrc.write_text("machine api.wandb.ai login user password 0123\n")
    netrc.chmod(0o600)
    check_ready(["wandb"], {})


def test_what_is_off_imports_nothing() -> None:
    code = (
        "import sys\n"
        "from streamcvit.monitoring import sinks, traces\n"
        "with traces.span('learn', 'x', step=1):\n"
        "    assert traces.here() == ''\n"
        "traces.flush()\n"
        "heavy = {'opentelemetry', 'wandb', 'mlflow', 'tensorboard'}\n"
        "print(*heavy & {name.partition('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


def test_a_span_that_is_off_takes_next_to_nothing() -> None:
    best = float("inf")
    for _ in range(5):
        began = time.thread_time()
        for step in range(10_000):
            with traces.span("learn", "", method="lora", chunk=1, step=step):
                pass
        best = min(best, (time.thread_time() - began) / 10_000)
    assert best < 20e-6


def test_spans_draw_nothing_from_the_generator_that_learning_may_draw_from() -> None:
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    exporter = memory.InMemorySpanExporter()
    traces.begin_with(exporter, "run", "test")
    try:
        before = random.getstate()
        with traces.span("commit"):
            pass
        assert random.getstate() == before
        traces.flush()
    finally:
        traces.end()
    assert [span.name for span in exporter.get_finished_spans()] == ["commit"]


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An OTLP collector's address, and what was posted there: path and body."""
    posted: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", posted
        server.shutdown()


def test_a_collector_is_sent_spans_over_http(collector: tuple[str, list[tuple[str, bytes]]], tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    url, posted = collector
    traces.begin(url, "mine", "learner", tmp_path)
    try:
        with traces.span("ingest"):
            context = traces.here()
        with traces.span("learn", context, step=3):
            pass
        traces.flush()
    finally:
        traces.end()
    assert {path for path, _ in posted} == {"/v1/traces"}
    resources = [r for _, body in posted for r in ExportTraceServiceRequest.FromString(body).resource_spans]
    about = {a.key: a.value.string_value for a in resources[0].resource.attributes}
    assert (about["service.name"], about["service.instance.id"]) == ("streamcvit", "learner")
    spans = {span.name: span for r in resources for scope in r.scope_spans for span in scope.spans}
    assert spans["learn"].parent_span_id == spans["ingest"].span_id
    assert spans["learn"].trace_id == spans["ingest"].trace_id


def test_a_collector_that_is_not_there_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setattr(traces, "LAST_SECONDS", 0.2)
    traces.begin("http://127.0.0.1:9", "mine", "learner", tmp_path)
    try:
        for _ in range(2):
            with traces.span("learn"):
                pass
            traces.flush()
    finally:
        traces.end()
    assert [record.message for record in caplog.records if "traces cannot be sent" in record.message] == [
        "traces cannot be sent to http://127.0.0.1:9/v1/traces; the run goes on without them"
    ]


def test_points_hold_every_kind_of_metric_under_the_names_of_the_one_list() -> None:
    store, run, times = MetricStore(), Source("run", "lora"), BucketCounts()
    for second in (1.0, 3.0):
        times.observe(second)
    store.begin(run, ["ocr"])
    store.step_seconds(run, times)
    store.samples_learned(run, "ocr", 8)
    store.expert_share(run, "visual", [0.25, 0.75])
    store.samples_learned(Source("run", "other"), "ocr", 99)
    points = {point.tag: point.value for point in points_of(store.collect(), run, 5, 1.0)}
    assert points["learner_step_seconds/mean"] == 2.0
    assert points["learner_step_seconds/count"] == 2.0
    assert points["samples_learned_total/ocr"] == 8.0
    assert points["router_expert_share_ratio/visual/1"] == 0.75
    assert not any(tag.startswith("samples_quarantined_total") for tag in points), "what never happened has no curve"
    assert {tag.partition("/")[0] for tag in points} <= METRICS.keys()


def test_a_run_keeps_its_key_through_its_lives_and_shares_it_with_no_other(tmp_path: Path) -> None:
    run = Source("mine", "a.b")
    one, same = Target(run, tmp_path, "2026-01-01"), Target(run, tmp_path / "moved", "2026-01-01")
    other = Target(run, tmp_path, "2026-01-02")
    assert one.key == same.key != other.key
    assert one.name == "mine/a.b"
