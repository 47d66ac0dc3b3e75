"""The field's benchmarks as their repositories lay them out, one file a benchmark; `LAYOUTS` knows them by name.

A pipeline names one as its stream, and a person names one data folder:

    stream:
      source: benchmark
      benchmark: cvit            # a name in LAYOUTS
      data: FOLDER               # or --data FOLDER
      # tasks: {flickr30k: {max_new_tokens: 64}}     settings of its tasks that shall be others

A `Layout` says which files lie where beneath that folder, the tasks in the order they are learned (scorers, rules of
form, new tokens, instructions), which annotations answer the test rows, and where one chunk ends. The config's
`stream.tasks` is filled with the layout's tasks, so whatever reads a config finds them there; `scenario.preset` is
`benchmark` unless another is named: a chunk a task in the layout's order, or the files' own chunks and order where
training rows are mixed (`strcvit`, which also knows `strcvit-15-first`, `strcvit-15-recut`, `strcvit-20-first`,
`strcvit-20-recut`). `streamcvit run`, `shard`, `scenario show` and `import` go through `load_layout`.

`LAYOUTS[name].write_small(folder, rows)` writes small synthetic files in the layout, the same bytes each time.
"""

from streamcvit.data.layouts.base import Layout, load_layout
from streamcvit.data.layouts.coin import COIN, COIN_TYPE2
from streamcvit.data.layouts.cvit import CVIT, CVIT_FIVE
from streamcvit.data.layouts.he import HE
from streamcvit.data.layouts.mllmcl import ACL, DCL
from streamcvit.data.layouts.strcvit import STRCVIT, STRCVIT_FULL
from streamcvit.data.layouts.ucit import UCIT

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        STRCVIT,
        STRCVIT_FULL,
        CVIT,
        CVIT_FIVE,
        COIN,
        COIN_TYPE2,
        UCIT,
        DCL,
        ACL,
        HE,
    )
}
"""Benchmark name -> its layout."""

__all__ = ["LAYOUTS", "Layout", "load_layout"]
