"""A headless Chromium, driven through its DevTools protocol over a pipe: no package, no port."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from watching import program

ANSWER_SECONDS = 60.0


class Tab:
    """One page, and what its console said.

    Attributes:
        complaints: errors and warnings of the console, exceptions, and requests that failed or were refused.
        sent: bytes of every answer's body and headers, by URL.
    """

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session
        self.complaints: list[str] = []
        self.sent: dict[str, int] = {}
        self._urls: dict[str, str] = {}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser something of this page."""
        return self.browser.ask(method, self.session, **params)

    def go(self, url: str) -> None:
        """Load an address."""
        self.ask("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def eval(self, expression: str) -> Any:
        """Value of an expression of JavaScript."""
        done = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, expression: str, seconds: float = 30.0) -> Any:
        """Wait until an expression holds; its value."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(AssertionError):  # a page that is being replaced
                if found := self.eval(f"(v => v instanceof Node ? true : v)(document.body && ({expression}))"):
                    return found
            assert time.monotonic() < end, f"not within {seconds} s: {expression}\n{self.complaints}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press a key."""
        named = {"Enter": "\r", "Escape": None, "Tab": None}
        text = {} if named.get(key, key) is None or key.startswith("Arrow") else {"text": named.get(key, key)}
        codes = {"Enter": 13, "Tab": 9, "Escape": 27}
        self.ask("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=codes.get(key, 0), **text)
        self.ask("Input.dispatchKeyEvent", type="keyUp", key=key)

    def size(self, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """Give the window a size, and the system a colour scheme."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path, whole: bool = True) -> None:
        """Save what the page looks like as a PNG."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))

    def heard(self, event: dict[str, Any]) -> None:
        """Note an event of this page."""
        method, said = event["method"], event["params"]
        if method == "Runtime.exceptionThrown":
            self.complaints.append(said["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif method == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning", "assert"):
            self.complaints.append(f"{said['type']}: {said['args']}")
        elif method == "Log.entryAdded" and said["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self._urls[said["requestId"]] = said["request"]["url"]
        elif method in ("Network.loadingFinished", "Network.dataReceived"):
            url = self._urls.get(said["requestId"], "")
            more = said.get("encodedDataLength", 0) or said.get("dataLength", 0)
            self.sent[url] = (
                max(self.sent.get(url, 0), more) if method.endswith("Finished") else self.sent.get(url, 0) + more
            )


class Browser:
    """A Chromium process."""

    def __init__(self, folder: Path) -> None:
        chromium = program("chromium", "chromium-browser", "google-chrome")
        (to_read, self._out), (self._in, to_write) = os.pipe(), os.pipe()

        def plumb() -> None:  # Chromium reads commands at 3 and answers at 4
            read, write = os.dup(to_read), os.dup(to_write)
            os.dup2(read, 3)
            os.dup2(write, 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
        flags += ["--disable-background-networking", "--remote-debugging-pipe", "--disable-dev-shm-usage"]
        flags += [f"--user-data-dir={folder / 'profile'}", "--no-proxy-server", "about:blank"]
        with open(folder / "chromium.log", "w") as log:
            self.process = subprocess.Popen(
                [chromium, *flags], preexec_fn=plumb, close_fds=False, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        os.close(to_read)
        os.close(to_write)
        self._number, self._rest = 0, b""
        self._answers: dict[int, dict[str, Any]] = {}
        self._tabs: dict[str, Tab] = {}

    def tab(self) -> Tab:
        """A page of its own, that shares nothing with others."""
        context = self.ask("Target.createBrowserContext")["browserContextId"]
        target = self.ask("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        self._tabs[session] = tab
        return tab

    def ask(self, method: str, session: str = "", /, **params: Any) -> dict[str, Any]:
        """Ask, and wait for the answer; what pages say meanwhile is noted."""
        self._number += 1
        number, message = self._number, {"id": self._number, "method": method, "params": params}
        os.write(self._out, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        end = time.monotonic() + ANSWER_SECONDS
        while number not in self._answers:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"Chromium does not answer {method}"
            self._take(os.read(self._in, 1 << 20))
        answer = self._answers.pop(number)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _take(self, data: bytes) -> None:
        assert data, "Chromium is gone"
        *whole, self._rest = (self._rest + data).split(b"\0")
        for one in whole:
            message = json.loads(one)
            if "id" in message:
                self._answers[message["id"]] = message
            elif (tab := self._tabs.get(message.get("sessionId", ""))) is not None:
                tab.heard(message)

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(timeout=30)
        os.close(self._out)
        os.close(self._in)


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    """A browser that is gone afterwards."""
    browser = Browser(folder)
    try:
        yield browser
    finally:
        browser.close()
