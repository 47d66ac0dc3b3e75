"""OpenTelemetry traces of a batch (ingest, learn) and of an evaluation (commit, publish, evaluate).

Off, nothing is imported and a span is a shared object that does nothing. A span of another process is the parent by
its W3C `traceparent`, which the messages of a run carry.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from streamcvit.errors import UserError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext

log = logging.getLogger(__name__)

FOLDER = "traces"
"""Of a run, with a file of JSON lines for each actor."""
EXPORT_SECONDS = 1.0  # that a span waits at most for others to be sent with
LAST_SECONDS = 5.0
_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()
_provider: TracerProvider | None = None
_tracer: Any = None


def check_traces(where: str, local: bool) -> None:
    """Whether traces can go where a setting (`monitor.traces`) says.

    Raises:
        UserError: the packages are not there, or actors would print to a console that they do not have.
    """
    if not where:
        return
    if where == "console" and not local:
        fix = "Set it to file, or run with --local"
        raise UserError("actors have no console", where="monitor.traces", fix=fix)
    for package in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")[: 2 if "://" in where else 1]:
        try:
            there = importlib.util.find_spec(package) is not None
        except ModuleNotFoundError:
            there = False
        if not there:
            fix = "Run pip install 'streamcvit[otel]', or leave monitor.traces empty"
            raise UserError(f"the package {package} is not installed", where="monitor.traces", fix=fix)


def begin(where: str, run: str, actor: str, folder: Path, share: float = 1.0) -> None:
    """Trace this process from here on, unless `where` is empty.

    Args:
        where: `file`, `console`, or an OTLP collector's address.
        run: its name.
        actor: what this process is in it.
        folder: of the run.
        share: of the traces that is kept.
    """
    if where:
        begin_with(_exporter(where, actor, folder), run, actor, share)


def begin_with(exporter: SpanExporter, run: str, actor: str, share: float = 1.0) -> None:
    """The same with any exporter."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    class Ids(IdGenerator):
        """Its own numbers: the library draws from Python's generator, which what is learned may depend on."""

        def __init__(self) -> None:
            self.draw = random.SystemRandom().getrandbits

        def generate_span_id(self) -> int:
            return self.draw(64) or 1

        def generate_trace_id(self) -> int:
            return self.draw(128) or 1

    global _provider, _tracer
    end()
    about = {"service.name": "streamcvit", "service.instance.id": actor, "streamcvit.run": run}
    sampler = ParentBasedTraceIdRatio(share)
    # Not made the process's own: libraries that trace by themselves are no part of this.
    _provider = TracerProvider(sampler=sampler, resource=Resource(about), id_generator=Ids(), shutdown_on_exit=True)
    _provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000 * EXPORT_SECONDS))
    _tracer = _provider.get_tracer("streamcvit")


def end() -> None:
    """Trace no longer; what is not sent yet is."""
    global _provider, _tracer
    if _provider is not None:
        _provider.shutdown()
    _provider = _tracer = None


def flush() -> None:
    """Send what is there, so long as that does not take for ever."""
    if _provider is not None:
        _provider.force_flush(int(1000 * LAST_SECONDS))


def span(name: str, parent: str = "", link: str = "", **attributes: Any) -> AbstractContextManager[Any]:
    """A stretch of work, while the context lasts.

    Args:
        name: of the work.
        parent: `traceparent` of what it belongs to; empty: a trace of its own.
        link: the same of what came before it in another trace.
        attributes: numbers and texts that tell it from others.
    """
    return _NOTHING if _tracer is None else _span(name, parent, link, attributes)


@contextlib.contextmanager
def _span(name: str, parent: str, link: str, attributes: dict[str, Any]) -> Iterator[None]:
    from opentelemetry import trace
    from opentelemetry.context import Context

    links = [trace.Link(_context(link))] if link else []
    context = trace.set_span_in_context(trace.NonRecordingSpan(_context(parent)), Context()) if parent else Context()
    with _tracer.start_as_current_span(name, context, attributes=attributes, links=links):
        yield


def here() -> str:
    """`traceparent` of the span that this is in; empty where nothing is traced."""
    if _tracer is None:
        return ""
    from opentelemetry.trace import get_current_span

    span = get_current_span().get_span_context()
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}" if span.is_valid else ""


def _context(traceparent: str) -> SpanContext:
    """A span of another process, by its `traceparent` (W3C: version, trace, span, flags)."""
    from opentelemetry.trace import SpanContext, TraceFlags

    _, trace, span, flags = traceparent.split("-")
    return SpanContext(int(trace, 16), int(span, 16), True, TraceFlags(int(flags, 16)))


def _exporter(where: str, actor: str, folder: Path) -> SpanExporter:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    def line(span: Any) -> str:
        return span.to_json(indent=None) + "\n"

    if where == "console":
        return ConsoleSpanExporter(formatter=line)
    if where == "file":
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        file = open(folder / FOLDER / f"{actor}.jsonl", "a", encoding="utf-8")  # noqa: SIM115 (it stays open)
        return ConsoleSpanExporter(out=file, formatter=line)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # a line for every failed try
    parts = urlsplit(where)
    url = urlunsplit(parts if parts.path.strip("/") else parts._replace(path="/v1/traces"))
    return _once(OTLPSpanExporter(endpoint=url, timeout=LAST_SECONDS), url)


def _once(exporter: SpanExporter, url: str) -> SpanExporter:
    """An exporter that says once that it cannot export."""
    export = exporter.export
    said: list[str] = []

    def told(spans: Any) -> Any:
        result = export(spans)
        if result.value and not said:
            said.append(url)
            log.warning("traces cannot be sent to %s; the run goes on without them", url)
        return result

    exporter.export = told  # type: ignore[method-assign]
    return exporter
