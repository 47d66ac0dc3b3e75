"""The tables of tasks in docs/benchmarks.md, from the layouts themselves: `python -m streamcvit.data.layouts.page`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from streamcvit.data.layouts import LAYOUTS, Layout

HEAD = "| task | learned | strict | published | form | new tokens | in the average |\n|---|---|---|---|---|---|---|"


def table(layout: Layout) -> str:
    """A benchmark's tasks in the order they are learned, one a row."""
    rows = [
        f"| `{name}` | {'yes' if task.train else 'only tested'} | `{task.scorer}` | "
        f"{f'`{task.strcvit}`' if task.strcvit else '-'} | `{task.follow}` | {task.max_new_tokens} | "
        f"{'yes' if task.in_average else 'no'} |"
        for name, task in layout.tasks.items()
    ]
    return "\n".join([HEAD, *rows])


def filled(page: str) -> str:
    """The page with every table between `<!-- tasks: NAME -->` and `<!-- end -->` written anew."""

    def write(found: re.Match[str]) -> str:
        return f"{found[1]}\n\n{table(LAYOUTS[found[2]])}\n\n{found[3]}"

    return re.sub(r"(<!-- tasks: (\S+) -->).*?(<!-- end -->)", write, page, flags=re.DOTALL)


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/benchmarks.md")
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
