"""The live page in a browser: it follows a run, outlives it and its server, and everybody can read it."""

from __future__ import annotations

import gzip
import http.client
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import Browser, Tab, chromium
from watched_runs import advance, going_on, pause, write_watched

from streamcvit.monitoring.exporter import Server, serve
from streamcvit.monitoring.watch import Follower, Site


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def tab(browser: Browser) -> Tab:
    tab = browser.tab()
    tab.size(1280, 900)
    return tab


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_watched(tmp_path / "run")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 chunks of ten tasks, four methods."""
    tasks = ("shape", "scene", "yesno", "count", "colour", "ocr", "caption", "grounding", "chart", "land")
    methods = ("lora", "moelora", "smolora", "replay")
    return write_watched(tmp_path_factory.mktemp("large") / "run", methods, 25, chunks=25, tasks=tasks)


@contextmanager
def served(folder: Path, port: int = 0, **more) -> Iterator[Server]:
    with serve(None, port, site=Site(Follower(folder), folder.name), **more) as server:
        yield server


def page(server: Server) -> str:
    return server.url.removesuffix("metrics")


def cell(chunk: int, task: int = 0) -> str:
    return f"document.querySelector('[data-cell=\"{task}.{chunk}\"]')"


def test_a_score_shows_within_two_seconds_of_its_row(tab: Tab, folder: Path) -> None:
    with going_on(folder), served(folder) as server:
        tab.go(page(server))
        tab.until("document.querySelector('.pill.running') && document.querySelector('.link.on')")
        assert tab.eval(f"{cell(5)}.textContent") == ""
        took = []
        for chunk in (3, 4, 5):
            written = advance(folder, "lora", chunk + 1)
            took.append(tab.until(f"/\\d/.test({cell(chunk)}.textContent) && Date.now() / 1000") - written)
        assert sorted(took)[1] < 2.0
        tab.until("document.querySelector('.facts').textContent.includes('Chunk 7 of 15')")
        assert tab.complaints == []


def test_a_tab_outlives_the_server_the_run_and_a_new_life_of_both(tab: Tab, folder: Path) -> None:
    with going_on(folder), served(folder) as server:
        port = server.port
        tab.go(page(server))
        tab.until("document.querySelector('.pill.running') && document.querySelector('.link.on')")
        tab.eval("document.querySelector('[data-act=method][data-name=smolora]').click()")
        tab.until("document.querySelector('#tab-1').getAttribute('aria-selected') === 'true'")
        assert tab.complaints == []
    tab.until("document.querySelector('#link').textContent.includes('no connection since')")
    assert tab.eval(f"/\\d/.test({cell(2)}.textContent)")  # what was known stays
    advance(folder, "smolora", 5)
    with served(folder, port):
        tab.until("document.querySelector('.link.on')")
        tab.until("document.querySelector('.pill.stopped')")
        tab.until(f"/\\d/.test({cell(4)}.textContent)")
        with going_on(folder):
            tab.until("document.querySelector('.pill.running')")
            advance(folder, "smolora", 6)
            tab.until(f"/\\d/.test({cell(5)}.textContent)")
        # Its choices are as they were.
        assert tab.eval("document.querySelector('#tab-1').getAttribute('aria-selected')") == "true"
    # A browser notes by itself that a connection was refused or broke; nothing else is to be said.
    assert [one for one in tab.complaints if "net::ERR_" not in one] == []


def test_a_paused_run_is_followed_and_says_how_to_go_on(tab: Tab, folder: Path) -> None:
    with going_on(folder), served(folder) as server:
        tab.go(page(server))
        tab.until("document.querySelector('.pill.running') && document.querySelector('.link.on')")
        pause(folder, "smolora")
        tab.until("document.querySelector('.pill.paused')")
        head = tab.eval("document.querySelector('#head').textContent")
        for said in (
            "Paused",
            "smolora paused: ocr has lost 40.0 points",
            f"Go on: streamcvit resume {folder}",
            "live",
        ):
            assert said in head
        assert tab.eval("document.querySelector('[role=tab][aria-selected=true]').dataset.name") == "smolora"
        assert tab.complaints == []


def test_the_last_state_stays_when_the_run_ends_and_its_server_with_it(tab: Tab, folder: Path) -> None:
    site = Site(Follower(folder), "run")
    with going_on(folder):
        server = serve(None, site=site)
        tab.go(page(server))
        tab.until("document.querySelector('.pill.running') && document.querySelector('.link.on')")
        for method in ("lora", "smolora"):
            advance(folder, method, 15)
        site.hub.flush()  # what the monitor does last
        server.close()
    tab.until("document.querySelector('#link').textContent.includes('last state')")
    assert tab.eval("document.querySelector('.pill').className") == "pill finished"
    assert tab.eval("document.title") == "✓ run"
    assert tab.eval("[...document.querySelectorAll('.matrix tbody tr:first-child td.heat')].length") >= 13


def test_a_first_view_is_small_and_whole_without_the_network(tab: Tab, large: Path) -> None:
    with served(large) as server:
        tab.go(page(server))
        tab.until("document.querySelector('.link.on')")
        asked = {url.removeprefix(page(server)).split("?")[0] for url in tab.sent}
        assert asked <= {"", "events"}
        assert sum(tab.sent.values()) < 300_000
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", "/", headers={"Accept-Encoding": "identity"})
        answer = connection.getresponse()
        whole, policy = answer.read(), answer.headers["Content-Security-Policy"]
        assert len(whole) < 300_000 and answer.headers["Content-Encoding"] is None
        connection.request("GET", "/", headers={"Accept-Encoding": "gzip, br"})
        packed = connection.getresponse().read()
        assert len(packed) < len(whole) / 3 and gzip.decompress(packed)[:15] == b"<!doctype html>"
        connection.close()
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert b"http://" not in whole.replace(b"http://www.w3.org/2000/svg", b"") and b"https://" not in whole
    assert tab.complaints == []


@pytest.mark.parametrize("done", [1, 13, 25])
def test_nothing_is_cut_at_any_width(tab: Tab, large: Path, tmp_path: Path, done: int) -> None:
    run = large if done == 25 else write_watched(tmp_path / "run", ("smolora",), done, chunks=25)
    with served(run) as server:
        tab.go(page(server))
        tab.until("document.querySelector('.link.on')")
        for width in (1280, 800, 390, 320):
            tab.size(width, 844)
            tab.until(f"[...document.querySelectorAll('svg.chart')].every(e => e.clientWidth < {width})")
            time.sleep(0.2)
            assert tab.eval("document.documentElement.scrollWidth") <= width
            assert tab.eval(CUT) == []  # numbers stand in their boxes
        assert tab.complaints == []


CUT = """[...document.querySelectorAll(".big, .change, .pts, td[data-cell], .facts span")]
  .filter((e) => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline")
  .map((e) => e.className + e.textContent)"""
RAMP = """[...document.querySelectorAll("td.heat")]
  .map((e) => [+e.style.getPropertyValue("--p"), +getComputedStyle(e).backgroundColor.match(/oklch\\(([\\d.]+)/)[1]])
  .sort((a, b) => a[0] - b[0])"""
CONTRAST = """(() => {
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = (colours) => {
    pen.clearRect(0, 0, 1, 1);
    for (const one of colours) { pen.fillStyle = one; pen.fillRect(0, 0, 1, 1); }
    const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const grounds = (e) => e ? [...grounds(e.parentElement), getComputedStyle(e).backgroundColor] : [];
  const found = [];
  const texts = "h1, h2, .small, .note, .facts, .facts b, .change, .pts, .task, .matrix th, td.heat, .tabs button, "
    + ".tabs .ap, .pill, .link, .told span, .told time, .up, .down";
  for (const e of document.querySelectorAll(texts)) {
    if (!e.textContent.trim()) continue;
    const under = grounds(e), a = light([...under, getComputedStyle(e).color]), b = light(under);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.4) found.push(`${ratio.toFixed(2)} ${e.className} ${e.textContent.slice(0, 20)}`);
  }
  return found;
})()"""


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_read_and_heat_by_its_lightness_alone(tab: Tab, large: Path, dark: bool) -> None:
    tab.size(1280, 900, dark)
    with served(large) as server:
        tab.go(page(server))
        tab.until("document.querySelector('.link.on')")
        time.sleep(0.7)  # colours that fade in
        assert tab.eval(CONTRAST) == []
        # Whoever sees no colours sees the order of scores: the higher, the darker; on dark, the lighter.
        pairs = tab.eval(RAMP)
        lightness = [light for _, light in pairs]
        assert len(pairs) > 200 and lightness == sorted(lightness, reverse=not dark)
        assert abs(lightness[0] - lightness[-1]) > 0.4


def test_all_can_be_done_with_keys(tab: Tab, folder: Path) -> None:
    (folder / "report.html").write_text("<!doctype html><title>the report</title>")
    focus = "document.activeElement.dataset"
    with served(folder) as server:
        tab.go(page(server))
        tab.until("document.querySelector('.link.on')")
        first, second = tab.eval("[...document.querySelectorAll('.lost .row')].slice(0, 2).map(e => e.dataset.name)")
        tab.press("j")
        tab.press("j")
        assert tab.eval(f"{focus}.name") == second
        tab.press("k")
        tab.press("Enter")
        tab.until("document.querySelector('.detail svg.chart')")
        assert tab.eval(f"{focus}.name") == first
        tab.press("Escape")
        assert not tab.eval("document.querySelector('.detail')")
        tab.press("s")
        assert tab.eval("document.querySelector('.sort').textContent") == "Stream order"
        tab.press("]")
        shown = tab.eval("document.querySelector('[role=tab][aria-selected=true]').dataset.name")
        tab.press("1" if shown == "smolora" else "2")
        assert tab.eval("document.querySelector('[role=tab][aria-selected=true]').dataset.name") != shown
        tab.press("m")
        assert tab.eval(f"{focus}.cell").endswith(".2")
        tab.press("ArrowLeft")
        assert tab.eval(f"{focus}.cell").endswith(".1")
        assert "after chunk 2" in tab.eval("document.querySelector('#tip').textContent")
        advance(folder, "smolora", 4)
        advance(folder, "lora", 4)
        tab.until("document.querySelector('.facts').textContent.includes('Chunk 5')")
        assert tab.eval(f"{focus}.cell").endswith(".1")  # news take the focus from nobody
        tab.press("t")
        assert tab.eval("getComputedStyle(document.documentElement).colorScheme") == "light"
        tab.press("?")
        assert tab.eval("document.querySelector('#help').open")
        tab.press("Escape")
        tab.press("r")
        tab.until("document.title === 'the report'")
    assert tab.complaints == []


def test_hostile_names_do_nothing(tab: Tab, tmp_path: Path) -> None:
    bad = ('<img src=x onerror=document.title="pwned">', "</script><script>document.title='pwned'</script>", "a\u2028b")
    run = write_watched(tmp_path / "run", ("lora",), 3, tasks=bad)
    events = {"time": "2026-01-01T11:00:00+00:00", "event": "failed", "what": bad[0]}
    with open(run / "lora" / "events.jsonl", "a") as file:
        file.write(json.dumps(events) + "\n")
    with served(run) as server:
        tab.go(page(server))
        tab.until("document.querySelector('.link.on')")
        shown = tab.eval("[...document.querySelectorAll('.lost .task')].map(e => e.textContent).sort()")
        assert shown == sorted(bad)
        assert "pwned" not in tab.eval("document.title") and not tab.eval(
            "document.querySelector('main img, main script')"
        )
    assert tab.complaints == []


def test_the_stream_wants_the_token_as_the_page_does(tab: Tab, folder: Path) -> None:
    with served(folder, token="s3cret") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for header, status in (({}, 401), ({"Authorization": "Bearer s3cret"}, 200)):
            connection.request("GET", "/events", headers=header)
            answer = connection.getresponse()
            assert answer.status == status
            if status == 200:
                assert answer.headers["Content-Type"] == "text/event-stream"
                assert answer.readline() == b"retry: 1000\n"
            connection.close()
        tab.go(page(server).replace("127.0.0.1", "anyone:s3cret@127.0.0.1"))
        tab.until("document.querySelector('.link.on')")
        assert tab.complaints == []


def test_a_run_that_has_not_begun_waits_and_then_fills_in(tab: Tab, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with going_on(run), served(run) as server:
        tab.go(page(server))
        tab.until("document.querySelector('.pill.starting')")
        made = write_watched(tmp_path / "made", ("lora",), 1)
        (made / "lock.json").unlink()
        for path in made.iterdir():
            path.rename(run / path.name)
        tab.until("document.querySelectorAll('td.heat').length > 0 && document.querySelector('.pill.running')")
    assert [one for one in tab.complaints if "net::ERR_" not in one] == []
