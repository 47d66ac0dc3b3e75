"""A run as its live view is told of it, for a terminal of a test: `python viewed.py`, steered by the lines it reads."""

from __future__ import annotations

import logging
import sys

from streamcvit.monitoring.liverows import Change
from streamcvit.monitoring.terminal import LiveView

TASKS = {
    "shape": 40.0,
    "digit": 10.0,
    "a_task_of_a_name_that_is_longer_than_many_a_terminal_is_wide": 71.0,
    "land": 55.0,
}
TASKS |= {f"task{k}": 60.0 + k for k in range(7)}
METHODS = ("zero-shot", "lora", "smolora-with-a-name-of-its-own", "replay", "joint")


def main() -> None:
    early = logging.StreamHandler(sys.stderr)  # as libraries make theirs on import: it holds the terminal itself
    logging.getLogger("library").addHandler(early)
    chunks = dict.fromkeys(METHODS, 15) | {"zero-shot": 1, "joint": 1}
    with LiveView(METHODS, 960, chunks) as view:
        view.scores("zero-shot", -1, TASKS)
        view.done("zero-shot")
        for chunk in range(15):
            view.progress("lora", 64 * chunk + 40, 1.5, 213.0)
            view.progress("lora", 64 * chunk + 64, 1.5, 213.0)
            view.chunk_done("lora", chunk, {"samples": 64, "loss": 1.5})
        view.scores("lora", 14, TASKS, {"digit": 60.0, "land": 20.0, "shape": 3.0}, doubtful={"shape"})
        view.done("lora")
        view.progress(METHODS[2], 440, 1.234, 213.0)
        view.chunk_done(METHODS[2], 5, {"samples": 64, "loss": 1.234})
        changes = {"shape": Change(12.0, True), "digit": Change(-34.0, True), "land": Change(-3.0, False)}
        view.scores(METHODS[2], 5, TASKS, {"digit": 60.0, "land": 20.0}, changes, doubtful={"land"})
        for line in sys.stdin:
            word, _, place = line.strip().partition(" ")
            if word == "message":
                view.message(f"what comes is {20 * 'long, '} and {word} {place} is said")
            elif word == "print":
                print(f"{word} {place} is said")
            elif word == "log":
                logging.getLogger("library").warning("%s %s is said", word, place)
            elif word == "notice":
                view.notice("stopping after this batch; a second signal stops at once")
            elif word == "finish":
                break
        for method in METHODS[2:]:
            view.progress(method, 960, 0.5, 213.0)
            view.scores(method, 14, TASKS)
            view.done(method)
    print("the end")


if __name__ == "__main__":
    main()
